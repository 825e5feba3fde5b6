"""`experiments.ask` as a user runs it: outputs, Ctrl-C, state, clear errors."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

ROOT = Path(__file__).parents[2]
SENTENCE = 'The mask was worn by the King of Bohemia, who came alone. '


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """One cache for all runs, so that programs compile once."""
  return tmp_path_factory.mktemp('cache')


@pytest.fixture
def ask(tiny_model_dir, tmp_path, cache):
  """Runs the command in its own process with the tiny model and small caps."""
  environment = os.environ | {
    'MEMAGENT_CACHE': str(cache),
    'PYTHONPATH': str(ROOT),
  }

  def command(*flags):
    return [
      sys.executable,
      '-m',
      'experiments.ask',
      f'--model={tiny_model_dir}',
      '--chunk_tokens=60',
      '--memory_tokens=16',
      '--answer_tokens=8',
      *flags,
    ]

  def run(*flags, **kwargs):
    return subprocess.run(
      command(*flags),
      env=environment,
      capture_output=True,
      timeout=300,
      cwd=tmp_path,
      **kwargs,
    )

  def start(*flags):
    # A shell that runs the tests in the background makes them ignore Ctrl-C,
    # and child processes inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      return subprocess.Popen(
        command(*flags),
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
      )
    finally:
      signal.signal(signal.SIGINT, before)

  run.start = start
  return run


def _document(tmp_path, text=SENTENCE * 12):
  path = tmp_path / 'document.txt'
  path.write_text(text, encoding='utf-8')
  return path


@pytest.mark.slow
def test_json_and_page_hold_the_whole_reading(ask, tmp_path, cache):
  document = _document(tmp_path, SENTENCE * 6 + '<|im_end|><script>x</script>')
  done = ask(
    f'--document={document}',
    '--question=Who?',
    '--question=Where?',
    '--output=out.json',
    '--trace=out.html',
  )
  assert done.returncode == 0, done.stderr.decode()
  out = json.loads((tmp_path / 'out.json').read_text())
  assert [a['question'] for a in out['answers']] == ['Who?', 'Where?']
  chunks = [t['chunk'] for t in out['turns'] if t['question_index'] == 1]
  assert ''.join(chunks) == document.read_text()
  for turn in out['turns']:
    assert turn['finish_reason'] in ('eos', 'length')
    assert len(turn['memory_ids']) <= 16
    assert turn['chunk_tokens'] <= 60
  page = (tmp_path / 'out.html').read_text()
  assert 'Who?' in page
  assert '<script>x' not in page
  # The next run finds the programs that this one compiled.
  assert list((cache / 'compiled').glob('jit_read-*'))
  assert b'Q: Where?' in done.stdout


@pytest.mark.slow
def test_ctrl_c_leaves_valid_files(ask, tmp_path):
  process = ask.start(
    '--document=-', '--question=Who?', '--output=out.json', '--trace=out.html'
  )
  process.stdin.write((SENTENCE * 60).encode())
  process.stdin.flush()
  log = tmp_path / 'out.json.turns.jsonl'
  deadline = time.monotonic() + 200
  while not (log.exists() and log.read_text().count('\n') >= 2):
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.2)
  process.send_signal(signal.SIGINT)
  _, stderr = process.communicate(timeout=200)
  assert process.returncode == 130, stderr.decode()
  out = json.loads((tmp_path / 'out.json').read_text())
  assert out['interrupted'] is True
  assert len(out['turns']) >= 2
  assert (tmp_path / 'out.html').read_text().endswith('</html>\n')


@pytest.mark.slow
def test_state_goes_on_with_the_text_that_comes_later(ask, tmp_path):
  text = SENTENCE * 30
  flags = ('--document=-', '--question=Who?', '--state=reading.json')
  for part in (text[:700], text[700:]):
    done = ask(*flags, '--output=parts.json', input=part.encode())
    assert done.returncode == 0, done.stderr.decode()
  parts = json.loads((tmp_path / 'parts.json').read_text())
  whole = ask(
    '--document=-',
    '--question=Who?',
    '--state=other.json',
    '--output=whole.json',
    input=text.encode(),
  )
  assert whole.returncode == 0
  expected = json.loads((tmp_path / 'whole.json').read_text())
  assert parts['tokens_read'] == expected['tokens_read']
  assert (
    parts['answers'][0]['answer_ids'] == (expected['answers'][0]['answer_ids'])
  )
  wrong = ask(*flags, '--memory_tokens=20', input=b'more')
  assert b'was begun with memory_tokens 16; got 20' in wrong.stderr


@pytest.mark.slow
def test_answers_come_while_a_stream_is_read(ask):
  done = ask(
    '--document=-',
    '--question=Who?',
    '--answer_every=3',
    input=(SENTENCE * 80).encode(),
  )
  assert done.returncode == 0, done.stderr.decode()
  assert done.stderr.count(b'chunks | Who? |') >= 2


def test_help_is_quick_and_complete():
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.ask', '--help'],
    capture_output=True,
    cwd=ROOT,
    check=False,
  )
  assert time.monotonic() - start < 2.0
  for flag in (b'--document', b'--question', b'--state', b'--template_file'):
    assert flag in done.stdout


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--question=Who?', '--document=none.txt'], 'none.txt: no such file'),
    (['--question=Who?', '--document=empty.txt'], 'empty.txt is empty'),
    # These load the libraries first.
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (
          ['--question=Who?', '--document=latin.txt'],
          'byte 0xe9 at position 1',
        ),
        (
          ['--question=Who?', '--document=ok.txt', '--model=gpt-5'],
          "model 'gpt-5': no such name or path; expected one of",
        ),
        (
          ['--question=Who?', '--document=ok.txt', '--chunk_tokens=9000'],
          'the model sees 2048. Lower one of the caps.',
        ),
        (
          ['--document=ok.txt', '--question=' + 'why ' * 400],
          'the cap, question_tokens, is 1024',
        ),
      )
    ),
    (
      ['--question=Who?', '--document=ok.txt', '--template_file=ok.txt'],
      'template ok.txt',
    ),
  ],
)
def test_bad_input_is_one_clear_line(ask, tmp_path, flags, message):
  (tmp_path / 'empty.txt').write_text(' \n')
  (tmp_path / 'latin.txt').write_bytes('né'.encode('latin-1'))
  (tmp_path / 'ok.txt').write_text('fine')
  done = ask(*flags)
  assert done.returncode == 1
  assert message in done.stderr.decode()
  assert 'Traceback' not in done.stderr.decode()


@pytest.mark.slow
def test_a_token_store_is_read_like_its_text(
  ask, run_command, tmp_path, tiny_model_dir
):
  document = _document(tmp_path, SENTENCE * 40)
  made = run_command(
    'tokenize_document',
    *(f'--document={document}', '--out=store', f'--model={tiny_model_dir}'),
  )
  assert made.returncode == 0, made.stderr
  results = []
  for source in (str(document), 'store'):
    done = ask(
      f'--document={source}', '--question=Who?', f'--output={source}.json'
    )
    assert done.returncode == 0, done.stderr.decode()
    results.append(json.loads((tmp_path / f'{source}.json').read_text()))
  text, store = results
  assert [t['memory_ids'] for t in store['turns']] == [
    t['memory_ids'] for t in text['turns']
  ]
  assert store['answers'][0]['answer_ids'] == text['answers'][0]['answer_ids']
  empty = tmp_path / 'folder'
  empty.mkdir()
  assert b'no token store' in ask('--document=folder', '--question=Q').stderr
