"""Published files: each kind, each format, and errors about wrong ones."""

import json
import random
import subprocess
import sys

import pytest

from memagent_jax.data.examples import Example, from_json
from memagent_jax.data.files import record_files, upstream

_TRAINING = {
  'data_source': 'hotpotqa',
  'prompt': [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': 'Which island?'},
  ],
  'context': 'Document 1:\nSkye\nAn "island" \\ of {Scotland}.',
  'reward_model': {'ground_truth': ['Skye', 'Isle of Skye'], 'style': 'rule'},
  'extra_info': {'index': 41, 'num_docs': 200},
}
_EVALUATION = {
  'context': _TRAINING['context'],
  'input': 'Which island?',
  'answers': ['Skye', 'Isle of Skye'],
  'num_docs': 200,
  'index': 41,
}
_RULER = {
  'index': 3,
  'input': 'What are the magic numbers for ant?',
  'context': 'The magic number for ant is 12. And 34.',
  'outputs': ['12', '34'],
  'answer_prefix': ' The numbers are',
  'length': 8000,
}


def _expected(stem, name, number=1):
  return Example(
    id=f'{stem}/{number}/41',
    task='hotpotqa_published',
    document='Document 1:\nSkye\nAn "island" \\ of {Scotland}.',
    question='Which island?',
    answers=('Skye', 'Isle of Skye'),
    reward='boxed_em',
    metric='sub_em_strict',
    source=name,
  )


def _write(path, records):
  """A file in the format that its suffix names."""
  if path.suffix == '.parquet':
    pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    from pyarrow import parquet

    # One row group, as published; pages of 16 records or more.
    parquet.write_table(
      pa.Table.from_pylist(records), path, write_batch_size=16
    )
  elif path.suffix == '.jsonl':
    path.write_text('\n'.join(map(json.dumps, records)) + '\n')
  else:
    path.write_text(json.dumps(records, indent=4, ensure_ascii=False))
  return path


@pytest.mark.parametrize(
  'record', [_TRAINING, _EVALUATION], ids=['train', 'eval']
)
@pytest.mark.parametrize('ending', ['parquet', 'json', 'jsonl'])
def test_both_kinds_give_the_same_example(tmp_path, record, ending):
  name = f'eval_200.{ending}'
  path = _write(tmp_path / name, [record] * 3)
  examples = list(upstream.read(path))
  assert examples == [_expected('eval_200', name, n) for n in (1, 2, 3)]
  assert from_json(examples[0].to_json()) == examples[0]


def test_plain_prompt_one_answer_and_no_extra_info():
  record = {
    'prompt': 'Which island?',
    'context': 'Skye.',
    'reward_model': {'ground_truth': 'Skye'},
  }
  example = upstream.from_record(record, 2, 'train.json')
  assert (example.id, example.question) == ('train/2', 'Which island?')
  assert example.answers == ('Skye',)


def test_the_last_user_message_is_the_question():
  prompt = [
    {'role': 'user', 'content': 'first'},
    {'role': 'user', 'content': 'second'},
    {'role': 'assistant', 'content': 'third'},
  ]
  record = _TRAINING | {'prompt': prompt}
  assert upstream.from_record(record, 1, 'a.json').question == 'second'


@pytest.mark.parametrize(
  ('name', 'outputs', 'task', 'reward', 'metric'),
  [
    ('eval_vt_8192', ['A', 'B'], 'vt_published', 'boxed_all', 'ruler_all'),
    (
      'eval_niah_single_1_524288',
      ['12'],
      'niah_single_1_published',
      'boxed_em',
      'ruler_all',
    ),
    (
      'eval_qa_1_8192',
      ['x', 'y', 'x'],
      'qa_1_published',
      'boxed_em',
      'ruler_part',
    ),
    ('other', ['A', 'B'], 'ruler_published', 'boxed_all', 'ruler_all'),
  ],
)
def test_ruler_records_are_named_by_their_file(
  tmp_path, name, outputs, task, reward, metric
):
  path = _write(tmp_path / f'{name}.json', [_RULER | {'outputs': outputs}])
  (example,) = upstream.read(path)
  assert (example.task, example.reward) == (task, reward)
  assert example.metric == metric
  assert example.answers == tuple(dict.fromkeys(outputs))
  assert example.id == f'{name}/1/3'


_SCHEMAS = (
  'training: prompt, context, reward_model; evaluation: input, context, '
  'answers; RULER evaluation: input, context, outputs.'
)


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    ({'context': 'c', 'input': 'q', 'index': 1}, 'answers: missing; got the'),
    ({'context': 'c', 'prompt': 'q'}, 'reward_model: missing; got the fields'),
    ({}, 'missing; got the fields none'),
    ([1], 'missing; got list'),
  ],
)
def test_a_missing_field_names_record_and_schemas(tmp_path, record, message):
  path = _write(tmp_path / 'eval_50.json', [_EVALUATION, record])
  with pytest.raises(ValueError) as e:
    list(upstream.read(path))
  assert str(e.value).startswith(f'{path}: record 2: ')
  assert message in str(e.value)
  assert str(e.value).endswith(_SCHEMAS)


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    (_EVALUATION | {'input': ''}, "input: got ''; expected a text"),
    (_EVALUATION | {'answers': []}, 'answers: got none'),
    (_EVALUATION | {'answers': [1]}, 'answers: got 1; expected a text'),
    (_EVALUATION | {'answers': {'a': 1}}, "answers: got {'a': 1}"),
    (_EVALUATION | {'context': ' '}, "context: got ' '; expected a text"),
    (_EVALUATION | {'context': None}, 'context: got nothing'),
    (_EVALUATION | {'context': [3, 1]}, 'context: got 2 paragraph numbers'),
    (_TRAINING | {'prompt': []}, 'got no message with the role user'),
    (_TRAINING | {'prompt': [{}]}, 'prompt: got {}; expected an object'),
    (_TRAINING | {'reward_model': 'x'}, "reward_model: got 'x'; expected an"),
    (_TRAINING | {'reward_model': {}}, 'expected an object with ground_truth'),
  ],
)
def test_a_wrong_field_is_named(record, message):
  with pytest.raises(ValueError) as e:
    upstream.from_record(record, 5, 'a.json')
  assert str(e.value).startswith('a.json: record 5: ')
  assert message in str(e.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'no such file'),
    (b'', 'no records; expected one or more'),
    (b'[]', 'no records'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (
      b'[{"a": 1},{"b": }]',
      'record 2: got not JSON: Expecting value at column 7',
    ),
    (b'[{"a": 1}, {"b"', 'record 2: got the end of the file'),
    (b'[{"a": 1}\xff]', 'byte 0xff at position 9 is not utf-8'),
    (b'{"a": 1}\n{"a"\n', ':2: got not JSON'),
    (b'hello', ':1: got not JSON: Expecting value at column 1; expected Parq'),
  ],
)
def test_what_is_no_published_file(tmp_path, content, message):
  path = tmp_path / 'eval_50.json'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError) as e:
    # Only the shape of the records is wrong here.
    for _ in record_files.read(path, max_record_bytes=100):
      pass
    list(upstream.read(path))
  assert str(e.value).startswith(str(path))
  assert message in str(e.value)


@pytest.mark.parametrize('ending', ['json', 'jsonl'])
def test_a_record_above_the_limit_is_refused(tmp_path, ending):
  path = _write(tmp_path / f'a.{ending}', [_EVALUATION])
  assert len(list(upstream.read(path, max_record_bytes=1000))) == 1
  with pytest.raises(ValueError, match='100'):
    list(upstream.read(path, max_record_bytes=100))


def test_parquet_reads_only_what_it_needs_and_names_what_is_missing(tmp_path):
  scores = {'score_boxed_instruct': [[0.0, 1.0]]}
  path = _write(tmp_path / 'a.parquet', [_TRAINING | scores] * 20)
  (batch,) = {
    tuple(record) for record in record_files.read(path, upstream._COLUMNS)
  }
  assert set(batch) == {'prompt', 'context', 'reward_model', 'extra_info'}
  assert len(list(upstream.read(path))) == 20
  path = _write(tmp_path / 'b.parquet', [{'question': 'q', 'context': 'c'}])
  with pytest.raises(ValueError, match='prompt, reward_model: missing'):
    list(upstream.read(path))
  raw = path.read_bytes()
  path.write_bytes(raw[:-20])
  with pytest.raises(ValueError, match='not a readable Parquet file'):
    list(upstream.read(path))


def test_without_pyarrow_the_remedy_is_named(tmp_path, monkeypatch):
  (tmp_path / 'a.parquet').write_bytes(b'PAR1')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(ValueError, match=r'memagent_jax\[parquet\]'):
    list(upstream.read(tmp_path / 'a.parquet'))


_HOTPOTQA = [
  {'context': [['Skye', ['An island.', ' Big.']], ['Ant', ['Small.']]]},
  {'context': [['Ant', ['Small.']], ['Bee', ['Flies.']]]},
]


def test_paragraph_numbers_become_text(tmp_path):
  dev = _write(tmp_path / 'dev.json', _HOTPOTQA)
  paragraphs = upstream.hotpotqa_paragraphs(dev, count=3)
  assert paragraphs == ['Ant\nSmall.', 'Bee\nFlies.', 'Skye\nAn island. Big.']
  path = _write(
    tmp_path / 'eval_12800.json', [_EVALUATION | {'context': [2, 0]}]
  )
  (example,) = upstream.read(path, paragraphs=paragraphs)
  assert example.document == (
    'Document 1:\nSkye\nAn island. Big.\n\nDocument 2:\nAnt\nSmall.'
  )
  for wrong in (3, -1, 1.0, True, 'Ant'):
    record = _EVALUATION | {'context': [0, wrong]}
    with pytest.raises(ValueError, match='expected 0 to 2'):
      upstream.from_record(record, 1, path, paragraphs)


def test_other_paragraphs_than_the_published_are_refused(tmp_path):
  dev = _write(tmp_path / 'dev.json', _HOTPOTQA)
  with pytest.raises(ValueError, match=r'got 3 distinct .* expected 66,635'):
    upstream.hotpotqa_paragraphs(dev)
  for wrong in ([{}], [{'context': ['ab c']}], [{'context': 'text'}], [3]):
    dev = _write(tmp_path / 'dev.json', [_HOTPOTQA[0], *wrong])
    with pytest.raises(
      ValueError, match='record 2: context: expected HotpotQA'
    ):
      upstream.hotpotqa_paragraphs(dev)


# Not ru_maxrss, which a process inherits from its parent.
_PEAK = """
import re, sys
from memagent_jax.data.files import upstream
examples = sum(1 for _ in upstream.read(sys.argv[1]))
peak_kb = re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]
print(examples, peak_kb, sep=';')
"""


@pytest.mark.slow
@pytest.mark.parametrize('ending', ['json', 'jsonl', 'parquet'])
def test_memory_is_that_of_a_few_records(tmp_path, ending):
  """300 records of 2 MB are 600 MB; a row group is not read as a whole."""
  rng = random.Random(0)
  records = []
  for index in range(300):
    text = ''.join(rng.choices('abcdefgh "\n', k=20_000)) * 100
    records.append(
      _TRAINING | {'context': text, 'extra_info': {'index': index}}
    )
  path = _write(tmp_path / f'a.{ending}', records)
  run = subprocess.run(
    [sys.executable, '-c', _PEAK, path],
    check=True,
    capture_output=True,
    text=True,
  )
  examples, peak_kb = map(int, run.stdout.strip().split(';'))
  assert examples == 300
  assert peak_kb < 300e3
