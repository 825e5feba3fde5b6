"""Tasks by name: their texts, sizes and examples."""

import json

import pytest

from memagent_jax.data.benchmarks import registry
from memagent_jax.data.benchmarks.registry import Benchmark, Texts
from memagent_jax.data.encoders import ByteEncoder
from tests.data.files import hotpotqa_files

BYTES = {'encoder': ByteEncoder(), 'encoder_name': 'bytes'}


@pytest.fixture
def hotpotqa(tmp_path):
  """Three questions with two paragraphs each."""
  return str(hotpotqa_files.write(tmp_path / 'hotpotqa.json', 3))


@pytest.fixture
def squad(tmp_path):
  """Two questions about one paragraph, one about another."""
  paragraphs = [
    {
      'context': context,
      'qas': [
        {
          'id': f'{context[0]}{i}',
          'question': f'Which letter is number {i}?',
          'answers': [{'text': context[i], 'answer_start': i}],
        }
        for i in range(count)
      ],
    }
    for context, count in (('abcd efgh', 2), ('ijkl mnop', 1))
  ]
  path = tmp_path / 'squad.json'
  path.write_text(
    json.dumps({'data': [{'title': 'T', 'paragraphs': paragraphs}]}),
    encoding='utf-8',
  )
  return str(path)


def opened(task, cache='unused', **texts):
  return Benchmark(task, registry.obtain(task, Texts(**texts), cache))


def test_needles_have_tokens(tmp_path):
  essay = tmp_path / 'essay.txt'
  essay.write_text('A sentence of some length. ' * 200, encoding='utf-8')
  assert registry.unit('niah_single_2') == 'tokens'
  benchmark = opened('niah_single_2', essays=[str(essay)])
  assert benchmark.count is None
  example = benchmark.example(3, 1500, seed=7, answer_tokens=10, **BYTES)
  assert example.id == 'niah_single_2/1500/7/3'
  assert 1470 <= example.tokens <= 1500
  # Room for the template is taken out of the document, not added to it.
  roomy = benchmark.example(
    3, 1500, seed=7, answer_tokens=10, template_tokens=400, **BYTES
  )
  texts = len(roomy.document) + len(roomy.question)
  assert roomy.tokens == texts + 400 + 10 <= 1500


@pytest.mark.parametrize(
  ('task', 'size', 'expected'),
  [('hotpotqa', None, 10), ('hotpotqa_train', None, 200), ('ruler_hqa', 4, 4)],
)
def test_paragraphs_of_hotpotqa(hotpotqa, task, size, expected):
  assert registry.unit(task) == 'paragraphs'
  benchmark = opened(task, hotpotqa=hotpotqa)
  assert benchmark.count == 3
  example = benchmark.example(2, size, **BYTES)
  assert example.document.count('Document ') == expected
  assert example.id.startswith(f'{task}/{expected}/0/q')
  assert (example.reward, example.metric) == ('boxed_em', 'sub_em_strict')


def test_a_question_of_squad_has_its_own_paragraph(squad):
  benchmark = opened('squad', squad=squad)
  assert benchmark.count == 3
  found = [benchmark.example(i, None, **BYTES) for i in range(3)]
  assert len({example.id for example in found}) == 3
  for example in found:
    assert example.document.startswith('Document 1:\n')
    assert example.answers[0] in example.document


def test_own_documents_are_taken_as_they_are(tmp_path):
  path = tmp_path / 'own.jsonl'
  record = {'question': 'Who?', 'answers': ['Ann'], 'document': 'Ann came.'}
  path.write_text(json.dumps(record), encoding='utf-8')
  assert registry.unit('own') == 'documents'
  benchmark = opened('own', own=str(path))
  assert benchmark.count == 1
  example = benchmark.example(0, None, **BYTES)
  assert (example.document, example.tokens) == ('Ann came.', 13)


@pytest.mark.parametrize(
  ('task', 'texts', 'message'),
  [
    ('niah', {}, "'niah' is unknown; choose from niah_single_1, .*squad, own"),
    ('niah_single_2', {}, 'niah_single_2 needs essays'),
    ('own', {}, 'needs a JSONL file'),
    ('qa_2', {'hotpotqa': 'none.json'}, 'none.json: no such file'),
  ],
)
def test_missing_texts_are_named(task, texts, message):
  with pytest.raises(ValueError, match=message):
    opened(task, **texts)


def test_noise_needs_no_text_and_a_size():
  with pytest.raises(ValueError, match='needs a number of tokens'):
    opened('niah_single_1').example(0, None, **BYTES)
