"""Text to chunks of token ids: streaming encoding, and where chunks end.

    text pieces -> StreamEncoder -> ids -> ChunkCutter -> chunks
    `----------------- ChunkStream does all of it ------------'

The chunks, joined, are exactly the ids of the whole text encoded at once.
"""

from collections.abc import Sequence
import functools

from memagent_jax.models.tokenizer import Tokenizer

CUTS = ('sentence', 'token')
_CLOSERS = '"\')]}\u201d\u2019\u00bb*_'
_ENDERS = ('.', '!', '?', '\u2026', '\u3002', '\uff01', '\uff1f')
# Characters on each side of a candidate cut, encoded to prove it safe.
_PROBE_CHARS = 64
# Characters that `feed` holds back: the next piece may continue the last word.
_HOLD_CHARS = 256


class StreamEncoder:
  """Encodes a text that arrives in pieces, to the same ids as the whole text.

  Text is cut only between words or lines, and only where encoding both sides
  separately gives the same ids as encoding them together. A tokenizer without
  such places (one that adds a prefix space) gets the whole text at the end.
  """

  def __init__(self, tokenizer: Tokenizer, tail: str = ''):
    """Makes an encoder that continues a text whose unencoded end is `tail`."""
    self._tokenizer = tokenizer
    # Text fed but not yet encoded, in pieces.
    self._parts = [tail]
    self._characters = len(tail)
    # After a search without a cut, the next one waits until the text has
    # doubled, so that all searches together take linear time.
    self._search_at = 0

  @property
  def tail(self) -> str:
    """Text fed but not yet encoded."""
    return ''.join(self._parts)

  @property
  def tail_characters(self) -> int:
    """Length of the tail in characters."""
    return self._characters

  def feed(self, text: str) -> list[int]:
    """Takes the next piece of text; returns the ids that it settles, or []."""
    self._parts.append(text)
    self._characters += len(text)
    if self._characters < self._search_at:
      return []
    tail = self.tail
    cut = self._safe_cut(tail, len(tail) - _HOLD_CHARS)
    if cut is None:
      self._search_at = 2 * len(tail)
      return []
    self._keep(tail[cut:])
    return self._tokenizer.encode(tail[:cut])

  def peek(self) -> list[int]:
    """Ids of the text not yet encoded, as if the document ended here."""
    return self._tokenizer.encode(self.tail) if self._characters else []

  def finish(self) -> list[int]:
    """Ids of the remaining text; the encoder is empty afterwards."""
    ids = self.peek()
    self._keep('')
    return ids

  def _keep(self, tail: str) -> None:
    self._parts, self._characters, self._search_at = [tail], len(tail), 0

  def _safe_cut(self, text: str, limit: int) -> int | None:
    """The last safe cut at or before `limit`; None if there is none."""
    tries = 0
    for cut in range(limit, 0, -1):
      if not self._may_cut(text, cut):
        continue
      left = text[max(0, cut - _PROBE_CHARS) : cut]
      right = text[cut : cut + _PROBE_CHARS]
      encode = self._tokenizer.encode
      if encode(left) + encode(right) == encode(left + right):
        return cut
      tries += 1
      if tries == 8:
        return None
    return None

  @staticmethod
  def _may_cut(text: str, cut: int) -> bool:
    """True between a letter and " letter", or one line break and a letter."""
    if text[cut] == ' ':
      return text[cut - 1].isalpha() and text[cut + 1].isalpha()
    # For scripts without spaces.
    return (
      cut > 1
      and text[cut - 1] == '\n'
      and not text[cut - 2].isspace()
      and text[cut].isalpha()
    )


class ChunkCutter:
  """Decides where chunks end.

  `sentence`: at the last sentence end within the budget, else at the last word
  end, else at the budget. `token`: at the budget, as in the paper.
  """

  def __init__(
    self, tokenizer: Tokenizer, chunk_tokens: int, cut: str = 'sentence'
  ):
    """Makes a cutter.

    Args:
      tokenizer: the tokenizer of the model that reads.
      chunk_tokens: budget of a chunk in tokens.
      cut: one of CUTS.

    Raises:
      ValueError: an unknown cut or a budget below one token.
    """
    if cut not in CUTS:
      raise ValueError(
        f'chunk_cut is {cut!r}; expected one of {", ".join(CUTS)}.'
      )
    if chunk_tokens < 1:
      raise ValueError(f'chunk_tokens is {chunk_tokens}; expected at least 1.')
    self._chunk_tokens, self._cut = chunk_tokens, cut
    # A token's text does not depend on its neighbours, so it is looked up once.
    self._text = functools.lru_cache(maxsize=65536)(tokenizer.token_text)

  def length(self, ids: Sequence[int]) -> int:
    """Tokens in the first chunk of `ids`.

    Args:
      ids: the rest of a text, or at least one token more than the budget.
    """
    budget = min(self._chunk_tokens, len(ids))
    if self._cut == 'token' or budget == len(ids):
      return budget
    word_end = 0
    for end in range(budget, 0, -1):
      if not self._starts_word(ids[end]) and not self._is_break(ids[end - 1]):
        continue
      if self._ends_sentence(ids, end):
        return end
      word_end = word_end or end
    return word_end or budget

  def split(self, ids: Sequence[int]) -> list[list[int]]:
    """All chunks of a document; joined, they are `ids`."""
    chunks = []
    start = 0
    while start < len(ids):
      # One token beyond the budget shows whether a word ends there.
      window = ids[start : start + self._chunk_tokens + 1]
      size = self.length(window)
      chunks.append(list(window[:size]))
      start += size
    return chunks

  def _starts_word(self, token_id: int) -> bool:
    return self._text(token_id)[:1].isspace()

  def _is_break(self, token_id: int) -> bool:
    return self._text(token_id)[-1:].isspace()

  def _ends_sentence(self, ids: Sequence[int], end: int) -> bool:
    """Whether ids[:end] ends with a sentence mark or a blank line."""
    text = ''
    for token_id in reversed(ids[max(0, end - 8) : end]):
      text = self._text(token_id) + text
      bare = text.rstrip().rstrip(_CLOSERS)
      if text.endswith('\n\n'):
        return True
      if bare:
        return bare.endswith(_ENDERS)
    return False


class ChunkStream:
  """The chunks of a text that arrives in pieces, one after another."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    chunk_tokens: int,
    cut: str = 'sentence',
    *,
    pending: Sequence[int] = (),
    tail: str = '',
  ):
    """Makes a stream; `pending` and `tail` are those of a stream it continues.

    The other arguments and the errors are those of `ChunkCutter`.
    """
    self._cutter = ChunkCutter(tokenizer, chunk_tokens, cut)
    self._encoder = StreamEncoder(tokenizer, tail)
    self._chunk_tokens = chunk_tokens
    self._pending = [int(i) for i in pending]
    self._ended = False

  @property
  def pending(self) -> list[int]:
    """Ids that no chunk has taken yet."""
    return list(self._pending)

  @property
  def tail(self) -> str:
    """Text after `pending` whose ids are not settled yet."""
    return self._encoder.tail

  def feed(self, text: str) -> None:
    """Takes the next piece of the text."""
    self._ended = False
    self._pending += self._encoder.feed(text)

  def feed_ids(self, ids: Sequence[int]) -> None:
    """Takes the next piece as ids of the same tokenizer.

    Raises:
      ValueError: ids of text that was fed earlier are not settled yet.
    """
    if self._encoder.tail_characters:
      raise ValueError(
        f'feed_ids after feed: {self._encoder.tail_characters} characters '
        'wait for what follows them. Feed a document as text or as ids.'
      )
    self._ended = False
    self._pending += [int(i) for i in ids]

  def end(self) -> None:
    """Ends the text for now, so that the rest of it becomes chunks."""
    self._pending += self._encoder.finish()
    self._ended = True

  def chunk(self) -> list[int]:
    """The next chunk, or [] if none is whole yet; it stays until `take`."""
    if len(self._pending) <= self._chunk_tokens and not self._ended:
      return []
    window = self._pending[: self._chunk_tokens + 1]
    return window[: self._cutter.length(window)] if window else []

  def take(self, chunk: Sequence[int]) -> None:
    """Removes the chunk that `chunk` just returned."""
    self._pending = self._pending[len(chunk) :]

  def rest(self) -> list[list[int]]:
    """The remaining chunks if the text ended here; the stream is unchanged."""
    return self._cutter.split(self._pending + self._encoder.peek())
