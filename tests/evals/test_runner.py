"""A running grid: records, traces, timings; killed, sharded, merged, retried."""

from collections.abc import Callable
import dataclasses
import functools
import json
import re
import time

import pytest

from memagent_jax.agent.prompts import OneTurnTemplate
from memagent_jax.data.benchmarks.registry import Texts
from memagent_jax.evals import eta, records, runner
from memagent_jax.evals.grid import GridBlock
from memagent_jax.evals.methods.memory_agent import MemAgent
from memagent_jax.evals.methods.method import Answered, Method, Result
from memagent_jax.evals.methods.one_turn import OneTurn
from memagent_jax.io import jsonl, workdirs
from memagent_jax.models.weights import huggingface
from tests import tiny_runs

READING = dataclasses.replace(
  tiny_runs.READING, temperature=0.0, question_tokens=90, chunk_tokens=64
)
METHODS = {
  'MemAgent': MemAgent(READING, window_chunks=2),
  'none': OneTurn(
    context='none',
    template=OneTurnTemplate('{document}{question}', '{question}'),
    answer_tokens=5,
    document_tokens=2000,
  ),
}
BLOCKS = (
  GridBlock(('tiny',), ('MemAgent',), ('niah_single_1', 'vt'), (600, 900), 3),
  GridBlock(('tiny',), ('none',), ('vt',), (600, 3000), 2),
)


def evaluate(workdir, directory, **changes):
  """Evaluates the grid with changed arguments; returns the report's lines."""
  lines = []
  runner.evaluate(
    **{
      'workdir': workdir,
      'models': {'tiny': directory},
      'methods': METHODS,
      'blocks': BLOCKS,
      'documents': runner.DocumentsConfig(
        Texts(), directory, template_tokens=0, answer_tokens=5
      ),
      'batch_size': 4,
      'config_text': 'this grid',
      'save_every_seconds': 0.0,
      'report': lines.append,
    }
    | changes
  )
  return lines


@pytest.fixture(scope='module')
def directory(tiny_tokenizer, tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'tiny'
  model = tiny_runs.model(tiny_tokenizer)
  huggingface.save_model(path, model.config, model.params, model.tokenizer)
  return str(path)


@pytest.fixture(scope='module')
def run(directory):
  return lambda workdir, **changes: evaluate(workdir, directory, **changes)


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """The workdir of a grid that was never interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  run(workdir)
  return workdir


def bytes_of(workdir):
  return (workdir / records.RECORDS).read_bytes()


class WatchedProgress:
  """A batch's progress that calls a test before every update."""

  def __init__(self, progress, on_update):
    self._progress, self._on_update = progress, on_update

  @property
  def state(self):
    return self._progress.state

  def update(self, share, state):
    self._on_update()
    self._progress.update(share, state)


@dataclasses.dataclass(frozen=True)
class Watched:
  """A method whose progress a test watches."""

  method: Method
  on_update: Callable[[], None]

  def __getattr__(self, name):
    return getattr(self.method, name)

  def answer(self, model, examples, progress):
    watched = WatchedProgress(progress, self.on_update)
    return self.method.answer(model, examples, watched)


@dataclasses.dataclass(frozen=True)
class Scripted:
  """A method like another one, except that a function answers the examples."""

  method: Method
  answers: Callable

  def __getattr__(self, name):
    return getattr(self.method, name)

  def answer(self, model, examples, progress):
    return self.answers(examples)


def watched(on_update):
  """The methods, with the agent's progress watched."""
  return METHODS | {'MemAgent': Watched(METHODS['MemAgent'], on_update)}


def killed_at(window):
  """The methods; the process dies unsaved in this window of the agent."""
  windows = []

  def die():
    windows.append(None)
    if len(windows) == window:
      raise KeyboardInterrupt

  return watched(die)


# --- Records ---------------------------------------------------------------------


def test_every_record_is_there_once_in_the_grid_s_order(whole):
  lines = list(jsonl.read(whole / records.RECORDS))
  assert [(r['method'], r['task'], r['size'], r['index']) for r in lines] == [
    *(
      ('MemAgent', task, size, i)
      for task in ('niah_single_1', 'vt')
      for size in (600, 900)
      for i in range(3)
    ),
    *(('none', 'vt', 600, i) for i in range(2)),
  ]
  first, last = lines[0], lines[-1]
  assert first['id'] == 'niah_single_1/600/0/0'
  assert 0.98 * 600 <= first['tokens'] <= 600
  assert first['sampling'] == 'greedy' and first['score'] == 0.0
  assert 0 <= first['depth'] <= 1 and first['error'] == ''
  assert sum(first['turns'].values()) >= first['own_tokens'] / 64
  assert first['own_tokens'] == first['read_tokens'] > 400
  assert last['read_tokens'] == 0 < last['own_tokens']


@pytest.mark.slow
def test_eight_devices_read_what_one_reads(
  run, directory, tmp_path, run_on_eight_devices
):
  run(tmp_path / 'one', batch_size=8)
  run_on_eight_devices(f"""
from memagent_jax.sharding import MeshConfig
from tests.evals import test_runner

workdir, directory = {str(tmp_path / 'eight')!r}, {directory!r}
test_runner.evaluate(workdir, directory, batch_size=8, mesh=MeshConfig(4, 2, 1))
""")
  assert bytes_of(tmp_path / 'eight') == bytes_of(tmp_path / 'one')


def test_traces_are_files_that_the_records_name(whole):
  for record in jsonl.read(whole / records.RECORDS):
    if record['method'] == 'none':
      assert record['trace'] == ''
      continue
    first, *lines = jsonl.read(whole / record['trace'])
    assert first['answer'] == record['answer']
    assert first['caps'] == {'chunk_tokens': 64, 'memory_tokens': 6}
    changed = (1 - record['health']['unchanged']) * sum(
      record['turns'].values()
    )
    assert len(lines) == round(changed)


def test_timings_say_what_a_batch_took(whole):
  lines = records.read_timings(whole)
  # The agent: 6 examples of each length in batches of 4; the other method: 2.
  assert len(lines) == 5 and {line['batch_size'] for line in lines} == {4}
  for line in lines:
    assert line['seconds'] > 0 and line['flops'] > 0
    assert line['peak_host_bytes'] > 1e8


def test_what_is_not_run_is_priced(whole):
  (line,) = records.read_not_run(whole)
  assert (line['method'], line['size']) == ('none', 3000)
  assert line['flops'] > 0


def test_the_price_is_in_the_model_s_own_tokens(run, tmp_path):
  block = dataclasses.replace(BLOCKS[1], methods=('full',))
  full = dataclasses.replace(
    METHODS['none'], context='full', prompt_tokens=9000
  )
  options = {'blocks': [block], 'methods': {'full': full}}
  run(tmp_path / 'one', **options)
  (line,) = records.read_not_run(tmp_path / 'one')
  config = tiny_runs.CONFIG
  (short, *_) = records.read_records(tmp_path / 'one')
  own = 3000 * short['own_tokens'] / short['tokens']
  assert line['flops'] == pytest.approx(full.flops(config, own), rel=0.01)
  assert line['tokens'] == 3000


def test_scores_are_those_of_the_task_s_metric(run, tmp_path):
  def right(examples):
    texts = [', '.join(e.answers) for e in examples]
    texts[1] = 'something else'
    return Answered([Result(t, 'eos', 9, 9, {}, 1.0) for t in texts])

  methods = {'MemAgent': Scripted(METHODS['MemAgent'], right)}
  lines = run(tmp_path, blocks=BLOCKS[:1], methods=methods)
  scores = [line['score'] for line in jsonl.read(tmp_path / records.RECORDS)]
  # Every batch has one wrong answer, in second place.
  assert sorted(scores) == [0.0] * 4 + [1.0] * 8
  assert '3/4 right' in lines[0] and lines[-1].startswith('12/12 ')
  assert lines[-1].endswith(' | left 0:00, all 0:00')


# --- Resuming -----------------------------------------------------------------


def test_a_grid_that_is_done_computes_nothing(run, whole):
  before = bytes_of(whole)
  methods = {name: Scripted(method, None) for name, method in METHODS.items()}
  assert run(whole, methods=methods) == []
  assert bytes_of(whole) == before


def test_a_grid_killed_three_times_has_the_same_records(run, whole, tmp_path):
  for window in (2, 4, 9):
    with pytest.raises(KeyboardInterrupt):
      run(tmp_path, methods=killed_at(window))
  # A line as left by a kill in the middle of a write.
  path = tmp_path / records.RECORDS
  path.write_bytes(path.read_bytes() + b'{"model": "ti')
  run(tmp_path)
  assert bytes_of(tmp_path) == bytes_of(whole)
  assert not list((tmp_path / 'progress').iterdir())


def test_a_batch_in_flight_says_how_far_it_is(run, tmp_path, monkeypatch):
  monkeypatch.setattr(eta, '_LINE_EVERY_SECONDS', 0.0)
  first, *_ = lines = run(tmp_path, blocks=BLOCKS[:1])
  assert re.fullmatch(
    r'0/12 MemAgent tiny 900 tokens \d+ % \| left \d+:\d\d, all \d+:\d\d', first
  )
  shares = [float(m) for m in re.findall(r' (\d+) % \|', '\n'.join(lines))]
  assert 0 < shares[0] < shares[1] <= 100


def test_seconds_are_those_of_killed_runs_too(run, tmp_path):
  windows = []

  def slow():
    time.sleep(0.5)
    windows.append(None)
    if len(windows) == 5:
      raise KeyboardInterrupt

  block = GridBlock(('tiny',), ('MemAgent',), ('vt',), (900,), 2)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, blocks=[block], methods=watched(slow))
  run(tmp_path, blocks=[block], methods=watched(slow))
  (line,) = records.read_timings(tmp_path)
  calls = line['read_tokens'] / line['batch_size'] / 64 / 2
  assert line['seconds'] > 0.5 * calls > 4 * 0.5


def test_seconds_of_a_chunk_are_the_median_of_its_batch(run, tmp_path):
  def timed(examples):
    results = [Result('', 'eos', 9, 9, {'eos': 1}, 1.0) for _ in examples]
    return Answered(results, [0.25, 3.0, 0.5])

  methods = {'MemAgent': Scripted(METHODS['MemAgent'], timed)}
  run(tmp_path, blocks=BLOCKS[:1], methods=methods)
  timings = records.read_timings(tmp_path)
  assert {line['chunk_seconds'] for line in timings} == {0.5}


def test_a_full_disk_leaves_the_records_that_were_written(
  run, whole, tmp_path, monkeypatch
):
  append = jsonl.append

  def full(path, objects):
    if path.name == records.RECORDS and path.exists():
      raise OSError(28, 'No space left on device')
    append(path, objects)

  with monkeypatch.context() as patch, pytest.raises(OSError, match='No space'):
    patch.setattr(jsonl, 'append', full)
    run(tmp_path)
  assert len(records.read_records(tmp_path)) == 4
  run(tmp_path)
  assert bytes_of(tmp_path) == bytes_of(whole)


# --- Shards -------------------------------------------------------------------


@pytest.mark.parametrize('apart', [True, False])
def test_shards_joined_are_the_whole(run, whole, tmp_path, apart):
  one = tmp_path / 'one'
  two = tmp_path / 'two' if apart else one
  run(one, shard=(0, 2))
  missing = run(one, merge=[])
  assert int(missing[0].split()[-4]) < 14
  run(two, shard=(1, 2))
  (line,) = run(one, merge=[two] if apart else [])
  assert line.endswith('14 of 14 records')
  assert bytes_of(one) == bytes_of(whole)
  for line in jsonl.read(one / records.RECORDS):
    assert line['trace'] == '' or (one / line['trace']).is_file()
  assert len(records.read_timings(one)) == 5
  # A second merge changes nothing.
  run(one, merge=[two] if apart else [])
  assert bytes_of(one) == bytes_of(whole)
  assert len(records.read_timings(one)) == 5


def test_joined_shards_have_what_the_first_alone_measured(run, tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  run(one, shard=(0, 2))
  jsonl.append(one / records.LIKELIHOOD, [{'model': 'tiny', 'chunks': 3}])
  run(two, shard=(1, 2), merge=[one])
  assert records.read_likelihood(two) == [{'model': 'tiny', 'chunks': 3}]
  assert records.read_not_run(two) == records.read_not_run(one) != []


def test_a_shard_is_one_process_at_a_time(run, tmp_path):
  with workdirs.exclusive(tmp_path / 'lock_0_of_2'):
    with pytest.raises(ValueError, match='another process is at this work'):
      run(tmp_path, shard=(0, 2))
    run(tmp_path, shard=(1, 2))
  run(tmp_path, shard=(0, 2))


def test_a_shard_of_another_grid_is_refused(run, whole, tmp_path):
  other = tmp_path / 'other'
  other.mkdir()
  with pytest.raises(ValueError, match='other: no grid ran here'):
    run(tmp_path / 'one', merge=[other])
  workdirs.claim(other, 'another grid')
  with pytest.raises(ValueError, match='belongs to a run of another config'):
    run(tmp_path / 'one', merge=[other])


# --- Failures -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Flaky(OneTurn):
  """Fails for documents in `failing`, a list that tests change."""

  failing: tuple = ()
  independent_examples = True
  needs_params = False

  def answer(self, model, examples, progress):
    SEEN.append([e.id for e in examples])
    return Answered(
      [
        Result('', 'error', 0, 0, {}, 0.0, error='no server')
        if e.id in FAILING
        else Result(e.answers[0], 'eos', 9, 9, {}, 1.0)
        for e in examples
      ]
    )


SEEN: list = []
FAILING: set = set()


def test_failures_count_as_wrong_and_are_retried_alone(run, tmp_path):
  FAILING.update({'niah_single_1/600/0/1', 'niah_single_1/600/0/2'})
  block = GridBlock(('tiny',), ('flaky',), ('niah_single_1',), (600,), 6)
  retry = functools.partial(
    run, tmp_path, blocks=[block], methods={'flaky': Flaky()}
  )
  lines = retry()
  assert '2/4 right, 2 failed' in lines[0]
  lines = list(jsonl.read(tmp_path / records.RECORDS))
  assert [line['score'] for line in lines] == [1, 0, 0, 1, 1, 1]
  assert [line['error'] for line in lines[:2]] == ['', 'no server']
  # Without the flag a failed example stays failed.
  SEEN.clear()
  assert retry() == [] and not SEEN
  FAILING.remove('niah_single_1/600/0/1')
  retry(retry_failed=True)
  assert SEEN == [['niah_single_1/600/0/1', 'niah_single_1/600/0/2']]
  lines = list(jsonl.read(tmp_path / records.RECORDS))
  assert [line['score'] for line in lines] == [1, 1, 0, 1, 1, 1]


def test_a_retried_record_replaces_its_failure_wherever_it_is(run, tmp_path):
  FAILING.add('niah_single_1/600/0/3')
  block = GridBlock(('tiny',), ('flaky',), ('niah_single_1',), (600,), 6)
  options = {'blocks': [block], 'methods': {'flaky': Flaky()}}
  shard = tmp_path / 'shard'
  run(shard, **options, shard=(0, 1))
  run(tmp_path, **options, merge=[shard])
  FAILING.clear()
  # Two processes on one machine, as --processes starts them.
  for i in range(2):
    run(shard, **options, shard=(i, 2), retry_failed=True)
  run(tmp_path, **options, merge=[shard])
  lines = list(jsonl.read(tmp_path / records.RECORDS))
  assert [line['score'] for line in lines] == [1.0] * 6


def test_another_grid_s_workdir_is_refused(run, whole):
  with pytest.raises(ValueError, match='belongs to a run of another config'):
    run(whole, config_text='another')


def test_names_that_no_file_can_have_are_refused(run, tmp_path, directory):
  with pytest.raises(ValueError, match="name 'a/b'"):
    run(tmp_path, models={'a/b': directory})


def test_more_examples_than_a_task_has(run, tmp_path, directory):
  own = tmp_path / 'own.jsonl'
  own.write_text(
    json.dumps({'question': 'Who?', 'answers': ['Ann'], 'document': 'Ann.'}),
    encoding='utf-8',
  )
  documents = runner.DocumentsConfig(Texts(own=str(own)), directory)
  block = GridBlock(('tiny',), ('MemAgent',), ('own',), examples=2)
  with pytest.raises(ValueError, match=r'own has 1 examples; .* number 2'):
    run(tmp_path / 'run', blocks=[block], documents=documents)
