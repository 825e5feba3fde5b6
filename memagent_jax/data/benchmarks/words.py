"""Words, keys and numbers of the synthetic tasks, all drawn from a seeded rng."""

import functools
import importlib.resources
import random
import uuid

_ONSETS = 'b d f g k l m n p r s t v z br dr gr kl pl st tr'.split()
_VOWELS = 'a e i o u'.split()
_CODAS = ['', '', '', 'l', 'm', 'n', 'r', 's']


@functools.cache
def dictionary(kind: str) -> tuple[str, ...]:
  """The package wonderwords' words of a kind, sorted, lower-case letters only.

  Args:
    kind: `noun`, `adjective` or `verb`.
  """
  # Its lists alone: importing the package itself is not needed.
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
  """A key with one word of `key`, the other word from `other`."""
  adjective, noun = key.split('-')
  other_adjective, other_noun = other.split('-')
  return rng.choice((f'{adjective}-{other_noun}', f'{other_adjective}-{noun}'))


def other_near_miss(key: str, rng: random.Random) -> str:
  """A key that is not `key` and has one word of it."""
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


def few_symbols(value: str, rng: random.Random) -> str:
  """A value of the same form: numbers from 2 to 6 symbols, UUIDs from 5 to 9.

  What has been copied so far then stands in the value in several places. UUIDs of
  fewer symbols than that are hardly ever copied right, which teaches nothing.
  """
  if '-' in value:
    symbols = rng.sample('0123456789abcdef', rng.randint(5, 9))
  else:
    symbols = rng.sample('123456789', rng.randint(2, 6))
  return ''.join(c if c == '-' else rng.choice(symbols) for c in value)


def distinct(make, count: int, rng: random.Random) -> list[str]:
  """`count` different results of `make(rng)`, in the order they came."""
  found: dict[str, None] = {}
  while len(found) < count:
    found[make(rng)] = None
  return list(found)


def letters(rng: random.Random, length: int) -> str:
  """That many random lower-case letters."""
  return ''.join(
    rng.choice('abcdefghijklmnopqrstuvwxyz') for _ in range(length)
  )


def pseudo_word(rng: random.Random) -> str:
  """A word of three or four syllables that no dictionary has to hold."""
  syllables = [
    rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    for _ in range(rng.choice((3, 4)))
  ]
  return ''.join(syllables)


def plain_words(rng: random.Random, count: int) -> tuple[list[str], str]:
  """`count` different words in random order, and what they were taken from.

  Nouns, adjectives and verbs of the dictionary first; pseudo-words where those
  run out.
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
  made = count - len(known)
  return chosen, f'wonderwords and {made} pseudo-words'
