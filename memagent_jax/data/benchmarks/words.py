"""Words, keys and numbers for the synthetic tasks, drawn from a seeded rng."""

from collections.abc import Callable, Mapping
import functools
import importlib.resources
import random
import uuid

_ONSETS = 'b d f g k l m n p r s t v z br dr gr kl pl st tr'.split()
_VOWELS = 'a e i o u'.split()
_CODAS = ['', '', '', 'l', 'm', 'n', 'r', 's']


@functools.cache
def dictionary(kind: str) -> tuple[str, ...]:
  """Words of one kind from the package wonderwords, sorted, lower-case letters.

  Args:
    kind: `noun`, `adjective` or `verb`.
  """
  # Only its lists are read; the package itself need not be imported.
  assets = importlib.resources.files('wonderwords') / 'assets'
  text = (assets / f'{kind}list.txt').read_text(encoding='utf-8')
  words = {line.strip().lower() for line in text.splitlines()}
  return tuple(sorted(w for w in words if w.isascii() and w.isalpha()))


def word_key(rng: random.Random) -> str:
  """An adjective and a noun, such as `quiet-harbor`: one of six million."""
  return (
    f'{rng.choice(dictionary("adjective"))}-{rng.choice(dictionary("noun"))}'
  )


def near_miss(key: str, other: str, rng: random.Random) -> str:
  """A key with one word from `key` and the other from `other`."""
  adjective, noun = key.split('-')
  other_adjective, other_noun = other.split('-')
  return rng.choice((f'{adjective}-{other_noun}', f'{other_adjective}-{noun}'))


def other_near_miss(key: str, rng: random.Random) -> str:
  """A key other than `key` that shares one word with it."""
  while True:
    other = near_miss(key, word_key(rng), rng)
    if other != key:
      return other


def number(rng: random.Random) -> str:
  """Seven digits, the first not 0."""
  return str(rng.randrange(1_000_000, 10_000_000))


def random_uuid(rng: random.Random) -> str:
  """A version 4 UUID."""
  return str(uuid.UUID(int=rng.getrandbits(128), version=4))


_KINDS: Mapping[str, Callable[[random.Random], str]] = {
  'word': word_key,
  'number': number,
  'uuid': random_uuid,
}


def draw(kind: str, rng: random.Random) -> str:
  """A random `word` (as `word_key`), `number` or `uuid`."""
  return _KINDS[kind](rng)


def few_symbols(value: str, rng: random.Random) -> str:
  """A value of the same form with 2 to 6 symbols in numbers, 5 to 9 in UUIDs.

  The last characters copied then occur in several places of the value. UUIDs of
  fewer symbols are hardly ever copied correctly, which teaches nothing.
  """
  if '-' in value:
    symbols = rng.sample('0123456789abcdef', rng.randint(5, 9))
  else:
    symbols = rng.sample('123456789', rng.randint(2, 6))
  return ''.join(c if c == '-' else rng.choice(symbols) for c in value)


def distinct(
  make: Callable[[random.Random], str], count: int, rng: random.Random
) -> list[str]:
  """`count` different results of `make(rng)`, in the order drawn."""
  results: dict[str, None] = {}
  while len(results) < count:
    results[make(rng)] = None
  return list(results)


def letters(rng: random.Random, length: int) -> str:
  """A text of `length` random lower-case letters."""
  return ''.join(
    rng.choice('abcdefghijklmnopqrstuvwxyz') for _ in range(length)
  )


def pseudo_word(rng: random.Random) -> str:
  """An invented word of three or four syllables."""
  syllables = [
    rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    for _ in range(rng.choice((3, 4)))
  ]
  return ''.join(syllables)


def plain_words(rng: random.Random, count: int) -> tuple[list[str], str]:
  """`count` different words in random order, and the name of their source.

  They are the dictionary's nouns, adjectives and verbs, and pseudo-words once
  those run out.
  """
  known = sorted(
    set(dictionary('noun'))
    | set(dictionary('adjective'))
    | set(dictionary('verb'))
  )
  if count <= len(known):
    return rng.sample(known, count), 'wonderwords'
  words = dict.fromkeys(known)
  while len(words) < count:
    words[pseudo_word(rng)] = None
  chosen = list(words)
  rng.shuffle(chosen)
  num_pseudo = count - len(known)
  return chosen, f'wonderwords and {num_pseudo} pseudo-words'
