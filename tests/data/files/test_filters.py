"""Questions that need no document are dropped, and counted."""

import json

import pytest

from memagent_jax.data.examples import Example
from memagent_jax.data.files.filters import Counts, drop_answerable


def _example(name, *answers):
  return Example(name, 'own', 'document', 'question', answers or ('Skye',))


def _answers(tmp_path, *records):
  path = tmp_path / 'answers.jsonl'
  path.write_text('\n'.join(map(json.dumps, records)))
  return path


def _kept(examples, path):
  counts = Counts()
  kept = [e.id for e in drop_answerable(examples, path, counts)]
  assert counts.kept == len(kept)
  assert counts.kept + counts.dropped == len(examples)
  return kept, counts


_EXAMPLES = [_example(name) for name in ('none', 'one', 'both', 'unasked')]
_RECORDS = (
  {'id': 'none', 'answers': ['Mull', '']},
  {'id': 'one', 'answers': ['Mull', 'the skye.']},
  {'id': 'both', 'answers': ['\\boxed{Skye}', 'Skye']},
)


def test_any_right_sample_drops(tmp_path):
  kept, counts = _kept(_EXAMPLES, _answers(tmp_path, *_RECORDS))
  assert kept == ['none', 'unasked']
  assert counts == Counts(kept=2, dropped=2, without_answers=1)


def test_a_second_line_adds_samples(tmp_path):
  more = {'id': 'none', 'answers': ['Skye']}
  path = _answers(tmp_path, *_RECORDS, more)
  assert _kept(_EXAMPLES, path)[0] == ['unasked']


def test_examples_stream(tmp_path):
  def examples():
    yield _example('none')
    raise AssertionError('read ahead')

  path = _answers(tmp_path, *_RECORDS)
  assert next(drop_answerable(examples(), path, Counts())).id == 'none'


@pytest.mark.parametrize(
  ('record', 'got'),
  [
    ({'id': 'a'}, "{'id': 'a'}"),
    ({'id': 'a', 'answers': []}, "'answers': []"),
    ({'id': 'a', 'answers': 'Skye'}, "'Skye'"),
    ({'id': 'a', 'answers': [None]}, '[None]'),
    ({'id': 3, 'answers': ['x']}, "'id': 3"),
    ({'id': 'a', 'answers': ['x'], 'b': 1}, "'b': 1"),
    ([], '[]'),
  ],
)
def test_a_wrong_line_is_named(tmp_path, record, got):
  path = _answers(tmp_path, _RECORDS[0], record)
  with pytest.raises(ValueError) as e:
    _kept(_EXAMPLES, path)
  assert str(e.value).startswith(f'{path}:2: got ')
  assert got in str(e.value)
  assert '{"id": text, "answers": [text, ...]}' in str(e.value)


def test_other_mistakes_are_named(tmp_path):
  path = _answers(tmp_path, *_RECORDS)
  with pytest.raises(ValueError, match='no such file'):
    _kept(_EXAMPLES, tmp_path / 'none.jsonl')
  (tmp_path / 'answers.jsonl').write_text('{}\n{"id": \n')
  with pytest.raises(ValueError, match=r'answers\.jsonl:1: got \{\}'):
    _kept(_EXAMPLES, path)


def test_answers_to_other_examples_are_an_error(tmp_path):
  path = _answers(tmp_path, *_RECORDS)
  with pytest.raises(ValueError, match=r"'none' and others.*like 'x/1'"):
    _kept([_example('x/1')], path)
  path = _answers(tmp_path)
  with pytest.raises(ValueError, match='to no example'):
    _kept([_example('x/1')], path)
  assert _kept([], path) == ([], Counts())
