"""`experiments.make_data` as a user runs it."""

import json

import pytest

from memagent_jax.data import examples
from tests.data.files import hotpotqa_files


@pytest.fixture
def run(run_command, tmp_path):
  def make_data(*flags, ok=True):
    cache = str(tmp_path / 'cache')
    done = run_command('make_data', *flags, MEMAGENT_CACHE=cache)
    assert (done.returncode == 0) == ok, done.stderr
    assert 'Traceback' not in done.stderr
    return done.stdout if ok else done.stderr + done.stdout

  return make_data


SMALL = ('--task=niah_multikey_1', '--tokenizer=bytes', '--tokens=3000')


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_number_of_workers(run, tmp_path):
  run(*SMALL, '--num_examples=5', '--out=one.jsonl', '--notfrecord')
  run(
    *(*SMALL, '--num_examples=5', '--out=two.jsonl', '--notfrecord'),
    '--workers=2',
  )
  one = (tmp_path / 'one.jsonl').read_bytes()
  assert one == (tmp_path / 'two.jsonl').read_bytes()
  rows = list(examples.read_jsonl(tmp_path / 'one.jsonl'))
  assert [row.id for row in rows] == [
    f'niah_multikey_1/3000/0/{i}' for i in range(5)
  ]
  assert all(2940 <= row.tokens <= 3000 for row in rows)
  assert {row.tokenizer for row in rows} == {'bytes'}


@pytest.mark.slow
def test_hqa_from_a_file_with_tfrecords_and_a_filter(run, tmp_path):
  hotpotqa_files.write(tmp_path / 'set.json', 3)
  answers = [
    {'id': f'ruler_hqa/20/0/q{i}', 'answers': ['Town1']} for i in range(3)
  ]
  (tmp_path / 'answers.jsonl').write_text(
    '\n'.join(map(json.dumps, answers)), encoding='utf-8'
  )
  printed = run(
    '--task=ruler_hqa',
    '--num_paragraphs=20',
    '--tokenizer=bytes',
    '--hotpotqa=set.json',
    '--num_examples=3',
    '--drop_answerable=answers.jsonl',
    '--out=hqa.jsonl',
  )
  rows = list(examples.read_jsonl(tmp_path / 'hqa.jsonl'))
  assert {row.answers for row in rows} == {('Town0',), ('Town2',)}
  assert '1 dropped' in printed and 'each up to 4 times' in printed
  assert (tmp_path / 'hqa.tfrecord').stat().st_size > 1000


def test_own_documents_are_checked_and_estimated(run, tmp_path):
  good = {'question': 'Who?', 'answers': ['Ann'], 'document': 'Ann came. ' * 99}
  (tmp_path / 'good.jsonl').write_text(json.dumps(good), encoding='utf-8')
  run('--validate=good.jsonl')
  printed = run(
    *('--estimate=good.jsonl', '--tokenizer=bytes', '--chunk_tokens=100'),
    *('--memory_tokens=10', '--answer_tokens=5', '--tokens_per_second=1'),
  )
  # 990 bytes are 10 chunks, an answer turn, and 990 seconds.
  assert [line.split()[-1] for line in printed.splitlines()[:3]] == [
    *('1', '11', '990')
  ]
  assert '105 at most' in printed and '0.28' in printed
  bad = good | {'answers': ['Bob']}
  (tmp_path / 'bad.jsonl').write_text(json.dumps(bad), encoding='utf-8')
  assert 'warning' in run('--validate=bad.jsonl')
  assert "got ['Bob']" in run('--validate=bad.jsonl', '--strict', ok=False)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--task=niah', '--out=x'), 'choose from niah_single_1'),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ((*SMALL[:2], '--tokens=300', '--out=x'), 'leave no room'),
        (
          ('--task=qa_2', '--tokenizer=bytes', '--hotpotqa=none', '--out=x'),
          'none: no such file',
        ),
        ((*SMALL, '--num_examples=0', '--out=x'), 'must be at least 1'),
        (('--validate=none.jsonl',), 'no such file'),
        ((*SMALL, '--essays=nowhere', '--out=x'), 'nowhere: no such file'),
        (('--task=own', '--out=x'), 'own documents are not made'),
      )
    ),
  ],
)
@pytest.mark.slow
def test_bad_input_is_one_clear_line(run, flags, message):
  assert message in run(*flags, ok=False)
