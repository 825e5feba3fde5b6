"""RULER-HQA and the training form: counts, positions, repeats."""

import collections
import re

import pytest

from memagent_jax.data.benchmarks import paragraphs
from memagent_jax.data.benchmarks.question_sets import Question, QuestionSet
from memagent_jax.data.encoders import ByteEncoder


def question_set(questions, pool):
  """Question i has gold paragraphs 2i and 2i+1 and no near ones."""
  return QuestionSet(
    'made up',
    tuple(
      Question(
        f'q{i}', f'Question {i}?', (f'gold {2 * i}',), (2 * i, 2 * i + 1)
      )
      for i in range(questions)
    ),
    tuple(f'Title {i}\nThe text of gold {i}.' for i in range(pool)),
  )


def make(questions, index, num_paragraphs, **kwargs):
  return paragraphs.hqa_example(
    questions,
    index,
    num_paragraphs=num_paragraphs,
    encoder=ByteEncoder(),
    encoder_name='bytes',
    **kwargs,
  )


def numbers(example):
  return [int(n) for n in re.findall(r'Title (\d+)\n', example.document)]


def test_a_document_has_the_asked_paragraphs_each_once():
  example = make(question_set(5, 60), 0, 50)
  shown = numbers(example)
  assert len(shown) == len(set(shown)) == 50
  labels = re.findall(r'Document (\d+):\n', example.document)
  assert labels == [str(i) for i in range(1, 51)]
  gold = [example.document[a:b] for a, b in example.gold_spans]
  assert len(gold) == 2 and all(g.startswith('Document ') for g in gold)
  assert any(example.answers[0] in g for g in gold)
  assert example.source == 'made up: 48 of 58 distractors'
  assert example.tokens == len(example.document) + len(example.question)


def test_too_small_a_pool_repeats_distractors_evenly_and_gold_never():
  example = make(question_set(5, 12), 0, 103)
  counts = collections.Counter(numbers(example))
  gold = {int(re.search(r'\d+', a).group()) for a in example.answers}
  (first,) = gold
  assert counts[first] == counts[first + 1] == 1
  others = {n for i, n in counts.items() if i not in (first, first + 1)}
  assert others == {10, 11}  # 101 distractors from 10
  assert example.source.endswith('101 of 10 distractors, each up to 11 times')


def test_near_distractors_come_first():
  pool = tuple(f'Title {i}\ntext' for i in range(30))
  one = Question('q', 'Q?', ('text',), (3,), (4, 5, 6))
  example = make(QuestionSet('s', (one,), pool), 0, 4)
  assert sorted(numbers(example)) == [3, 4, 5, 6]


def test_gold_positions_are_uniform():
  # 1,000 questions, 2 gold paragraphs, ten bins of 200 expected: chi-square
  # below the 0.999 quantile for 9 degrees of freedom. One shuffle seed for all,
  # as upstream has, would put 1,000 into each of two bins: 8,000.
  questions = question_set(1000, 2020)
  bins = [0] * 10
  for index in range(1000):
    example = make(questions, index, 50)
    places = {n: i for i, n in enumerate(numbers(example))}
    gold = int(re.search(r'\d+', example.answers[0]).group())
    for number in (gold, gold + 1):
      bins[places[number] * 10 // 50] += 1
  assert sum((n - 200) ** 2 / 200 for n in bins) < 27.88


def test_every_question_comes_once_before_any_comes_again():
  questions = question_set(7, 20)
  ids = [paragraphs.pick(questions, i, seed=1).id for i in range(14)]
  assert sorted(ids[:7]) == sorted(ids[7:]) == [f'q{i}' for i in range(7)]
  assert ids[:7] != [paragraphs.pick(questions, i, 2).id for i in range(7)]


def test_what_cannot_be_made_is_named():
  with pytest.raises(ValueError, match='1 paragraphs do not hold the 2 gold'):
    make(question_set(5, 60), 0, 1)
  with pytest.raises(
    ValueError, match='no paragraph besides the gold ones of q0'
  ):
    make(question_set(1, 2), 0, 50)
