"""Documents read by a model and answers judged: what training and evaluation share.

    Batch x G rollouts -> rollout.read, window by window -> rollout.answer
      -> Trajectories -> judge -> Verdicts(reward_BxG, metric_BxG)

Trajectory n = b * G + g is rollout g of document b. Its keys come from the seed,
the example's id, the number of its reading and g alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses

import jax
import numpy as np

from memagent_jax import rewards, sharding
from memagent_jax.agent import rollout
from memagent_jax.agent.rollout import AgentConfig, ReadingConfig
from memagent_jax.data.batches import Batch, BatchConfig
from memagent_jax.sampling import decode
from memagent_jax.structs import EOS, Documents, Response, Tokens, Turns

# Chunk slots that one call of `rollout.read` scans.
WINDOW_CHUNKS = 8


@dataclasses.dataclass(frozen=True)
class Trajectories:
  """What N = B * G readings of a batch did; arrays are NumPy's."""

  documents: Documents  # repeated: one a trajectory
  first_memory: Tokens
  turns: Turns
  answer: Response
  rollouts: int  # G


@dataclasses.dataclass(frozen=True)
class Verdicts:
  """What the verifier says of every trajectory."""

  reward_BxG: np.ndarray  # float32, in 0 ... 1: what is trained on
  metric_BxG: np.ndarray  # float32, in 0 ... 1: what evaluation reports
  outcomes: Mapping[str, int]  # of the rewards, by name
  answers: Sequence[str]  # text of every trajectory's answer turn


def batch_config(
  reading: ReadingConfig, batch_size: int, seed: int = 0
) -> BatchConfig:
  """Documents as a reading takes them; `seed` is of their order."""
  return BatchConfig(
    batch_size=batch_size,
    chunk_tokens=reading.chunk_tokens,
    question_tokens=reading.question_tokens,
    chunk_cut=reading.chunk_cut,
    seed=seed,
  )


def part_rows(rows: int, rows_at_once: int) -> int:
  """Trajectories of a part that is read side by side; see `sample`.

  Raises:
    ValueError: trajectories that do not divide into such parts.
  """
  size = min(rows_at_once or rows, rows)
  if rows % size:
    raise ValueError(
      f'{rows} trajectories do not divide into parts of rows_at_once {size}.'
    )
  return size


def sample(
  agent: AgentConfig,
  params,
  batch: Batch,
  *,
  rollouts: int = 1,
  seed: int = 0,
  rows_at_once: int = 0,
  first_memory: Tokens | None = None,
) -> Trajectories:
  """Reads every document of a batch `rollouts` times and asks at the end.

  Args:
    agent: static configuration.
    params: the model's.
    batch: documents of any number of chunk slots.
    rollouts: G.
    seed: of all sampling.
    rows_at_once: at most so many trajectories' caches exist side by side; 0:
      all of them. The result is the same.
    first_memory: of every document, B rows, M wide; None: the template's.

  Raises:
    ValueError: trajectories that do not divide into parts of `rows_at_once`.
  """
  documents = jax.tree.map(np.asarray, batch.documents)
  documents = Documents(
    question=jax.tree.map(
      lambda x: np.repeat(x, rollouts, axis=0), documents.question
    ),
    chunk=jax.tree.map(
      lambda x: np.repeat(x, rollouts, axis=1), documents.chunk
    ),
  )
  rows = len(batch.ids) * rollouts
  size = part_rows(rows, rows_at_once)
  example_N = np.repeat(
    [decode.example_number(name) for name in batch.ids], rollouts
  )
  reading_B = np.asarray(batch.readings)
  rollout_N = (rollouts * reading_B[:, None] + np.arange(rollouts)).reshape(-1)
  if first_memory is None:
    first_memory = rollout.first_memory(agent, len(batch.ids))
  first = jax.tree.map(
    lambda x: np.repeat(x, rollouts, axis=0), jax.device_get(first_memory)
  )
  read = []
  for start in range(0, rows, size):
    part = slice(start, start + size)
    key_N = decode.row_keys(
      seed,
      sharding.rows(np.asarray(example_N[part], np.uint32)),
      sharding.rows(np.asarray(rollout_N[part], np.int32)),
    )
    mine = Documents(
      question=jax.tree.map(lambda x, p=part: x[p], documents.question),
      chunk=jax.tree.map(lambda x, p=part: x[:, p], documents.chunk),
    )
    memory = jax.tree.map(lambda x, p=part: x[p], first)
    read.append(_read(agent, params, mine, memory, key_N))
  turns, answers = zip(*read, strict=True)
  return Trajectories(
    documents=documents,
    first_memory=first,
    turns=jax.tree.map(lambda *x: np.concatenate(x, axis=1), *turns),
    answer=jax.tree.map(lambda *x: np.concatenate(x), *answers),
    rollouts=rollouts,
  )


def _read(
  agent: AgentConfig, params, documents: Documents, first: Tokens, key_N
) -> tuple[Turns, Response]:
  """All turns of a row of documents, and the answers, on the host."""
  question = sharding.rows(documents.question)
  memory, windows = sharding.rows(first), []
  slots, rows = documents.chunk.length_N.shape
  for start in range(0, slots, WINDOW_CHUNKS):
    chunk = jax.tree.map(
      lambda x, s=start: x[s : s + WINDOW_CHUNKS], documents.chunk
    )
    memory, turns = rollout.read(
      agent,
      params,
      question,
      memory,
      sharding.rows(chunk, axis=1),
      key_N,
      sharding.rows(np.full((rows,), start, np.int32)),
    )
    windows.append(sharding.to_host(turns))
  answer = rollout.answer(agent, params, question, memory, key_N)
  turns = jax.tree.map(lambda *x: np.concatenate(x), *windows)
  return turns, sharding.to_host(answer)


def judge(tokenizer, batch: Batch, trajectories: Trajectories) -> Verdicts:
  """Scores the answers with the batch's own rewards and metrics."""
  g = trajectories.rollouts
  answers = texts(tokenizer, without_control_id(trajectories.answer))
  reward, metric, outcomes = [], [], Counter()
  for n, text in enumerate(answers):
    right = batch.answers[n // g]
    verdict = rewards.score(batch.rewards[n // g], text, right)
    outcomes[verdict.outcome] += 1
    reward.append(verdict.value)
    metric.append(rewards.score(batch.metrics[n // g], text, right).value)

  def by_group(values):
    return np.asarray(values, np.float32).reshape(-1, g)

  return Verdicts(by_group(reward), by_group(metric), outcomes, answers)


def without_control_id(response: Response) -> Tokens:
  """The responses as text has them: without the control id that ended them."""
  ended_N = response.finish_N == EOS
  return Tokens(response.ids_NxR, response.length_N - ended_N)


def texts(tokenizer, tokens: Tokens) -> list[str]:
  """The text of every row."""
  return [
    tokenizer.decode(row[:length])
    for row, length in zip(
      np.asarray(tokens.ids_NxW), np.asarray(tokens.length_N), strict=True
    )
  ]
