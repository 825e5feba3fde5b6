"""`experiments.make_data` as a user runs it."""

import json

import pytest

from memagent_jax.data import examples, tfrecords
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
  written = list(examples.read_jsonl(tmp_path / 'one.jsonl'))
  assert [example.id for example in written] == [
    f'niah_multikey_1/3000/0/{i}' for i in range(5)
  ]
  assert all(2940 <= example.tokens <= 3000 for example in written)
  assert {example.tokenizer for example in written} == {'bytes'}


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
  written = list(examples.read_jsonl(tmp_path / 'hqa.jsonl'))
  assert {example.answers for example in written} == {('Town0',), ('Town2',)}
  assert '1 dropped' in printed and 'each up to 4 times' in printed
  assert (tmp_path / 'hqa.tfrecord').stat().st_size > 1000
  records = tfrecords.TFRecordExamples(tmp_path / 'hqa.tfrecord')
  assert [record.document for record in records] == [
    example.document for example in written
  ]


@pytest.mark.slow
def test_upstream_files_are_converted(run, tmp_path):
  records = [
    {
      'prompt': [{'role': 'user', 'content': f'Which island is {i}?'}],
      'context': f'Document 1:\nIsland {i} is Skye.',
      'reward_model': {'ground_truth': ['Skye', 'Isle of Skye']},
      'extra_info': {'index': 10 + i},
    }
    for i in range(3)
  ]
  (tmp_path / 'train.json').write_text(json.dumps(records), encoding='utf-8')
  printed = run('--upstream=train.json', '--out=all.jsonl')
  written = list(examples.read_jsonl(tmp_path / 'all.jsonl'))
  assert written == [
    examples.Example(
      id=f'train/{i + 1}/{10 + i}',
      task='hotpotqa_published',
      document=f'Document 1:\nIsland {i} is Skye.',
      question=f'Which island is {i}?',
      answers=('Skye', 'Isle of Skye'),
      source='train.json',
    )
    for i in range(3)
  ]
  assert 'all.jsonl: 3 examples' in printed
  assert 'all.tfrecord: the same 3 as TFRecords' in printed
  two = (
    *('--upstream=train.json', '--num_examples=2'),
    *('--out=two.jsonl', '--notfrecord'),
  )
  run(*two)
  assert list(examples.read_jsonl(tmp_path / 'two.jsonl')) == written[:2]


@pytest.mark.slow
def test_upstream_files_of_paragraph_numbers(run, tmp_path):
  """They need the whole dev set of HotpotQA."""
  record = {'input': 'Who?', 'context': [4, 66_634], 'answers': ['Ann']}
  (tmp_path / 'eval.json').write_text(json.dumps([record]), encoding='utf-8')
  out = '--out=eval.jsonl'
  assert '--hotpotqa=hotpot_dev_distractor_v1.json' in run(
    '--upstream=eval.json', out, ok=False
  )
  dev = [
    {'context': [[f'T{i:05}', ['It is so.']] for i in range(start, start + 5)]}
    for start in range(0, 66_635, 5)
  ]
  (tmp_path / 'dev.json').write_text(json.dumps(dev), encoding='utf-8')
  run('--upstream=eval.json', '--hotpotqa=dev.json', out)
  (example,) = examples.read_jsonl(tmp_path / 'eval.jsonl')
  assert example.document == (
    'Document 1:\nT00004\nIt is so.\n\nDocument 2:\nT66634\nIt is so.'
  )


def test_own_documents_are_checked_and_estimated(run, tmp_path):
  good = {'question': 'Who?', 'answers': ['Ann'], 'document': 'Ann came. ' * 99}
  (tmp_path / 'good.jsonl').write_text(json.dumps(good), encoding='utf-8')
  run('--validate=good.jsonl')
  printed = run(
    *('--estimate=good.jsonl', '--tokenizer=bytes', '--chunk_tokens=100'),
    *('--memory_tokens=10', '--answer_tokens=5', '--tokens_per_second=1'),
  )
  # 990 bytes make 10 chunks and an answer turn, and take 990 seconds.
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
        (('--upstream=none', '--out=x'), 'none: no such file'),
        (('--out=x',), 'one of --task and --upstream is needed'),
        (('--upstream=x', '--task=vt', '--out=x'), 'one of --task and'),
        (('--upstream=x',), '--out is needed'),
      )
    ),
  ],
)
@pytest.mark.slow
def test_bad_input_is_one_clear_line(run, flags, message):
  assert message in run(*flags, ok=False)
