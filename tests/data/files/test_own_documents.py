"""Own documents: what is read, what is refused, and with which message."""

import gzip
import json
from pathlib import Path
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from memagent_jax.data.examples import Example, from_json
from memagent_jax.data.files import own_documents
from tests.data.files import jsonl_files

_RIGHT = {
  'question': 'Who wrote it?',
  'answers': ['Ada'],
  'document': 'It was written by Ada Lovelace.',
}


def _write(folder: Path, *records) -> Path:
  return jsonl_files.write(folder / 'mine.jsonl', _RIGHT, *records)


def _only_problem(path, **kwargs) -> own_documents.Problem:
  """The only problem of a file, which `read` raises too."""
  report = own_documents.validate(path, **kwargs)
  assert report.problem_count == 1, str(report)
  (problem,) = report.problems
  with pytest.raises(ValueError) as e:
    list(own_documents.read(path, **kwargs))
  assert str(e.value) == str(problem)
  return problem


def test_a_record_with_everything_becomes_an_example(tmp_path):
  record = {'id': 'ada', 'evidence': [[18, 30], [0, 2]], 'document_path': None}
  (example,) = own_documents.read(_write(tmp_path, record))
  assert example == Example(
    id='ada',
    task='own',
    document='It was written by Ada Lovelace.',
    question='Who wrote it?',
    answers=('Ada',),
    reward='boxed_em',
    metric='sub_em_strict',
    gold_spans=((18, 30), (0, 2)),
    source='mine.jsonl',
  )
  assert example.document[18:30] == 'Ada Lovelace'
  assert from_json(example.to_json()) == example


def test_ids_are_made_from_file_and_line(tmp_path):
  path = _write(tmp_path, b'\xef\xbb\xbf', {}, b'', {'id': 'x'}, {})
  assert [e.id for e in own_documents.read(path)] == ['mine/2', 'x', 'mine/5']


@pytest.mark.parametrize('name', ['a.md', 'b.txt.gz'])
def test_documents_may_be_files_beside_the_jsonl(tmp_path, name):
  text = '\ufeffby Ada, é漢🙂\n' * 30_000
  (tmp_path / 'docs').mkdir()
  raw = text.encode()
  raw = gzip.compress(raw) if name.endswith('gz') else raw
  (tmp_path / 'docs' / name).write_bytes(raw)
  path = _write(
    tmp_path,
    {
      'document': None,
      'document_path': f'docs/{name}',
      'evidence': [[3, len(text) - 1]],
    },
  )
  (example,) = own_documents.read(path)
  assert example.document == text[1:]  # without the byte-order mark
  assert example.source == f'docs/{name}'


@pytest.mark.parametrize(
  ('record', 'field', 'got', 'expected'),
  [
    ({'question': 7}, 'question', '7', 'a text that is not blank'),
    ({'question': ' \n'}, 'question', "' \\n'", 'not blank'),
    ({'question': None}, 'question', 'nothing', 'a text'),
    ({'question': '\ud800'}, 'question', "'\\ud800'", 'a text'),
    ({'answers': 'Ada'}, 'answers', "'Ada'", 'a list of one or more texts'),
    ({'answers': []}, 'answers', '[]', 'one or more'),
    ({'answers': ['Ada', '']}, 'answers', "['Ada', '']", 'not blank'),
    ({'answers': [1815]}, 'answers', '[1815]', 'texts'),
    ({'document': ''}, 'document', "''", 'not blank'),
    ({'document': '\n '}, 'document', "'\\n '", 'not blank'),
    ({'id': 5}, 'id', '5', 'a text that no other line has'),
    ({'id': ''}, 'id', "''", 'a text'),
    ({'evidence': [[0, 2], [5, 32]]}, 'evidence', '[5, 32]', '31 characters'),
    ({'evidence': [[2, 2]]}, 'evidence', '[2, 2]', '[start, end)'),
    ({'evidence': [[-1, 2]]}, 'evidence', '[-1, 2]', '[start, end)'),
    ({'evidence': [[False, True]]}, 'evidence', '[False, True]', '[start,'),
    ({'evidence': [None]}, 'evidence', "'null'", '[start,'),
    ({'evidence': [0, 2]}, 'evidence', '0', '[start,'),
    ({'evidence': 'Ada'}, 'evidence', "'Ada'", 'a list of'),
    (
      {'document_path': 'a.txt'},
      'document, document_path',
      'both',
      'exactly one',
    ),
    ({'document': None}, 'document, document_path', 'neither', 'exactly one'),
    (
      {'answer': 'Ada'},
      "'answer'",
      'an unknown field',
      'only question, answers, document, document_path, id, evidence',
    ),
    (b'{"a": 1, "a": 2}', 'line', "the field 'a' twice", 'one JSON object'),
    (b'{"a": ', 'line', 'not JSON: Expecting value at column 7', 'one JSON'),
    (b'[1, 2]', 'line', '[1, 2]', 'one JSON object'),
    (b'"\xff"', 'line', 'byte 0xff at byte 2, not UTF-8', 'in UTF-8'),
    (b'[' * 100_000, 'line', 'nested too deeply', 'one JSON object'),
    (b'9' * 5000, 'line', 'Exceeds the limit (4300 digits)', 'one JSON'),
  ],
  ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_named(tmp_path, record, field, got, expected):
  problem = _only_problem(_write(tmp_path, {}, record, {}))
  assert (problem.line, problem.field) == (2, field)
  assert got in problem.got
  assert expected in problem.expected
  assert len(str(problem)) < len(str(tmp_path)) + 300
  assert str(problem).startswith(f'{tmp_path / "mine.jsonl"}:2: {field}: got ')


@pytest.mark.parametrize(
  ('content', 'got'),
  [
    (None, 'no such file'),
    (b' \n', "'doc.txt', a file without text"),
    (b'abc\xe9', 'byte 0xe9 at position 3'),
  ],
)
def test_what_is_wrong_with_a_linked_document(tmp_path, content, got):
  if content is not None:
    (tmp_path / 'doc.txt').write_bytes(content)
  path = _write(tmp_path, {'document': None, 'document_path': 'doc.txt'})
  problem = _only_problem(path)
  assert problem.field == 'document_path'
  assert got in problem.got
  assert 'doc.txt' in problem.got
  assert 'relative to the JSONL file' in problem.expected


def test_a_path_that_is_no_path_is_a_problem_too(tmp_path):
  for value in ('x' * 5000, 'a\0b', '.', 3, ''):
    path = _write(tmp_path, {'document': None, 'document_path': value})
    assert _only_problem(path).field == 'document_path'


def test_equal_ids_name_both_lines(tmp_path):
  path = _write(tmp_path, {'id': 'a'}, {'id': 'b'}, {'id': 'mine/4'}, {})
  problem = _only_problem(path)
  assert (problem.line, problem.field) == (4, 'id')
  assert problem.got == "'mine/4', which line 3 has too"
  # Also if the first of the two is wrong in another way.
  path = _write(tmp_path, {'id': 'a', 'question': ''}, {'id': 'a'})
  report = own_documents.validate(path)
  assert [p.field for p in report.problems] == ['question', 'id']


@pytest.mark.parametrize('content', [None, b'', b'\n \n\n'])
def test_no_file_or_nothing_in_it(tmp_path, content):
  path = tmp_path / 'mine.jsonl'
  if content is not None:
    path.write_bytes(content)
  problem = _only_problem(path)
  got = 'no such file' if content is None else 'no line'
  assert str(problem).startswith(f'{path}: file: got {got}; expected ')


def test_all_problems_of_a_line_and_of_a_file_are_collected(tmp_path):
  wrong = {'question': '', 'answers': [], 'x': 1, 'evidence': [[0, 99]]}
  path = _write(tmp_path, wrong, {}, *[b'{'] * 150)
  report = own_documents.validate(path)
  assert report.examples == 1
  assert report.problem_count == 4 + 150
  assert len(report.problems) == 100
  assert [p.field for p in report.problems[:5]] == [
    "'x'",
    'question',
    'answers',
    'evidence',
    'line',
  ]
  lines = str(report).splitlines()
  assert len(lines) == 101
  assert lines[-1] == f'{path}: 1 examples, 154 errors, 0 warnings'


def test_answers_that_are_not_in_the_document(tmp_path):
  records = (
    {'answers': ['ADA LOVELACE', 'Byron']},  # one occurs, in another case
    {'answers': ['Byron', 'Shelley']},
    {'answers': ['by  Ada']},
  )
  path = _write(tmp_path, *records)
  report = own_documents.validate(path)
  assert (report.examples, report.problem_count) == (3, 0)
  assert report.warning_count == 2
  assert [w.line for w in report.warnings] == [2, 3]
  assert str(report.warnings[0]) == (
    f"{path}:2: answers: got ['Byron', 'Shelley']; expected one that is in the "
    'document.'
  )
  assert len(list(own_documents.read(path))) == 3
  strict = own_documents.validate(path, strict=True)
  assert (strict.examples, strict.problem_count) == (1, 2)
  assert strict.warning_count == 0
  with pytest.raises(ValueError, match=r'mine\.jsonl:2: answers'):
    list(own_documents.read(path, strict=True))


def test_examples_before_the_first_problem_are_read(tmp_path):
  examples = own_documents.read(_write(tmp_path, {}, b'{', {}))
  assert next(examples).id == 'mine/1'
  with pytest.raises(ValueError, match=r'mine\.jsonl:2: line: got not JSON'):
    next(examples)


def test_a_line_above_the_limit_is_skipped(tmp_path):
  long = {'document': 'Ada ' * 300}
  path = _write(tmp_path, {}, long, {})
  problem = _only_problem(path, max_line_bytes=1000)
  size = len(json.dumps(_RIGHT | long)) + 1  # including its line end
  assert problem.line == 2
  assert problem.got == f'{size:,} bytes'
  assert problem.expected.startswith('at most 1,000 bytes; ')
  assert own_documents.validate(path, max_line_bytes=1000).examples == 2
  assert own_documents.validate(path, max_line_bytes=size).examples == 3


@given(
  st.lists(
    st.fixed_dictionaries(
      {},
      optional={
        'question': st.sampled_from(['q', '', None, 3]),
        'answers': st.sampled_from([['Ada'], ['no'], [], 'Ada', [None]]),
        'document': st.sampled_from(['Ada', '', None, []]),
        'document_path': st.sampled_from(['a.txt', 'none.txt', '', 1]),
        'id': st.sampled_from(['a', 'b', None, 1]),
        'evidence': st.sampled_from([[], [[0, 2]], [[0, 9]], [[]], {}]),
        'context': st.just('x'),
      },
    )
    | st.sampled_from([[], 1, None, 'text']),
    max_size=4,
  ),
  st.booleans(),
)
@settings(max_examples=300)
def test_read_and_validate_agree(tmp_path_factory, records, strict):
  folder = tmp_path_factory.mktemp('own')
  (folder / 'a.txt').write_text('Ada and more')
  path = folder / 'mine.jsonl'
  path.write_text('\n'.join(map(json.dumps, records)))
  report = own_documents.validate(path, strict=strict)
  try:
    examples, message = list(own_documents.read(path, strict=strict)), None
  except ValueError as e:
    examples, message = None, str(e)
  if report.problem_count:
    assert message == str(report.problems[0])
  else:
    assert message is None
    assert len(examples) == report.examples == len(records) > 0
    assert len({e.id for e in examples}) == len(records)


class _Words:
  def encode(self, text):
    return text.split()


def test_the_estimate_counts_chunks_and_answers(tmp_path):
  # 10, 11 and 1 words in chunks of 5: 2 + 3 + 1 chunks, plus an answer each.
  documents = ['w ' * 10, 'w ' * 11, 'w']
  path = _write(tmp_path, *({'document': d} for d in documents))
  assert own_documents.estimate(
    path,
    _Words(),
    chunk_tokens=5,
    memory_tokens=7,
    answer_tokens=3,
    tokens_per_second=2.0,
  ) == own_documents.Estimate(
    documents=3,
    turns=9,
    tokens_read=22,
    tokens_generated=6 * 7 + 3 * 3,
    seconds=11.0,
  )


@pytest.mark.parametrize(
  'wrong', ['chunk_tokens', 'memory_tokens', 'answer_tokens', 'speed']
)
def test_an_estimate_needs_budgets_and_a_speed(tmp_path, wrong):
  wrong = 'tokens_per_second' if wrong == 'speed' else wrong
  arguments = dict.fromkeys(
    ['chunk_tokens', 'memory_tokens', 'answer_tokens', 'tokens_per_second'], 1
  )
  with pytest.raises(ValueError, match=f'{wrong} is 0; expected more than 0'):
    own_documents.estimate(
      _write(tmp_path, {}), _Words(), **(arguments | {wrong: 0})
    )
  with pytest.raises(ValueError, match=r'mine\.jsonl:1: line'):
    own_documents.estimate(_write(tmp_path, b'{'), _Words(), **arguments)


# Not ru_maxrss, which a process inherits from its parent.
_PEAK = """
import re, sys
from memagent_jax.data.files import own_documents
report = own_documents.validate(sys.argv[1])
peak_kb = re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]
print(report.examples, report.problem_count, report.problems[0].got, peak_kb,
      sep=';')
"""


@pytest.mark.slow
def test_a_line_of_a_gigabyte_takes_no_gigabyte(tmp_path):
  path = tmp_path / 'mine.jsonl'
  record = json.dumps(_RIGHT).encode()
  with path.open('wb') as stream:
    stream.write(record + b'\n' + record[:-2])
    for _ in range(1024):
      stream.write(b'x' * 2**20)
    stream.write(b'"}\n' + record)
  run = subprocess.run(
    [sys.executable, '-c', _PEAK, path],
    check=True,
    capture_output=True,
    text=True,
  )
  path.unlink()
  examples, problems, got, peak_kb = run.stdout.strip().split(';')
  size = 2**30 + len(record) + 1
  assert (examples, problems, got) == ('2', '1', f'{size:,} bytes')
  assert int(peak_kb) < 400e3
