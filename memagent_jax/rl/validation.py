"""Measurements while a model learns: whole documents, read greedily.

    params -> trajectories -> reward, metric, health (and traces in the workdir)

They are read with the rollout and judged with the rewards of training.
"""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from memagent_jax import rewards, sharding
from memagent_jax.agent import memory_health
from memagent_jax.agent import trajectories as trajectories_lib
from memagent_jax.agent.config import AgentConfig, ReadingConfig, make_agent
from memagent_jax.agent.engine import Engine, Lockstep
from memagent_jax.agent.trajectories import Trajectories, Verdicts
from memagent_jax.data.batch import Batch
from memagent_jax.data.batches import BatchIterator
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.rewards import Reward
from memagent_jax.rl.stages import Documents


class Validation:
  """Measures reward, metric and health of greedy readings; keeps traces."""

  def __init__(
    self,
    model: Model,
    workdir: str | os.PathLike,
    *,
    documents: Documents,
    reading: ReadingConfig,
    count: int = 64,
    batch_size: int = 64,
    traced: int = 4,
    name: str = 'validation',
    engine: Engine | None = None,
    reward: Reward = rewards.data_reward,
  ):
    """Prepares the measurement.

    Args:
      model: the model, of which config and tokenizer are used.
      workdir: directory that receives `traces/NAME_STEP.jsonl`.
      documents: function that makes the seqio task or mixture, see
        `stages.Documents`.
      reading: caps, wording and memory rule; greedy if its temperature is 0.
      count: number of documents, the same ones at every call.
      batch_size: number of documents read at once.
      traced: number of trajectories to keep, turn by turn.
      name: prefix of the metrics and the trace files.
      engine: engine that reads; None: `Lockstep()`.
      reward: function that says what a trajectory is worth, as in training.

    Raises:
      ValueError: a count that is not a multiple of the batch size.
    """
    if count % batch_size:
      raise ValueError(
        f'{name}: count {count} is no multiple of batch_size {batch_size}; '
        'batches always have their full shape.'
      )
    self._agent = make_agent(model, reading)
    self._engine = Lockstep() if engine is None else engine
    self._reward = reward
    self._tokenizer, self._seed = model.tokenizer, reading.seed
    self._folder, self._traced, self._name = Path(workdir), traced, name
    sizes = trajectories_lib.batch_config(reading, batch_size)
    batches = BatchIterator(
      documents(model.tokenizer, sizes), model.tokenizer, sizes
    )
    self._batches = [next(batches) for _ in range(count // batch_size)]

  def __call__(self, params: dict, step: int) -> dict[str, float]:
    """`NAME/reward`, `NAME/metric`, and `NAME/memory/...`."""
    values, metrics, health = [], [], []
    for number, batch in enumerate(self._batches):
      trajectories = self._engine.sample(
        self._agent, params, batch, seed=self._seed
      )
      verdicts = trajectories_lib.judge(
        self._tokenizer, batch, trajectories, self._reward
      )
      values.append(verdicts.reward_BxG.mean())
      metrics.append(verdicts.metric_BxG.mean())
      health.append(
        memory_health.measure(
          self._tokenizer, self._agent, batch.answers, trajectories
        )
      )
      if number == 0 and self._traced and sharding.is_main():
        self._write_traces(step, batch, trajectories, verdicts)
    result = {
      'reward': float(np.mean(values)),
      'metric': float(np.mean(metrics)),
    }
    for key in (
      'memory/length_p50',
      'memory/saturated',
      'memory/evidence_kept',
    ):
      values = [h[key] for h in health if key in h]
      if values:
        result[key] = float(np.mean(values))
    return {f'{self._name}/{key}': value for key, value in result.items()}

  def _write_traces(
    self,
    step: int,
    batch: Batch,
    trajectories: Trajectories,
    verdicts: Verdicts,
  ) -> None:
    folder = self._folder / 'traces'
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
      json.dumps(
        trace(self._tokenizer, self._agent, batch, trajectories, verdicts, n)
      )
      for n in range(min(self._traced, len(batch.ids)))
    ]
    path = folder / f'{self._name}_{step}.jsonl'
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def trace(
  tokenizer: Tokenizer,
  agent: AgentConfig,
  batch: Batch,
  trajectories: Trajectories,
  verdicts: Verdicts,
  n: int,
) -> dict:
  """Trajectory n as text, turn by turn; JSON-able."""
  b, g = divmod(n, trajectories.rollouts)
  turns = trajectories_lib.turns_of(tokenizer, agent, trajectories, n)
  return {
    'id': batch.ids[b],
    'rollout': g,
    'answers': list(batch.answers[b]),
    'turns': [dataclasses.asdict(turn) for turn in turns],
    'answer': verdicts.answers[n],
    'reward': float(verdicts.reward_BxG[b, g]),
    'metric': float(verdicts.metric_BxG[b, g]),
  }
