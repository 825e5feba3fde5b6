"""Settings of methods that read chunk by chunk, and the reading of a document.

text -> DocumentReading.next_chunks -> turns
  -> DocumentReading.add: health, FLOPs, the changes of the memory -> Result
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from memagent_jax.agent.config import ReadingConfig
from memagent_jax.agent.memory_health import MemoryHealth
from memagent_jax.agent.turns import Turn
from memagent_jax.data.chunks import ChunkStream
from memagent_jax.data.examples import Example
from memagent_jax.evals.methods.method import Result, sampling_name
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.tokenizer import Tokenizer

# Characters fed to a stream at a time.
_FEED_CHARS = 65_536
# Changes of a memory that a trace keeps at each end.
_TRACED_CHANGES = 40


@dataclasses.dataclass(frozen=True)
class ChunkMethod:
  """Settings of a method that keeps a memory, and what follows from them."""

  reading: ReadingConfig = dataclasses.field(default_factory=ReadingConfig)

  @property
  def sampling(self) -> str:
    """Greedy, or temperature and top-p."""
    return sampling_name(self.reading.temperature, self.reading.top_p)

  @property
  def caps(self) -> Mapping[str, int]:
    """Caps of the chunk and of the memory, in tokens."""
    return {
      'chunk_tokens': self.reading.chunk_tokens,
      'memory_tokens': self.reading.memory_tokens,
    }

  def batch_size(self, config: ModelConfig, limit: int, tokens: int) -> int:
    """`limit`: the length of a document costs no memory."""
    del config, tokens
    return limit

  def most_tokens(self) -> int | None:
    """None: documents of any length are read."""
    return None

  def flops(self, config: ModelConfig, tokens: int) -> float:
    """Estimated FLOPs of a document of `tokens` tokens.

    Assumes memories at half of their cap, and short questions.
    """
    reading = self.reading
    turns = -(-tokens // reading.chunk_tokens)
    memory = reading.memory_tokens // 2
    return turns * reading.rule.turn_flops(
      config, memory + reading.chunk_tokens, memory
    )


@dataclasses.dataclass
class ReadingState:
  """How far a document's reading is, and what happened to its memory."""

  memory_ids: list[int]
  # State of the document's stream; None: at its start.
  stream: dict[str, Any] | None = None
  health: MemoryHealth = dataclasses.field(default_factory=MemoryHealth)
  # Document tokens read so far, and the FLOPs spent on them.
  tokens: int = 0
  flops: float = 0.0
  # The first and the last turns that changed the memory.
  first_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  last_changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'ReadingState':
    """Restores what `dataclasses.asdict` gave."""
    return cls(**{**fields, 'health': MemoryHealth(**fields['health'])})


class DocumentReading:
  """The reading of one document, in progress."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    reading: ReadingConfig,
    example: Example,
    state: ReadingState,
  ):
    """Starts or resumes the reading of an example's document.

    `state` comes from a reading of the same document; a new one has the first
    memory. The example's answers are the evidence looked for in memories.
    """
    self._example, self._rule, self._state = example, reading.rule, state
    stream = state.stream or {
      'fed_chars': 0,
      'pending': [],
      'tail': '',
      'ended': False,
    }
    self._fed_chars, self._ended = stream['fed_chars'], stream['ended']
    self._stream = ChunkStream(
      tokenizer,
      reading.chunk_tokens,
      reading.chunk_cut,
      pending=stream['pending'],
      tail=stream['tail'],
    )
    if self._ended:
      self._stream.end()

  @property
  def state(self) -> ReadingState:
    """The current state, from which another reading can resume."""
    stream = {
      'fed_chars': self._fed_chars,
      'pending': self._stream.pending,
      'tail': self._stream.tail,
      'ended': self._ended,
    }
    return dataclasses.replace(self._state, stream=stream)

  @property
  def memory_ids(self) -> list[int]:
    """The memory after the last added turn."""
    return self._state.memory_ids

  @property
  def turn_count(self) -> int:
    """The number of added turns."""
    return self._state.health.turn_count

  def chars_read(self) -> float:
    """Estimated characters of the document read so far."""
    fed = min(self._fed_chars, len(self._example.document))
    tokens = self._state.tokens
    return fed * tokens / max(tokens + len(self._stream.pending), 1)

  def next_chunks(self, count: int) -> list[list[int]]:
    """The next `count` chunks, or fewer at the document's end."""
    chunks: list[list[int]] = []
    while len(chunks) < count:
      if chunk := self._stream.chunk():
        self._stream.take(chunk)
        chunks.append(chunk)
      elif self._fed_chars < len(self._example.document):
        end = self._fed_chars + _FEED_CHARS
        self._stream.feed(self._example.document[self._fed_chars : end])
        self._fed_chars = end
      elif self._ended:
        break
      else:
        self._stream.end()
        self._ended = True
    return chunks

  def add(
    self,
    *,
    memory_ids: Sequence[int],
    chunk_tokens: int,
    finish: str,
    outcome: str,
    flops: float,
    record: Callable[[], Turn],
  ) -> None:
    """Adds the turn of the next chunk.

    Args:
      memory_ids: memory after the turn.
      chunk_tokens: length of its chunk.
      finish: finish reason of its response.
      outcome: outcome by the memory rule.
      flops: FLOPs of the turn.
      record: gives the turn as text; called only if the memory changed.
    """
    state, memory_ids = self._state, list(memory_ids)
    state.tokens += chunk_tokens
    state.flops += flops
    changed = memory_ids != state.memory_ids
    has_evidence = state.health.kept
    if changed:
      turn = record()
      has_evidence = any(a in turn.memory for a in self._example.answers)
      change = dataclasses.asdict(turn)
      if len(state.first_changes) < _TRACED_CHANGES:
        state.first_changes.append(change)
      else:
        state.last_changes = [*state.last_changes, change][-_TRACED_CHANGES:]
    state.health.add(
      length=len(memory_ids),
      finish=finish,
      outcome=outcome,
      changed=changed,
      has_evidence=has_evidence,
    )
    state.memory_ids = memory_ids

  def result(
    self, answer: str, finish_reason: str, answer_flops: float, error: str = ''
  ) -> Result:
    """The document's result, including what the answer turn gave.

    Without an answer, `error` says why, and the finish reason is `error`.
    """
    state = self._state
    return Result(
      answer=answer,
      finish_reason=finish_reason,
      own_tokens=state.tokens,
      read_tokens=state.tokens,
      turns=state.health.turns,
      flops=state.flops + answer_flops,
      health=state.health.summary(self._rule.outcomes),
      trace=[*state.first_changes, *state.last_changes],
      error=error,
    )
