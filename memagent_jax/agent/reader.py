"""`Reader`: one document of any length, read with one model for some questions.

    feed(text) -> ChunkStream -> rollout.read -> memory
                                    answer() <--'

The reader holds the memories, how many chunks it has read and the tail that is
not yet a whole chunk: a few KB, saved by `state()`. Questions are the rows of
one batch, so several of them cost one pass over the document.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts, rollout
from memagent_jax.agent.prompts import Template
from memagent_jax.agent.rollout import ReadingConfig
from memagent_jax.data.chunks import ChunkCutter, ChunkStream
from memagent_jax.sampling import decode
from memagent_jax.structs import EOS, FINISH_REASONS, Response, Tokens

# Question rows are padded to a multiple of this, so that programs recur.
_QUESTION_STEP = 32
_STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Turn:
  """One memory turn of one question, as text and ids."""

  question_index: int
  chunk_index: int
  chunk: str
  chunk_tokens: int
  memory: str
  memory_ids: list[int]
  response_tokens: int
  # Tokens of a `<think>` span that were kept out of the memory.
  thought_tokens: int
  # `eos` or `length`: at the cap the memory was cut.
  finish_reason: str
  # Wall time of the batch of turns this one was part of.
  seconds: float


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer to one question."""

  question: str
  answer: str
  answer_ids: list[int]
  finish_reason: str
  seconds: float


class Reader:
  """Reads text as it comes and answers from a bounded memory at any moment.

  Attributes:
    config: the reading's settings; do not change them.
    on_turn: called with every memory turn; may be replaced at any time.
  """

  def __init__(
    self,
    model,
    questions: str | Sequence[str],
    config: ReadingConfig | None = None,
    template: Template | None = None,
    on_turn: Callable[[Turn], None] | None = None,
  ):
    """Makes a reader with empty memories.

    Args:
      model: a `models.Model`.
      questions: one or several; all are answered from one pass.
      config: caps and sampling; default `ReadingConfig()`.
      template: wording; default `prompts.DEFAULT_TEMPLATE`.
      on_turn: called after every memory turn, in document order.

    Raises:
      ValueError: no question, a blank one, one over its cap, or caps that the
        model's window does not hold.
    """
    self._model = model
    self.config = ReadingConfig() if config is None else config
    self._template = prompts.DEFAULT_TEMPLATE if template is None else template
    self.on_turn = on_turn
    self._questions = (
      [questions] if isinstance(questions, str) else list(questions)
    )
    question_ids = self._encode_questions()
    width = max(map(len, question_ids))
    width = min(
      -(-width // _QUESTION_STEP) * _QUESTION_STEP, self.config.question_tokens
    )
    self._agent = rollout.make_agent(
      model, self._template, self.config, question_tokens=width
    )
    self._question = tokens_lib.pad_rows(question_ids, width)
    self._memory = rollout.first_memory(self._agent, len(self._questions))
    examples = [decode.example_number(q) for q in self._questions]
    self._key_N = decode.row_keys(
      self.config.seed,
      jnp.asarray(np.asarray(examples, np.uint32)),
      jnp.zeros(len(examples), jnp.int32),
    )
    self._stream = ChunkStream(
      model.tokenizer, self.config.chunk_tokens, self.config.chunk_cut
    )
    self._chunks_read = 0
    self._tokens_read = 0

  def _encode_questions(self) -> list[list[int]]:
    if not self._questions:
      raise ValueError('no question; expected at least one.')
    encoded = []
    for question in self._questions:
      ids = self._model.tokenizer.encode(question)
      if not question.strip() or not ids:
        raise ValueError(f'question {question!r} is blank.')
      cap = self.config.question_tokens
      if len(ids) > cap:
        raise ValueError(
          f'question {question[:60]!r}... has {len(ids)} tokens; the cap, '
          f'question_tokens, is {cap}.'
        )
      encoded.append(ids)
    return encoded

  @property
  def questions(self) -> list[str]:
    """The questions, in the order of every other list."""
    return list(self._questions)

  @property
  def memories(self) -> list[str]:
    """The current memory of every question."""
    return [self._text(row) for row in _rows(self._memory)]

  @property
  def chunks_read(self) -> int:
    """Chunks that the memories have seen."""
    return self._chunks_read

  @property
  def tokens_read(self) -> int:
    """Document tokens that the memories have seen."""
    return self._tokens_read

  def count_chunks(self, text: str) -> int:
    """Chunks that a document of this text makes; reads nothing."""
    tokenizer = self._model.tokenizer
    cutter = ChunkCutter(
      tokenizer, self.config.chunk_tokens, self.config.chunk_cut
    )
    return len(cutter.split(tokenizer.encode(text)))

  def feed(self, text: str) -> list[Turn]:
    """Reads on; returns the turns of the chunks that became complete."""
    self._stream.feed(text)
    return self._read_whole_chunks()

  def feed_ids(self, ids: Sequence[int]) -> list[Turn]:
    """As `feed`, of text that is tokenised already with the model's tokenizer.

    Raises:
      ValueError: text was fed before whose ids are not settled yet.
    """
    self._stream.feed_ids(ids)
    return self._read_whole_chunks()

  def _read_whole_chunks(self) -> list[Turn]:
    turns = []
    while chunk := self._stream.chunk():
      turns += self._read(chunk)
    return turns

  def finish(self) -> list[Turn]:
    """Reads the tail as the document's last chunk; returns its turns."""
    self._stream.end()
    return self._read_whole_chunks()

  def answer(self) -> list[Answer]:
    """Answers as if the document ended here; the reading goes on unchanged.

    The unread tail is read into a copy of the memories, so chunk boundaries of
    what follows are those of a document that nobody interrupted.
    """
    start = time.perf_counter()
    memory = self._memory
    for i, chunk in enumerate(self._stream.rest()):
      memory, _ = self._step(memory, chunk, self._chunks_read + i)
    response = rollout.answer(
      self._agent, self._model.params, self._question, memory, self._key_N
    )
    rows = _response_rows(response)
    seconds = time.perf_counter() - start
    return [
      Answer(
        question=question,
        answer=self._text(ids),
        answer_ids=ids,
        finish_reason=reason,
        seconds=seconds,
      )
      for question, (ids, reason) in zip(self._questions, rows, strict=True)
    ]

  def _read(self, chunk: list[int]) -> list[Turn]:
    """Reads the stream's next chunk into the memories.

    Nothing changes before the turn is over: an interrupt loses no text.
    """
    start = time.perf_counter()
    memory, turns = self._step(self._memory, chunk, self._chunks_read)
    memories = _rows(memory)
    response = jax.tree.map(lambda x: np.asarray(x[0]), turns.response)
    seconds = time.perf_counter() - start
    text = self._model.tokenizer.decode(chunk)
    records = [
      Turn(
        question_index=n,
        chunk_index=self._chunks_read,
        chunk=text,
        chunk_tokens=len(chunk),
        memory=self._text(ids),
        memory_ids=ids,
        response_tokens=int(response.length_N[n]),
        thought_tokens=int(turns.thought_CxN[0, n]),
        finish_reason=FINISH_REASONS[int(response.finish_N[n])],
        seconds=seconds,
      )
      for n, ids in enumerate(memories)
    ]
    self._memory = memory
    self._stream.take(chunk)
    self._chunks_read += 1
    self._tokens_read += len(chunk)
    if self.on_turn is not None:
      for record in records:
        self.on_turn(record)
    return records

  def _step(self, memory: Tokens, chunk: list[int], index: int):
    """One chunk slot for every question: the new memories and the turns."""
    rows = len(self._questions)
    tokens = tokens_lib.pad_rows([chunk] * rows, self.config.chunk_tokens)
    return rollout.read(
      self._agent,
      self._model.params,
      self._question,
      memory,
      jax.tree.map(lambda x: x[None], tokens),
      self._key_N,
      jnp.full((rows,), index, jnp.int32),
    )

  def _text(self, ids: Sequence[int]) -> str:
    return self._model.tokenizer.decode(ids)

  def state(self) -> dict[str, Any]:
    """All it takes to go on later, as JSON-able values; a few KB."""
    return {
      'version': _STATE_VERSION,
      'tokenizer': self._model.tokenizer.fingerprint,
      'questions': self._questions,
      'config': dataclasses.asdict(self.config),
      'template': dataclasses.asdict(self._template),
      'memory_ids': _rows(self._memory),
      'chunks_read': self._chunks_read,
      'tokens_read': self._tokens_read,
      'pending_ids': self._stream.pending,
      'pending_text': self._stream.tail,
    }

  @classmethod
  def from_state(
    cls,
    model,
    state: Mapping[str, Any],
    on_turn: Callable[[Turn], None] | None = None,
  ) -> 'Reader':
    """A reader that goes on exactly where `state` was taken.

    Raises:
      ValueError: the state is of another version or tokenizer, or damaged.
    """
    if not isinstance(state, Mapping) or state.get('version') != _STATE_VERSION:
      got = state.get('version') if isinstance(state, Mapping) else state
      raise ValueError(
        f'reader state: version {got!r}; expected {_STATE_VERSION}.'
      )
    if state.get('tokenizer') != model.tokenizer.fingerprint:
      raise ValueError(
        f'reader state was taken with tokenizer {state.get("tokenizer")}; this '
        f'model has {model.tokenizer.fingerprint}. Load the same model.'
      )
    try:
      reader = cls(
        model,
        state['questions'],
        ReadingConfig(**state['config']),
        Template(**state['template']),
        on_turn,
      )
      reader._memory = tokens_lib.pad_rows(
        state['memory_ids'], reader.config.memory_tokens
      )
      reader._chunks_read = int(state['chunks_read'])
      reader._tokens_read = int(state['tokens_read'])
      reader._stream = ChunkStream(
        model.tokenizer,
        reader.config.chunk_tokens,
        reader.config.chunk_cut,
        pending=state['pending_ids'],
        tail=state['pending_text'],
      )
    except (KeyError, TypeError) as e:
      raise ValueError(f'reader state is damaged: {e!r}') from e
    return reader


def _rows(tokens: Tokens) -> list[list[int]]:
  """Rows of real ids on the host."""
  ids_NxW, length_N = np.asarray(tokens.ids_NxW), np.asarray(tokens.length_N)
  return [
    row[:length].tolist() for row, length in zip(ids_NxW, length_N, strict=True)
  ]


def _response_rows(response: Response) -> list[tuple[list[int], str]]:
  """Ids without the ending control id, and the finish reason, of every row."""
  ended_N = response.finish_N == EOS
  ids = _rows(Tokens(response.ids_NxR, response.length_N - ended_N))
  reasons = [FINISH_REASONS[int(i)] for i in response.finish_N]
  return list(zip(ids, reasons, strict=True))
