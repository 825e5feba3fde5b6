"""What is measured while a model learns: whole documents, read greedily.

    params -> trajectories -> reward, metric, health (and traces in the workdir)

They are read by the rollout and judged by the rewards of training.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path

import numpy as np

from memagent_jax import sharding
from memagent_jax.agent import memory_health, rollout, trajectories
from memagent_jax.agent.prompts import Template
from memagent_jax.agent.rollout import ReadingConfig
from memagent_jax.agent.trajectories import Trajectories, Verdicts
from memagent_jax.data.batches import Batch, BatchIterator
from memagent_jax.models.model import Model
from memagent_jax.structs import FINISH_REASONS


class Validation:
  """Documents read greedily: reward, metric, health; some traces are kept."""

  def __init__(
    self,
    model: Model,
    workdir: str | os.PathLike,
    *,
    documents: Callable,
    template: Template,
    reading: ReadingConfig,
    count: int = 64,
    rows: int = 64,
    traced: int = 4,
    name: str = 'validation',
  ):
    """Makes a measurement.

    Args:
      model: its config and tokenizer are used.
      workdir: gets `traces/NAME_STEP.jsonl`.
      documents: makes the seqio task or mixture for a tokenizer.
      template: wording of the turns.
      reading: caps; greedy if its temperature is 0.
      count: documents; the same at every call.
      rows: documents read side by side.
      traced: trajectories that are kept, turn by turn.
      name: of the metrics and of the traces.

    Raises:
      ValueError: a count that is no multiple of the rows.
    """
    if count % rows:
      raise ValueError(
        f'{name}: count {count} is no multiple of rows {rows}; batches always '
        'have their full shape.'
      )
    self._agent = rollout.make_agent(model, template, reading)
    self._tokenizer, self._seed = model.tokenizer, reading.seed
    self._folder, self._traced, self._name = Path(workdir), traced, name
    batches = BatchIterator(
      documents(model.tokenizer),
      model.tokenizer,
      trajectories.batch_config(reading, rows),
    )
    self._batches = [next(batches) for _ in range(count // rows)]

  def __call__(self, params: dict, step: int) -> dict[str, float]:
    """`NAME/reward`, `NAME/metric`, and `NAME/memory/...`."""
    rewards, metrics, health = [], [], []
    for number, batch in enumerate(self._batches):
      found = trajectories.sample(self._agent, params, batch, seed=self._seed)
      verdicts = trajectories.judge(self._tokenizer, batch, found)
      rewards.append(verdicts.reward_BxG.mean())
      metrics.append(verdicts.metric_BxG.mean())
      health.append(
        memory_health.measure(self._tokenizer, batch.answers, found)
      )
      if number == 0 and self._traced and sharding.is_main():
        self._write_traces(step, batch, found, verdicts)
    result = {
      'reward': float(np.mean(rewards)),
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

  def _write_traces(self, step, batch, found, verdicts) -> None:
    folder = self._folder / 'traces'
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
      json.dumps(trace(self._tokenizer, batch, found, verdicts, n))
      for n in range(min(self._traced, len(batch.ids)))
    ]
    path = folder / f'{self._name}_{step}.jsonl'
    path.write_text('\n'.join(lines) + '\n', encoding='utf-8')


def trace(
  tokenizer, batch: Batch, found: Trajectories, verdicts: Verdicts, n: int
) -> dict:
  """Trajectory n as text, turn by turn; JSON-able."""
  b, g = divmod(n, found.rollouts)
  turns = []
  chunks, memory = found.documents.chunk, found.turns.memory
  for c, length in enumerate(chunks.length_N[:, n]):
    if length:
      chunk = tokenizer.decode(chunks.ids_NxW[c, n, :length])
      kept = memory.ids_NxW[c, n, : memory.length_N[c, n]]
      finish = int(found.turns.response.finish_N[c, n])
      turns.append(
        {
          'chunk': chunk,
          'memory': tokenizer.decode(kept),
          'finish_reason': FINISH_REASONS[finish],
        }
      )
  return {
    'id': batch.ids[b],
    'rollout': g,
    'answers': list(batch.answers[b]),
    'turns': turns,
    'answer': verdicts.answers[n],
    'reward': float(verdicts.reward_BxG[b, g]),
    'metric': float(verdicts.metric_BxG[b, g]),
  }
