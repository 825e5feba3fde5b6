"""What readings of documents did, and the verifier's verdicts on them.

Engine.sample -> Trajectories -> judge -> Verdicts(reward_BxG, metric_BxG)
                    `-> turns_of: a trajectory's turns as text
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses

import jax
import numpy as np

from memagent_jax import rewards
from memagent_jax.agent.config import AgentConfig, ReadingConfig
from memagent_jax.agent.turns import (
  Turn,
  texts,
  turn_record,
  without_control_id,
)
from memagent_jax.data.batch import Batch, BatchConfig
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.rewards import Reward, TrajectoryView
from memagent_jax.structs import (
  FINISH_REASONS,
  SKIPPED,
  Documents,
  MemoryState,
  Response,
  Turns,
)


@dataclasses.dataclass(frozen=True)
class Trajectories:
  """What N = B * G readings of a batch did, as NumPy arrays."""

  documents: Documents  # repeated: one per trajectory
  first: MemoryState  # the state before the first turn
  turns: Turns
  answer: Response
  rollouts: int  # G


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """The verifier's verdicts on all trajectories."""

  reward_BxG: np.ndarray  # float32, in 0 ... 1: what is trained on
  metric_BxG: np.ndarray  # float32, in 0 ... 1: what evaluation reports
  outcomes: Mapping[
    str, int
  ]  # number of trajectories by the outcome of their reward
  answers: Sequence[str]  # text of each trajectory's answer turn


def batch_config(
  reading: ReadingConfig, batch_size: int, seed: int = 0
) -> BatchConfig:
  """Batch settings for a reading; `seed` decides the order of documents."""
  return BatchConfig(
    batch_size=batch_size,
    chunk_tokens=reading.chunk_tokens,
    question_tokens=reading.question_tokens,
    chunk_cut=reading.chunk_cut,
    seed=seed,
  )


def judge(
  tokenizer: Tokenizer,
  batch: Batch,
  trajectories: Trajectories,
  reward: Reward = rewards.data_reward,
) -> Verdicts:
  """Scores every trajectory by a reward and by its example's own metric."""
  g = trajectories.rollouts
  answers = texts(tokenizer, without_control_id(trajectories.answer))
  values, metrics = [], []
  outcomes: Counter[str] = Counter()
  for n, answer in enumerate(answers):
    b = n // g
    verdict = reward(_view(tokenizer, batch, trajectories, n, answer))
    outcomes[verdict.outcome] += 1
    values.append(verdict.value)
    metrics.append(
      rewards.score(batch.metrics[b], answer, batch.answers[b]).value
    )

  def by_group(values: list[float]) -> np.ndarray:
    return np.asarray(values, np.float32).reshape(-1, g)

  return Verdicts(by_group(values), by_group(metrics), outcomes, answers)


def _view(
  tokenizer: Tokenizer, batch: Batch, found: Trajectories, n: int, answer: str
) -> TrajectoryView:
  b = n // found.rollouts

  def read_memories() -> tuple[str, ...]:
    memory = jax.tree.map(lambda x: x[:, n], found.turns.memory)
    read_C = found.turns.response.finish_N[:, n] != SKIPPED
    return tuple(np.asarray(texts(tokenizer, memory), object)[read_C])

  question = found.documents.question
  return TrajectoryView(
    question=tokenizer.decode(question.ids_NxW[n, : question.length_N[n]]),
    right_answers=batch.answers[b],
    answer=answer,
    finish_reason=FINISH_REASONS[int(found.answer.finish_N[n])],
    scorer=batch.rewards[b],
    read_memories=read_memories,
  )


def turns_of(
  tokenizer: Tokenizer, agent: AgentConfig, trajectories: Trajectories, n: int
) -> list[Turn]:
  """The memory turns of trajectory n, without those that had no chunk."""
  chunks, turns = trajectories.documents.chunk, trajectories.turns
  return [
    turn_record(
      tokenizer,
      agent,
      jax.tree.map(lambda x, c=c: x[c], turns),
      n,
      chunk_index=c,
      chunk=chunks.ids_NxW[c, n, :length].tolist(),
    )
    for c, length in enumerate(chunks.length_N[:, n])
    if length
  ]
