"""`Reader`: one document of any length, read with one model for some questions.

    feed(text) -> ChunkStream -> Session.read -> memory
                                    answer() <--'

The reader holds a session, whose rows are the questions, and the tail of the text
that is not yet a whole chunk: a few KB, saved by `state()`. Several questions
share one pass over the document.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import session as session_lib
from memagent_jax.agent.config import ReadingConfig, make_agent
from memagent_jax.agent.engine import Engine, Lockstep
from memagent_jax.agent.session import Start
from memagent_jax.agent.turns import Turn, turn_record, without_control_id
from memagent_jax.data.chunks import ChunkCutter, ChunkStream
from memagent_jax.models.model import Model
from memagent_jax.structs import FINISH_REASONS, Tokens, Turns

# Question rows are padded to a multiple of this, so that programs are reused.
_QUESTION_STEP = 32
_STATE_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer to one question."""

  question: str
  answer: str
  answer_ids: list[int]
  finish_reason: str
  seconds: float


class Reader:
  """Reads text as it comes and answers from a bounded memory at any time.

  Attributes:
    config: the reading's settings; do not change them.
    on_turn: called with every memory turn; may be replaced at any time.
  """

  def __init__(
    self,
    model: Model,
    questions: str | Sequence[str],
    config: ReadingConfig | None = None,
    on_turn: Callable[[Turn], None] | None = None,
    engine: Engine | None = None,
  ):
    """Makes a reader with empty memories.

    Args:
      model: the model that reads and answers.
      questions: one or several; all are answered from one pass.
      config: caps, sampling, wording and memory rule; default `ReadingConfig()`.
      on_turn: called after every memory turn, in document order.
      engine: engine that takes the turns; default `Lockstep`, on the devices
        of this process.

    Raises:
      ValueError: no question, a blank one, one over its cap, or caps that do
        not fit the model's window.
    """
    self._model = model
    self.config = ReadingConfig() if config is None else config
    self.on_turn = on_turn
    self._questions = (
      [questions] if isinstance(questions, str) else list(questions)
    )
    question_ids = self._encode_questions()
    width = max(map(len, question_ids))
    width = min(
      -(-width // _QUESTION_STEP) * _QUESTION_STEP, self.config.question_tokens
    )
    self._agent = make_agent(model, self.config, question_tokens=width)
    # One slot per call: one program shape, and each turn is shown as it ends.
    engine = Lockstep(window_chunks=1) if engine is None else engine
    self._session = engine.open(
      self._agent,
      model.params,
      Start(
        tokens_lib.pad_rows(question_ids, width),
        self._questions,
        seed=self.config.seed,
      ),
    )
    self._stream = ChunkStream(
      model.tokenizer, self.config.chunk_tokens, self.config.chunk_cut
    )
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
    """The questions, in the order that every other list follows."""
    return list(self._questions)

  @property
  def memories(self) -> list[str]:
    """The current memory of every question."""
    return [self._text(ids) for ids in tokens_lib.lists(self._session.memory)]

  @property
  def chunks_read(self) -> int:
    """The number of chunks that the memories have seen."""
    return self._session.turns_read

  @property
  def tokens_read(self) -> int:
    """The number of document tokens that the memories have seen."""
    return self._tokens_read

  def count_chunks(self, text: str) -> int:
    """The number of chunks in a document of this text; reads nothing."""
    tokenizer = self._model.tokenizer
    cutter = ChunkCutter(
      tokenizer, self.config.chunk_tokens, self.config.chunk_cut
    )
    return len(cutter.split(tokenizer.encode(text)))

  def feed(self, text: str) -> list[Turn]:
    """Reads more text; returns the turns of the chunks that it completed."""
    self._stream.feed(text)
    return self._read_whole_chunks()

  def feed_ids(self, ids: Sequence[int]) -> list[Turn]:
    """Like `feed`, for text already tokenised with the model's tokenizer.

    Raises:
      ValueError: the ids of text fed earlier are not settled yet.
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
    """Answers as if the document ended here; the reading itself is unchanged.

    The unread tail is read into a copy of the memories, so later chunks have
    the same boundaries as without the interruption.
    """
    start = time.perf_counter()
    rest = self._stream.rest()
    response = self._session.answer(self._slots(rest) if rest else None)
    seconds = time.perf_counter() - start
    return [
      Answer(
        question=question,
        answer=self._text(ids),
        answer_ids=ids,
        finish_reason=FINISH_REASONS[int(finish)],
        seconds=seconds,
      )
      for question, ids, finish in zip(
        self._questions,
        tokens_lib.lists(without_control_id(response)),
        response.finish_N,
        strict=True,
      )
    ]

  def _read(self, chunk: list[int]) -> list[Turn]:
    """Reads the stream's next chunk into the memories.

    The state changes only when the turn is over: an interrupt loses no text.
    """
    start = time.perf_counter()
    index = self.chunks_read
    turns = self._session.read(self._slots([chunk]))
    self._stream.take(chunk)
    self._tokens_read += len(chunk)
    records = self._records(turns, index, chunk, time.perf_counter() - start)
    if self.on_turn is not None:
      for record in records:
        self.on_turn(record)
    return records

  def _records(
    self, turns: Turns, index: int, chunk: Sequence[int], seconds: float
  ) -> list[Turn]:
    """The turn of every question in one slot."""
    slot = jax.tree.map(lambda x: x[0], turns)
    return [
      turn_record(
        self._model.tokenizer,
        self._agent,
        slot,
        n,
        chunk_index=index,
        chunk=chunk,
        question_index=n,
        seconds=seconds,
      )
      for n in range(len(self._questions))
    ]

  def _slots(self, chunks: Sequence[list[int]]) -> Tokens:
    """The same chunk slots for every question."""
    return session_lib.slots(
      [chunks] * len(self._questions), len(chunks), self.config.chunk_tokens
    )

  def _text(self, ids: Sequence[int]) -> str:
    return self._model.tokenizer.decode(ids)

  def state(self) -> dict[str, Any]:
    """Everything needed to resume later, as JSON-able values; a few KB."""
    return {
      'version': _STATE_VERSION,
      'tokenizer': self._model.tokenizer.fingerprint,
      'questions': self._questions,
      'config': self.config.to_json(),
      'session': self._session.state(),
      'tokens_read': self._tokens_read,
      'pending_ids': self._stream.pending,
      'pending_text': self._stream.tail,
    }

  @classmethod
  def from_state(
    cls,
    model: Model,
    state: Mapping[str, Any],
    on_turn: Callable[[Turn], None] | None = None,
    engine: Engine | None = None,
  ) -> 'Reader':
    """A reader that resumes exactly where `state` was taken.

    Raises:
      ValueError: the state has another version or tokenizer, or is damaged.
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
        ReadingConfig.from_json(state['config']),
        on_turn,
        engine,
      )
      reader._session.restore(state['session'])
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
