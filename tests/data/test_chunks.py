"""Streaming encoding equals whole encoding; chunks end where they should."""

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from memagent_jax.data.chunks import ChunkCutter, StreamEncoder

_WORDS = ['the', 'hell', 'Queen', 'naïve', '3', '1972', ' ', '  ', '\n', '\n\n']
_WORDS += [
  '.',
  '?”',
  "'s",
  '<|im_end|>',
  '漢字',
  '🙂',
  '\u0301',
  '\t',
  '²',
  '٣',
]


def _stream(tokenizer, text, sizes):
  encoder = StreamEncoder(tokenizer)
  ids, start = [], 0
  for size in sizes:
    ids += encoder.feed(text[start : start + size])
    start += size
  ids += encoder.feed(text[start:])
  return ids + encoder.finish()


@settings(max_examples=60)
@given(
  words=st.lists(st.sampled_from(_WORDS), max_size=60),
  repeat=st.integers(1, 12),
  sizes=st.lists(st.integers(0, 400), max_size=12),
)
def test_streamed_ids_are_those_of_the_whole(
  tiny_tokenizer, words, repeat, sizes
):
  text = ' '.join(words * repeat)
  expected = tiny_tokenizer.encode(text)
  assert _stream(tiny_tokenizer, text, sizes) == expected


def test_streaming_settles_ids_before_the_end(tiny_tokenizer):
  encoder = StreamEncoder(tiny_tokenizer)
  early = encoder.feed('the hell of it ' * 100)
  assert len(early) > 500
  assert len(encoder.tail) < 400


class _PrefixSpace:
  """A tokenizer that marks the start of every text: no cut is safe."""

  def encode(self, text):
    return [0, *map(ord, text)] if text else []


def test_a_tokenizer_without_safe_cuts_gets_the_whole_text():
  encoder = StreamEncoder(_PrefixSpace())
  text = 'some words of text ' * 60
  assert encoder.feed(text) == []
  assert encoder.finish() == _PrefixSpace().encode(text)


class _Words:
  """One id per character, so that a cut can be read from the text."""

  def encode(self, text):
    return list(map(ord, text))

  def token_text(self, token_id):
    return chr(token_id)


@pytest.mark.parametrize(
  ('text', 'budget', 'expected'),
  [
    # The last sentence end within the budget, not the first; white space stays
    # with the text before it.
    ('A b. C d. Efg hij', 13, 'A b. C d. '),
    # Closing quotes belong to the sentence.
    ('He said "no." Then left', 16, 'He said "no." '),
    # No sentence end: the last word end.
    ('alpha beta gamma', 13, 'alpha beta '),
    # No word end: the budget.
    ('abcdefghijkl', 5, 'abcde'),
    # A blank line ends a heading.
    ('CHAPTER I\n\nIt was a', 16, 'CHAPTER I\n\n'),
    # A full stop inside a number or a name is not a sentence end.
    ('It cost 3.14 for two', 12, 'It cost 3.14'),
    ('It cost 3.14159 and more', 12, 'It cost '),
  ],
)
def test_a_chunk_ends_at_a_sentence_or_word(text, budget, expected):
  cutter = ChunkCutter(_Words(), budget)
  chunk = cutter.split(_Words().encode(text))[0]
  assert ''.join(map(chr, chunk)) == expected


def test_token_cut_is_the_budget():
  cutter = ChunkCutter(_Words(), 5, 'token')
  chunks = cutter.split(_Words().encode('ab. cdefghij'))
  assert [len(c) for c in chunks] == [5, 5, 2]


@settings(max_examples=60)
@given(
  words=st.lists(st.sampled_from(_WORDS), min_size=1, max_size=80),
  budget=st.integers(1, 40),
  cut=st.sampled_from(['sentence', 'token']),
)
def test_chunks_joined_are_the_document(tiny_tokenizer, words, budget, cut):
  ids = tiny_tokenizer.encode(' '.join(words))
  chunks = ChunkCutter(tiny_tokenizer, budget, cut).split(ids)
  assert [i for chunk in chunks for i in chunk] == ids
  assert all(0 < len(chunk) <= budget for chunk in chunks)


def test_unknown_cut_is_refused():
  with pytest.raises(ValueError, match="'line'; expected one of sentence"):
    ChunkCutter(_Words(), 5, 'line')
