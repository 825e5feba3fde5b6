"""What methods that read chunk by chunk share: settings, and a document's chunks.

text of a document -> DocumentStream -> chunk after chunk; a state of a few KB
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from memagent_jax.agent.prompts import DEFAULT_TEMPLATE, Template
from memagent_jax.agent.rollout import ReadingConfig
from memagent_jax.data.chunks import ChunkStream
from memagent_jax.evals.methods.method import sampling_name
from memagent_jax.models import flops as flops_lib
from memagent_jax.models.configs import ModelConfig

# Text that a stream is given at a time.
_FEED_CHARS = 65_536


@dataclasses.dataclass(frozen=True)
class ChunkMethod:
  """Settings of a method that keeps a memory, and what follows from them."""

  template: Template = DEFAULT_TEMPLATE
  reading: ReadingConfig = dataclasses.field(default_factory=ReadingConfig)

  @property
  def sampling(self) -> str:
    """Greedy, or temperature and top-p."""
    return sampling_name(self.reading.temperature, self.reading.top_p)

  @property
  def caps(self) -> Mapping[str, int]:
    """Of a chunk and of the memory."""
    return {
      'chunk_tokens': self.reading.chunk_tokens,
      'memory_tokens': self.reading.memory_tokens,
    }

  def batch_size(self, config: ModelConfig, limit: int, tokens: int) -> int:
    """All of them: the length of a document costs no memory."""
    del config, tokens
    return limit

  def most_tokens(self) -> int | None:
    """Any document is read."""
    return None

  def flops(self, config: ModelConfig, tokens: int) -> float:
    """About what a document of so many tokens costs."""
    turns = -(-tokens // self.reading.chunk_tokens)
    # Memories half as long as they may be, and a short question.
    memory = self.reading.memory_tokens // 2
    return turns * flops_lib.turn_flops(
      config, memory + self.reading.chunk_tokens, memory
    )


class DocumentStream:
  """The chunks of a text, one after another, from any place on."""

  def __init__(
    self,
    tokenizer,
    reading: ReadingConfig,
    text: str,
    state: Mapping[str, Any] | None = None,
  ):
    """Makes a stream at the text's start, or where `state` was taken.

    Args:
      tokenizer: a `models.tokenizer.Tokenizer`.
      reading: its chunk settings are used.
      text: the whole document.
      state: of a stream of the same text.
    """
    state = state or {'fed_chars': 0, 'pending': [], 'tail': '', 'ended': False}
    self._text = text
    self._fed_chars, self._ended = state['fed_chars'], state['ended']
    self._stream = ChunkStream(
      tokenizer,
      reading.chunk_tokens,
      reading.chunk_cut,
      pending=state['pending'],
      tail=state['tail'],
    )
    if self._ended:
      self._stream.end()

  def next(self) -> list[int]:
    """The next chunk's ids; [] at the end of the document."""
    while not (chunk := self._stream.chunk()):
      if self._fed_chars < len(self._text):
        end = self._fed_chars + _FEED_CHARS
        self._stream.feed(self._text[self._fed_chars : end])
        self._fed_chars = end
      elif self._ended:
        return []
      else:
        self._stream.end()
        self._ended = True
    self._stream.take(chunk)
    return chunk

  def chars_read(self, tokens: int) -> float:
    """About how much of the text the chunks of so many tokens so far are."""
    fed = min(self._fed_chars, len(self._text))
    return fed * tokens / max(tokens + len(self._stream.pending), 1)

  def state(self) -> dict[str, Any]:
    """Where it is, JSON-able."""
    return {
      'fed_chars': self._fed_chars,
      'pending': self._stream.pending,
      'tail': self._stream.tail,
      'ended': self._ended,
    }
