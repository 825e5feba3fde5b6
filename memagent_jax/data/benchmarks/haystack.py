"""Filler text cut to any size, and evidence placed between its sentences.

Filler.cut(size) -> one long string
hide(filler text, statements at depths) -> document, spans of the statements
"""

from collections.abc import Iterable, Sequence
import dataclasses
import os
from pathlib import Path
import random
import re

from memagent_jax.data import text as text_lib
from memagent_jax.io import assets

# The filler of RULER's `noise` haystack (arXiv 2404.06654, appendix B).
NOISE = (
  'The grass is green. The sky is blue. The sun is yellow. Here we go. '
  'There and back again.'
)
_SENTENCE_END = re.compile(r'[.!?]["\')\u201d\u2019]?(?= )')
# Distance from a depth to search for a sentence end, failing which a word end.
_REACH_CHARS = 2_000


@dataclasses.dataclass(frozen=True)
class Filler:
  """Text of single-spaced words that is repeated as often as needed."""

  text: str
  # Name for the `source` of examples.
  name: str

  def __post_init__(self) -> None:
    if not self.text.strip():
      raise ValueError(f'haystack {self.name} is empty.')

  def cut(self, size: int, rng: random.Random) -> tuple[str, str]:
    """About `size` characters of whole words, and the name of their source.

    They begin after a sentence end that `rng` picks; where the text ends, they
    continue from its beginning.
    """
    start = self._sentence_start(rng.randrange(len(self.text)))
    # One more character shows whether a word ends at the cut.
    pieces = [self.text[start : start + size + 1]]
    length = len(pieces[0])
    while length <= size:
      pieces.append(self.text[: size - length])
      length += 1 + len(pieces[-1])
    times = size // (len(self.text) + 1) + 1
    source = self.name if times == 1 else f'{self.name}, {times} times'
    return cut_at_word(' '.join(p for p in pieces if p), size), source

  def _sentence_start(self, at: int) -> int:
    end = _SENTENCE_END.search(self.text, at, at + _REACH_CHARS)
    return 0 if end is None else end.end() + 1


def noise() -> Filler:
  """RULER's repeated sentences."""
  return Filler(NOISE, 'noise')


def essays(*paths: str | os.PathLike) -> Filler:
  """The text of files, and of .txt, .md and .txt.gz files in folders, by name.

  A path may be the name of a shipped text, see `io.assets`.

  Raises:
    ValueError: a path does not exist, or a folder has no such files.
  """
  files: list[Path] = []
  sources = [assets.text(path) for path in paths]
  for path in sources:
    if path.is_dir():
      endings = ('.txt', '.md', '.txt.gz')
      inside = sorted(p for p in path.iterdir() if p.name.endswith(endings))
      if not inside:
        raise ValueError(
          f'haystack {path}: no {", ".join(endings)} file in it.'
        )
      files += inside
    else:
      files.append(path)
  texts = [' '.join(''.join(text_lib.read_pieces(f)).split()) for f in files]
  name = ', '.join(path.name for path in sources)
  return Filler(' '.join(t for t in texts if t), name)


def cut_at_word(text: str, size: int) -> str:
  """The longest prefix of at most `size` characters that ends with a word."""
  if len(text) <= size:
    return text
  end = text.rfind(' ', 0, size + 1)
  return text[: max(end, 0)]


def join(
  pieces: Iterable[tuple[str, bool]], separator: str = ' '
) -> tuple[str, tuple[tuple[int, int], ...]]:
  """The pieces as one text, and the spans of those marked as gold."""
  texts, spans, at = [], [], 0
  for text, is_gold in pieces:
    if not text:
      continue
    if is_gold:
      spans.append((at, at + len(text)))
    texts.append(text)
    at += len(text) + len(separator)
  return separator.join(texts), tuple(spans)


def hide(
  filler: str, statements: Sequence[tuple[float, str, bool]]
) -> tuple[str, tuple[tuple[int, int], ...]]:
  """The filler with statements between its sentences, and the gold ones' spans.

  Args:
    filler: single-spaced text.
    statements: (depth in 0 ... 1, text, is gold) of each; any that land at the
      same place stay in order of depth.
  """
  pieces, at = [], 0
  for depth, text, is_gold in sorted(statements, key=lambda s: s[0]):
    place = max(at, _boundary(filler, round(depth * len(filler))))
    pieces += [(filler[at:place].strip(), False), (text, is_gold)]
    at = place
  pieces.append((filler[at:].strip(), False))
  return join(pieces)


def _boundary(text: str, at: int) -> int:
  """The sentence boundary nearest to `at`; both ends of the text count, too."""
  low = max(0, at - _REACH_CHARS)
  ends = [m.end() for m in _SENTENCE_END.finditer(text, low, at + _REACH_CHARS)]
  if low == 0:
    ends.append(0)
  if at + _REACH_CHARS >= len(text):
    ends.append(len(text))
  if not ends:
    ends = [text.rfind(' ', 0, at)]
  return min(ends, key=lambda end: abs(end - at))
