"""Needle documents harder than RULER's, for training, not for evaluation.

    ruler.example + few_symbols_share, echoes -> example -> needle_documents.py

Values of few symbols are hard to copy: the last characters copied occur in them
several times. Echoes are pieces of the needle within the filler, and needles
whose key shares a word with the right one: a reader that stops at the first
sign of the needle is wrong.
"""

import functools
import random
from typing import Any

from memagent_jax.data.benchmarks import ruler, words
from memagent_jax.data.benchmarks.haystack import Filler
from memagent_jax.data.benchmarks.ruler import NeedleDraws
from memagent_jax.data.examples import Example, seeded

# Share of echoes that are whole needles with a similar key.
_NEAR_MISS_SHARE = 0.2
# Least and greatest length of the other echoes, in characters.
_ECHO_CHARACTERS = (2, 14)


def example(
  task: str,
  index: int,
  *,
  tokens: int,
  seed: int = 0,
  few_symbols_share: float = 0.0,
  echoes: float = 0.0,
  **arguments: Any,
) -> Example:
  """Sample number `index` of a RULER task, harder where it is a needle task.

  The key asked for, and its value unless it has few symbols, are those of the
  benchmark's sample with the same arguments; with neither knob it is that one.

  Other arguments and the errors are those of `ruler.example`.

  Args:
    few_symbols_share: share of samples whose values have few symbols.
    echoes: echoes per 1,000 tokens, where the filler is text.
  """
  drawn = seeded('few symbols', task, seed, index).random()
  draws = NeedleDraws(
    value=_few_symbols if drawn < few_symbols_share else words.draw,
    text=functools.partial(_text_with_echoes, round(echoes * tokens / 1000)),
  )
  return ruler.example(
    task, index, tokens=tokens, seed=seed, draws=draws, **arguments
  )


def _few_symbols(kind: str, rng: random.Random) -> str:
  return words.few_symbols(words.draw(kind, rng), rng)


def _text_with_echoes(
  count: int,
  filler: Filler,
  size: int,
  rng: random.Random,
  kind: str,
  key: str,
  value: str,
) -> tuple[str, str]:
  """Filler with echoes of a needle among its words, and the filler's source."""
  echoes = [_echo(kind, key, value, rng) for _ in range(count)]
  text, source = filler.cut(size, rng)
  if not echoes:
    return text, source
  parts = text.split(' ')
  for echo in echoes:
    parts.insert(rng.randrange(len(parts) + 1), echo)
  return ' '.join(parts), source


def _echo(kind: str, key: str, value: str, rng: random.Random) -> str:
  """A piece of a needle without its whole value, or a similar key's needle."""
  if rng.random() < _NEAR_MISS_SHARE:
    other = words.other_near_miss(key, rng)
    return ruler.needle(kind, other, words.draw(kind, rng))
  whole = f'{key} is: {value}.'
  while True:
    length = rng.randint(*_ECHO_CHARACTERS)
    start = rng.randrange(len(whole) - length + 1)
    piece = whole[start : start + length].strip()
    if piece and value not in piece:
      return piece
