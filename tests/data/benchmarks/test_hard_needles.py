"""Harder needles: what they change, what they keep, bytes of documents."""

import functools
import hashlib
import re

import pytest

from memagent_jax.data.benchmarks import (
  hard_needles,
  haystack,
  needle_documents,
  ruler,
)
from memagent_jax.data.encoders import ByteEncoder

ESSAY = haystack.Filler(
  ' '.join(
    f'On day {i} the ship went on. Nobody spoke of it.' for i in range(300)
  ),
  'log book',
)
CORPUS = ruler.Corpus(ESSAY)
SIZE = {
  'tokens': 2048,
  'encoder': ByteEncoder(),
  'encoder_name': 'bytes',
  'corpus': CORPUS,
}


def plain(task, index, **changes):
  return ruler.example(task, index, **SIZE | changes)


def hard(task, index, **changes):
  return hard_needles.example(task, index, **SIZE | changes)


def sha256_head(example):
  return hashlib.sha256(example.to_json().encode()).hexdigest()[:16]


def test_echoes_are_pieces_of_the_needle_and_never_its_value():
  for task in ('niah_single_1', 'niah_single_2', 'niah_single_3'):
    near_misses = 0
    for i in range(10):
      before, after = plain(task, i), hard(task, i, echoes=20.0)
      assert 0.98 * 2048 <= after.tokens <= 2048
      # The question and its needle stay, and the needle occurs once.
      assert (after.question, after.answers) == (
        before.question,
        before.answers,
      )
      (span,) = after.gold_spans
      needle = after.document[slice(*span)]
      assert after.document.count(after.answers[0]) == 1
      assert after.answers[0] in needle
      key = re.search(r' for (\S+) is', needle).group(1)
      others = re.findall(r'magic \w+ for (\S+) is: ', after.document)
      others.remove(key)
      for other in others:
        assert len(set(other.split('-')) & set(key.split('-'))) == 1
      near_misses += len(others)
    # A fifth of the 41 echoes in each of 10 samples, about 82.
    assert 50 <= near_misses <= 120


def test_values_of_few_symbols():
  """A share of the samples; nothing else in them or in the rest changes."""

  def symbols(example):
    return len(set(example.answers[0]) - {'-'})

  for task, most in (('niah_single_2', 6), ('niah_single_3', 9)):
    pairs = [
      (plain(task, i), hard(task, i, few_symbols_share=0.5)) for i in range(40)
    ]
    changed = [(a, b) for a, b in pairs if a.answers != b.answers]
    assert 10 <= len(changed) <= 30
    for before, after in changed:
      assert 1 <= symbols(after) <= most
      (old,), (new,) = before.answers, after.answers
      assert len(new) == len(old)
      assert [c == '-' for c in new] == [c == '-' for c in old]
      assert before.question == after.question
      assert new in after.document


@pytest.mark.parametrize('task', [*ruler.NEEDLE_TASKS, 'vt', 'fwe'])
def test_without_its_knobs_a_sample_is_the_benchmarks(task):
  for index in (0, 5):
    assert hard(task, index) == plain(task, index)


# Task, share of few symbols, echoes, and the first digits of a sample's
# SHA-256, recorded when the settings were arguments of `ruler.example`. Training
# documents must stay what they were; only new word lists of wonderwords would
# change them.
BYTES = [
  ('niah_single_1', 0.0, 0.0, 'f23e4ba085174f92'),
  ('niah_single_3', 1.0, 0.0, '70093c491f1cb7ec'),
  ('niah_multikey_1', 0.0, 6.0, '23b822d40066c1b6'),
  ('niah_multiquery', 0.75, 3.0, 'cf0888f21c7c4db4'),
  ('niah_multikey_3', 1.0, 20.0, '9594524850f30ff0'),
]


@pytest.mark.parametrize(('task', 'few', 'echoes', 'digest'), BYTES)
def test_bytes_of_samples_stay(task, few, echoes, digest):
  got = hard(task, 3, seed=7, few_symbols_share=few, echoes=echoes)
  assert sha256_head(got) == digest


CHUNKED_BYTES = [
  ('niah_single_2', 0.0, 0.0, 'f8c9eba66bc8a365'),
  ('niah_single_3', 1.0, 3.0, '6941437325dd9873'),
  ('niah_multivalue', 0.75, 6.0, '49d4384ef23365e6'),
]


@pytest.mark.parametrize(('task', 'few', 'echoes', 'digest'), CHUNKED_BYTES)
def test_bytes_of_documents_by_chunks_stay(
  tiny_tokenizer, task, few, echoes, digest
):
  got = needle_documents.example(
    task,
    3,
    tokenizer=tiny_tokenizer,
    chunks=3,
    chunk_tokens=600,
    corpus=CORPUS,
    seed=7,
    sample=functools.partial(
      hard_needles.example, few_symbols_share=few, echoes=echoes
    ),
  )
  assert sha256_head(got) == digest
