"""HotpotQA and SQuAD files in all their forms, whole and damaged."""

import json
from pathlib import Path

import pytest

from memagent_jax.data.benchmarks import question_sets

SHARED = Path(__file__).parents[4] / 'shared' / 'data'
HOTPOTQA = {
  '_id': 'q1',
  'question': 'Where was Ann born?',
  'answer': 'Rome',
  'supporting_facts': [['Ann', 0], ['Rome', 1]],
  'context': [
    ['Bob', ['Bob is a man.', ' He is old.']],
    ['Ann', ['Ann was born in Rome.']],
    ['Rome', ['Rome is a city.', ' It is old.']],
  ],
}
SQUAD = {
  'id': 's1',
  'context': 'The river is 9 miles long. ',
  'question': ' How long is the river?',
  'answers': [{'text': '9 miles'}, {'text': '9'}, {'text': '9 miles'}],
}


def write(path, content):
  path.write_text(content, encoding='utf-8')
  return path


def test_hotpotqa_in_json_lines_and_parquet_is_the_same(tmp_path):
  pyarrow = pytest.importorskip('pyarrow', reason='needs the extra [parquet]')
  from pyarrow import parquet

  second = HOTPOTQA | {'_id': 'q2', 'question': 'Who is old?'}
  both = [HOTPOTQA, second]
  array = write(tmp_path / 'a.json', json.dumps(both))
  lines = write(tmp_path / 'a.jsonl', '\n'.join(map(json.dumps, both)))
  columns = [
    {
      'id': r['_id'],
      'question': r['question'],
      'answer': r['answer'],
      'supporting_facts': {
        'title': [title for title, _ in r['supporting_facts']],
        'sent_id': [number for _, number in r['supporting_facts']],
      },
      'context': {
        'title': [title for title, _ in r['context']],
        'sentences': [sentences for _, sentences in r['context']],
      },
    }
    for r in both
  ]
  table = tmp_path / 'a.parquet'
  parquet.write_table(pyarrow.Table.from_pylist(columns), table)
  found = question_sets.read_hotpotqa(array)
  assert found.pool == (
    'Bob\nBob is a man. He is old.',
    'Ann\nAnn was born in Rome.',
    'Rome\nRome is a city. It is old.',
  )
  first = found.questions[0]
  assert (first.id, first.answers) == ('q1', ('Rome',))
  assert (first.gold, first.near) == ((1, 2), (0,))
  for path in (lines, table):
    other = question_sets.read_hotpotqa(path)
    assert (other.questions, other.pool) == (found.questions, found.pool)


def test_several_files_are_one_set(tmp_path):
  paths = [
    write(tmp_path / f'{i}.json', json.dumps([HOTPOTQA | {'_id': f'q{i}'}]))
    for i in range(2)
  ]
  found = question_sets.read_hotpotqa(*paths)
  assert [q.id for q in found.questions] == ['q0', 'q1']
  assert len(found.pool) == 3


def test_squad_nested_and_by_line_is_the_same(tmp_path):
  impossible = SQUAD | {'id': 's2', 'answers': [], 'question': 'Why?'}
  lines = write(
    tmp_path / 'a.jsonl', json.dumps(SQUAD) + '\n' + json.dumps(impossible)
  )
  questions = [
    {k: v for k, v in record.items() if k != 'context'}
    for record in (SQUAD, impossible)
  ]
  nested = {
    'version': '2.0',
    'data': [
      {
        'title': 't',
        'paragraphs': [{'context': SQUAD['context'], 'qas': questions}],
      }
    ],
  }
  whole = write(tmp_path / 'a.json', json.dumps(nested, indent=1))
  for path in (lines, whole):
    found = question_sets.read_squad(path)
    assert found.pool == ('The river is 9 miles long.',)
    (question,) = found.questions
    assert question.question == 'How long is the river?'
    assert question.answers == ('9 miles', '9')
    assert question.gold == (0,)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'context': None}, r'record 1: field context is NoneType; expected list'),
    ({'context': ['ab c']}, 'context or supporting_facts is not a list of'),
    ({'answer': ['x']}, 'field answer is list; expected str'),
    ({'question': None}, 'field question is NoneType; expected str'),
    (
      {'supporting_facts': [['Eve', 0]]},
      r"has a title of supporting_facts; expected one of \['Eve'\]",
    ),
    ({'context': {'title': ['a']}}, 'field sentences is NoneType'),
  ],
)
def test_a_wrong_field_is_named(tmp_path, change, message):
  path = write(tmp_path / 'a.jsonl', json.dumps(HOTPOTQA | change))
  with pytest.raises(ValueError, match=message):
    question_sets.read_hotpotqa(path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, r'a\.json: no such file'),
    ('[]', r'a\.json: no question in it'),
    ('{"data": ', r'a\.json: got not JSON: .*; expected one JSON object'),
    ('[{}', r'a\.json: record 1: got the end of the file'),
    ('{"data": [{}]}', 'field paragraphs is NoneType; expected list'),
    ('[3]', 'record 1: field context is int; expected str'),
  ],
)
def test_what_is_no_question_set(tmp_path, content, message):
  path = tmp_path / 'a.json'
  if content is not None:
    write(path, content)
  with pytest.raises(ValueError, match=message):
    question_sets.read_squad(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason='the data folder is not here')
@pytest.mark.parametrize(
  ('name', 'records'),
  [
    ('hotpotqa/dev.jsonl', 364),
    ('hotpotqa_fullwiki/dev.jsonl', 67),
    ('hotpotqa_train/train.jsonl', 316),
  ],
)
def test_all_real_hotpotqa_records_load(name, records):
  found = question_sets.read_hotpotqa(SHARED / name)
  assert len(found.questions) == records
  assert len({q.id for q in found.questions}) == records
  for question in found.questions:
    texts = [found.pool[i] for i in (*question.gold, *question.near)]
    (answer,) = question.answers
    assert answer in ('yes', 'no') or any(answer in t for t in texts)


@pytest.mark.skipif(not SHARED.is_dir(), reason='the data folder is not here')
@pytest.mark.parametrize(
  ('name', 'records'),
  [('squad_v1.1/dev.jsonl', 592), ('squad_v2.0/dev.jsonl', 1008)],
)
def test_all_real_squad_records_load(name, records):
  lines = (SHARED / name).read_text(encoding='utf-8').splitlines()
  answerable = sum(bool(json.loads(line)['answers']) for line in lines)
  found = question_sets.read_squad(SHARED / name)
  assert len(lines) == records
  assert len(found.questions) == answerable
  for question in found.questions:
    assert all(a in found.pool[question.gold[0]] for a in question.answers)
