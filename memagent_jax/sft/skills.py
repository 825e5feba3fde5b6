"""Demonstrations of the two turns, one skill each, for supervised warm-up.

    haystack + needles -> Demonstration(question, memory, chunk, response)
      -> demonstrations.py

`extract` reads a needle from one chunk with an empty memory, `answer` reads a
value from a given memory, `keep` holds a memory over a chunk without the
needle. `read`, for a model without a memory, answers from a text in the
memory's place: it quotes the needle first, since for a tiny model a value taken
straight from the text is a guess among needles.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import random

from memagent_jax.data.benchmarks import haystack, ruler, words
from memagent_jax.data.benchmarks.haystack import Filler
from memagent_jax.data.examples import Demonstration

EXTRACT, ANSWER, KEEP, READ = 'extract', 'answer', 'keep', 'read'
SKILLS = (EXTRACT, ANSWER, KEEP, READ)
_FIRST_CHUNK_SHARE = 0.125


@dataclasses.dataclass(frozen=True)
class SkillConfig:
  """What demonstrations look like."""

  # Shares of demonstrations by skill; they need not sum to one.
  shares: tuple[tuple[str, float], ...] = ((EXTRACT, 0.7), (ANSWER, 0.3))
  # Length of a chunk, or of a text to read, in characters; drawn uniformly.
  min_chunk_chars: int = 80
  max_chunk_chars: int = 900
  # Share of chunks that lack the needle asked for.
  absent_share: float = 0.25
  # Share of distractors whose key shares one word with the key asked for.
  near_miss_share: float = 0.3
  # Share of values that are UUIDs; the others have seven digits.
  uuid_share: float = 0.2
  # Maximum number of needles with other keys in a chunk; drawn uniformly.
  max_distractors: int = 4
  # Maximum number of keys that an extraction or a reading asks for at once; drawn
  # uniformly. Many records in a row teach more than a single one.
  max_keys: int = 1
  # Text of a memory that holds nothing: the template's empty memory.
  nothing: str = 'none'

  def __post_init__(self) -> None:
    object.__setattr__(self, 'shares', tuple(map(tuple, self.shares)))
    unknown = sorted({name for name, _ in self.shares} - set(SKILLS))
    if unknown or not self.shares:
      raise ValueError(
        f'skills {unknown or "none"}; choose from {", ".join(SKILLS)}.'
      )
    if not 0 < self.min_chunk_chars <= self.max_chunk_chars:
      raise ValueError(
        f'chunk characters from {self.min_chunk_chars} to '
        f'{self.max_chunk_chars}; expected 0 < min <= max.'
      )
    if self.max_keys < 1:
      raise ValueError(f'max_keys is {self.max_keys}; expected at least 1.')


def demonstrate(
  config: SkillConfig, fillers: tuple[Filler, ...], rng: random.Random
) -> Demonstration:
  """One random demonstration."""
  names, shares = zip(*config.shares, strict=True)
  (skill,) = rng.choices(names, shares)
  kind = 'uuid' if rng.random() < config.uuid_share else 'number'
  make = functools.partial(words.draw, kind)
  absent = rng.random() < config.absent_share
  if skill in (EXTRACT, READ):
    return _find(config, skill, fillers, kind, make, absent, rng)
  key, value = words.word_key(rng), make(rng)
  question, note = ruler.needle_question(kind, key), _note(key, value)
  if skill == KEEP:
    hidden = _distractors(config, [key], make, rng)
    chunk = _chunk(config, fillers, hidden, kind, rng)
    return Demonstration(question, note, chunk, note)
  if absent:
    return Demonstration(question, config.nothing, None, _boxed(config.nothing))
  return Demonstration(question, note, None, _boxed(value))


def _find(
  config: SkillConfig,
  skill: str,
  fillers: tuple[Filler, ...],
  kind: str,
  make: Callable[[random.Random], str],
  absent: bool,
  rng: random.Random,
) -> Demonstration:
  """Notes or values of the keys asked for, in the question's order."""
  keys = words.distinct(words.word_key, rng.randint(1, config.max_keys), rng)
  asked = [(key, make(rng)) for key in keys]
  hidden = _distractors(config, keys, make, rng)
  notes, values = f' {config.nothing}', config.nothing
  if not absent:
    hidden += asked
    notes = ''.join(_note(key, value) for key, value in asked)
    values = ', '.join(value for _, value in asked)
  question = ruler.needles_question(kind, keys)
  chunk = _chunk(config, fillers, hidden, kind, rng)
  if skill == READ:
    return Demonstration(question, chunk.lstrip(), None, notes + _boxed(values))
  return Demonstration(question, config.nothing, chunk, notes)


def _note(key: str, value: str) -> str:
  return f' {key} is: {value}.'


def _boxed(value: str) -> str:
  # The space gives a value the same first token as in the memory.
  return f' \\boxed{{ {value}}}'


def _distractors(
  config: SkillConfig,
  keys: Sequence[str],
  make: Callable[[random.Random], str],
  rng: random.Random,
) -> list[tuple[str, str]]:
  """Records of other keys; some share an adjective or noun with `keys`."""
  records: list[tuple[str, str]] = []
  count = rng.randint(0, config.max_distractors)
  while len(records) < count:
    other = words.word_key(rng)
    if rng.random() < config.near_miss_share:
      other = words.near_miss(rng.choice(keys), other, rng)
    if other not in keys:
      records.append((other, make(rng)))
  return records


def _chunk(
  config: SkillConfig,
  fillers: tuple[Filler, ...],
  records: Sequence[tuple[str, str]],
  kind: str,
  rng: random.Random,
) -> str:
  """Filler of a random length with the records between its sentences."""
  needles = [
    (rng.random(), ruler.needle(kind, k, v), False) for k, v in records
  ]
  room = rng.randint(config.min_chunk_chars, config.max_chunk_chars)
  room -= sum(len(text) + 1 for _, text, _ in needles)
  text, _ = rng.choice(fillers).cut(max(room, 0), rng)
  chunk = haystack.hide(text, needles)[0]
  # Only a document's first chunk does not begin with a space.
  return chunk if rng.random() < _FIRST_CHUNK_SHARE else ' ' + chunk
