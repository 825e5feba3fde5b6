"""The memory agent as a method: many documents side by side, of any length.

    texts -> a DocumentStream a row -> windows of chunk slots -> rollout.read
      -> memories, traces, health; now and then a Progress -> rollout.answer

A killed reading goes on at the last window whose progress was saved.
"""

from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import memory_health, rollout, trajectories
from memagent_jax.agent.rollout import AgentConfig, ReadingConfig
from memagent_jax.data.examples import Example, check_question
from memagent_jax.evals.methods.chunked import ChunkMethod, DocumentStream
from memagent_jax.evals.methods.method import Answered, Result
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models import flops as flops_lib
from memagent_jax.models.model import Model
from memagent_jax.sampling import decode
from memagent_jax.structs import FINISH_REASONS, LENGTH, Tokens, Turns

# Changes of a memory that a trace keeps at either end.
_TRACED_CHANGES = 40
# What this process has compiled: agent, rows and window of a call. The first call
# is not timed.
_COMPILED: set[tuple[AgentConfig, int, int]] = set()


@dataclasses.dataclass(frozen=True)
class Memory(ChunkMethod):
  """Reads chunk by chunk and answers from the memory."""

  # Chunk slots of one call on the device.
  window_chunks: int = 8

  independent_examples = False
  needs_params = True

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Reads all documents side by side, then answers every question.

    Raises:
      ValueError: a question over its cap, or caps beyond the model's window.
    """
    agent = rollout.make_agent(model, self.template, self.reading)
    question = tokens_lib.pad_rows(
      [_question_ids(model, self.reading, e) for e in examples],
      self.reading.question_tokens,
    )
    key_N = decode.row_keys(
      self.reading.seed,
      jnp.asarray([decode.example_number(e.id) for e in examples], jnp.uint32),
      jnp.zeros(len(examples), jnp.int32),
    )
    state = progress.state or {'first': 0, 'rows': [None] * len(examples)}
    first = state['first']
    rows = [
      _Row(
        agent,
        model.tokenizer,
        self.reading,
        example,
        int(question_tokens),
        saved and _RowState(**saved),
      )
      for example, question_tokens, saved in zip(
        examples, np.asarray(question.length_N), state['rows'], strict=True
      )
    ]
    memory = tokens_lib.pad_rows(
      [row.state.memory_ids for row in rows], self.reading.memory_tokens
    )
    all_chars = max(sum(len(example.document) for example in examples), 1)
    chunk_seconds, program = [], (agent, len(rows), self.window_chunks)
    while True:
      window = [row.next_chunks(self.window_chunks) for row in rows]
      if not any(window):
        break
      begun = time.perf_counter()
      memory, turns = rollout.read(
        agent,
        model.params,
        question,
        memory,
        _slots(window, self.window_chunks, self.reading.chunk_tokens),
        key_N,
        jnp.full((len(rows),), first, jnp.int32),
      )
      turns = jax.device_get(turns)
      if program in _COMPILED:
        spent = time.perf_counter() - begun
        # Of a chunk in every row: where some are over there are fewer.
        chunk_seconds.append(spent * len(rows) / sum(map(len, window)))
      _COMPILED.add(program)
      for n, (row, chunks) in enumerate(zip(rows, window, strict=True)):
        row.add(turns, n, chunks, first)
      first += self.window_chunks
      progress.update(
        sum(row.chars_read() for row in rows) / all_chars,
        functools.partial(_saved, first, rows),
      )
    response = jax.device_get(
      rollout.answer(agent, model.params, question, memory, key_N)
    )
    answers = trajectories.texts(
      model.tokenizer, trajectories.without_control_id(response)
    )
    return Answered(
      [
        row.result(
          answers[n],
          FINISH_REASONS[int(response.finish_N[n])],
          int(response.length_N[n]),
        )
        for n, row in enumerate(rows)
      ],
      chunk_seconds,
    )


@dataclasses.dataclass
class _RowState:
  """Where a document's reading is, and what its memory did; JSON-able."""

  memory_ids: list[int]
  # Of the document's stream.
  stream: dict[str, Any] | None = None
  # Turns by finish reason, and how many left the memory as it was.
  turns: dict[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(FINISH_REASONS[:2], 0)
  )
  unchanged: int = 0
  # Whether no turn after the first changed it.
  constant: bool = True
  tokens: int = 0
  # Turns by the length of the memory that they left.
  lengths: dict[str, int] = dataclasses.field(default_factory=dict)
  flops: float = 0.0
  # Chunks at which an answer came into the memory, and was lost again.
  enters: int | None = None
  leaves: int | None = None
  kept: bool = False
  # The first and the last changes of the memory.
  first_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  last_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class _Row:
  """One document on its way."""

  def __init__(
    self,
    agent: AgentConfig,
    tokenizer,
    reading: ReadingConfig,
    example: Example,
    question_tokens: int,
    state: _RowState | None = None,
  ):
    self._agent, self._tokenizer = agent, tokenizer
    self._example, self._question_tokens = example, question_tokens
    self._state = state or _RowState(list(agent.prompts.empty_memory))
    self._stream = DocumentStream(
      tokenizer, reading, example.document, self._state.stream
    )

  @property
  def state(self) -> _RowState:
    """As it is now; a reading that starts from it goes on here."""
    return dataclasses.replace(self._state, stream=self._stream.state())

  def chars_read(self) -> float:
    """About how many characters of the document."""
    return self._stream.chars_read(self._state.tokens)

  def next_chunks(self, count: int) -> list[list[int]]:
    """The next chunks, fewer at the end of the document."""
    chunks: list[list[int]] = []
    while len(chunks) < count and (chunk := self._stream.next()):
      chunks.append(chunk)
    return chunks

  def add(
    self, turns: Turns, n: int, chunks: Sequence[Sequence[int]], first: int
  ) -> None:
    """Takes the turns of a window into account; row n is this one."""
    p, agent = self._state, self._agent
    for c, chunk in enumerate(chunks):
      kept = turns.memory.length_N[c, n]
      ids = turns.memory.ids_NxW[c, n, :kept].tolist()
      finish = FINISH_REASONS[int(turns.response.finish_N[c, n])]
      p.turns[finish] += 1
      p.tokens += len(chunk)
      p.lengths[str(len(ids))] = p.lengths.get(str(len(ids)), 0) + 1
      p.flops += flops_lib.turn_flops(
        agent.model,
        agent.prompts.memory_turn_tokens
        + self._question_tokens
        + len(p.memory_ids)
        + len(chunk),
        int(turns.response.length_N[c, n]),
      )
      if ids == p.memory_ids:
        p.unchanged += 1
      else:
        p.constant &= first + c == 0
        self._change(first + c, chunk, ids, finish)
      p.memory_ids = ids

  def _change(
    self, number: int, chunk: Sequence[int], ids: Sequence[int], finish: str
  ) -> None:
    p, memory = self._state, self._tokenizer.decode(ids)
    has = any(answer in memory for answer in self._example.answers)
    if has and p.enters is None:
      p.enters = number
    if p.kept and not has and p.leaves is None:
      p.leaves = number
    p.kept = has
    change = {
      'chunk_index': number,
      'chunk': self._tokenizer.decode(chunk),
      'chunk_tokens': len(chunk),
      'memory': memory,
      'memory_ids': list(ids),
      'finish_reason': finish,
    }
    if len(p.first_changes) < _TRACED_CHANGES:
      p.first_changes.append(change)
    else:
      p.last_changes = [*p.last_changes, change][-_TRACED_CHANGES:]

  def result(
    self, answer: str, finish_reason: str, answer_tokens: int
  ) -> Result:
    """What became of the document."""
    p, agent = self._state, self._agent
    turns = max(sum(p.turns.values()), 1)
    return Result(
      answer=answer,
      finish_reason=finish_reason,
      own_tokens=p.tokens,
      read_tokens=p.tokens,
      turns=p.turns,
      flops=p.flops
      + flops_lib.turn_flops(
        agent.model,
        agent.prompts.answer_turn_tokens
        + self._question_tokens
        + len(p.memory_ids),
        answer_tokens,
      ),
      health={
        'saturated': p.turns[FINISH_REASONS[LENGTH]] / turns,
        'empty': p.lengths.get('0', 0) / turns,
        'unchanged': p.unchanged / turns,
        'constant': p.constant if turns > 1 else None,
        **memory_health.length_quantiles(
          np.repeat(
            [int(length) for length in p.lengths], list(p.lengths.values())
          )
        ),
        'evidence_enters_turn': p.enters,
        'evidence_leaves_turn': p.leaves,
        'evidence_kept': p.kept,
      },
      trace=[*p.first_changes, *p.last_changes],
    )


def _question_ids(model: Model, reading: ReadingConfig, example: Example):
  ids = model.tokenizer.encode(example.question)
  check_question(example.id, len(ids), reading.question_tokens)
  return ids


def _slots(
  window: Sequence[Sequence[Sequence[int]]], slots: int, width: int
) -> Tokens:
  """Chunk slots [C, N, K] of the rows' next chunks."""
  ids_CxNxK = np.zeros((slots, len(window), width), np.int32)
  length_CxN = np.zeros((slots, len(window)), np.int32)
  for n, chunks in enumerate(window):
    for c, chunk in enumerate(chunks):
      ids_CxNxK[c, n, : len(chunk)] = chunk
      length_CxN[c, n] = len(chunk)
  return Tokens(jnp.asarray(ids_CxNxK), jnp.asarray(length_CxN))


def _saved(first: int, rows: Sequence[_Row]) -> dict[str, Any]:
  """The next chunk's number, and where every row is."""
  return {
    'first': first,
    'rows': [dataclasses.asdict(row.state) for row in rows],
  }
