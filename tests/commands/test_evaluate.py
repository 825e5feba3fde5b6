"""The commands `evaluate` and `report`, as a user starts them."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

ROOT = Path(__file__).parents[2]
GRID = """
from __gin__ import dynamic_registration
import memagent_jax.commands.runs as runs
import memagent_jax.data.benchmarks.registry as registry
import memagent_jax.evals.grid as grid
import memagent_jax.evals.runner as runner
import memagent_jax.evals.methods.memory_agent as memory_agent
import memagent_jax.evals.methods.one_turn as one_turn
import memagent_jax.agent.prompts as prompts
import memagent_jax.agent.config as config

SEED = 0

runs.run.start = @runner.evaluate
runner.evaluate.models = {'tiny': 'MODEL'}
runner.evaluate.methods = {
    'MemAgent': @memory_agent.MemAgent(),
    'recent': @one_turn.OneTurn(),
}
runner.evaluate.batch_size = 4
runner.evaluate.blocks = [@grid.GridBlock()]
runner.evaluate.documents = @runner.DocumentsConfig()
runner.DocumentsConfig.texts = @registry.Texts()
runner.DocumentsConfig.counted_with = 'MODEL'
runner.DocumentsConfig.answer_tokens = 8
runner.evaluate.save_every_seconds = 0.0
memory_agent.MemAgent.window_chunks = 2
config.ReadingConfig.template = @prompts.Template()
prompts.Template.memory_turn = '{question}|{memory}|{chunk}:'
prompts.Template.answer_turn = '{question}|{memory}:'
prompts.Template.empty_memory = '-'
memory_agent.MemAgent.reading = @config.ReadingConfig()
config.ReadingConfig.chunk_tokens = 100
config.ReadingConfig.memory_tokens = 12
config.ReadingConfig.answer_tokens = 8
config.ReadingConfig.question_tokens = 100
one_turn.OneTurn.context = 'recent'
one_turn.OneTurn.answer_tokens = 8
grid.GridBlock.models = ['tiny']
grid.GridBlock.methods = ['MemAgent', 'recent']
grid.GridBlock.tasks = ['niah_single_1', 'vt']
grid.GridBlock.sizes = [600, 1200, 6000]
grid.GridBlock.examples = 3
grid.GridBlock.seeds = [%SEED]
"""


@pytest.fixture
def grid_file(tmp_path, tiny_model_dir):
  path = tmp_path / 'grid.gin'
  path.write_text(GRID.replace('MODEL', str(tiny_model_dir)), encoding='utf-8')
  return path


def command(grid_file, workdir, *flags):
  return [
    *(sys.executable, '-m', 'experiments.evaluate', f'--gin_file={grid_file}'),
    *(f'--workdir={workdir}', *flags),
  ]


def evaluate(grid_file, workdir, *flags, ok=True):
  done = subprocess.run(
    command(grid_file, workdir, *flags),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert (done.returncode == 0) == ok, done.stderr
  return done.stdout if ok else done.stderr


def killed(grid_file, workdir, *flags, at_bytes):
  """Starts the grid; kills it once its files have grown by `at_bytes`."""

  def written():
    return sum(
      path.stat().st_size for path in workdir.rglob('*.json*') if path.is_file()
    )

  before = written()
  with subprocess.Popen(
    command(grid_file, workdir, *flags),
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  ) as process:
    while process.poll() is None:
      try:
        grown = written() - before
      except FileNotFoundError:  # was just replaced
        continue
      if grown > at_bytes:
        os.kill(process.pid, signal.SIGKILL)
      time.sleep(0.005)
  return process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_grid_killed_three_times_equals_one_that_was_not(grid_file, tmp_path):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  printed = evaluate(grid_file, whole)
  assert '36/36' in printed and 'niah_single_1, greedy' in printed
  # In the first batch, right after it, and later.
  kills = [killed(grid_file, cut, at_bytes=n) for n in (500, 4000, 6000)]
  assert kills == [True, True, True]
  evaluate(grid_file, cut)
  assert (cut / 'records.jsonl').read_bytes() == (
    whole / 'records.jsonl'
  ).read_bytes()


@pytest.mark.slow
def test_processes_and_shards_make_the_same_records(grid_file, tmp_path):
  whole, both = tmp_path / 'whole', tmp_path / 'both'
  evaluate(grid_file, whole)
  if len(os.sched_getaffinity(0)) > 1:
    # With other numbers of cores, a record's last bits may differ, not its tokens.
    # Both children die with the process that started them.
    assert killed(grid_file, both, '--processes=2', at_bytes=2000)
    printed = evaluate(grid_file, both, '--processes=2')
    assert '36 of 36 records' in printed
    assert (both / 'records.jsonl').read_bytes() == (
      whole / 'records.jsonl'
    ).read_bytes()
  parts = [tmp_path / f'part{i}' for i in range(2)]
  for i, part in enumerate(parts):
    evaluate(grid_file, part, f'--shard={i}/2')
  printed = evaluate(
    grid_file, tmp_path / 'all', *(f'--merge={p}' for p in parts)
  )
  assert '36 of 36 records' in printed
  joined = (tmp_path / 'all' / 'records.jsonl').read_bytes()
  assert joined == (whole / 'records.jsonl').read_bytes()


@pytest.mark.slow
def test_a_report_of_a_part_and_a_seed_of_ones_own(
  grid_file, tmp_path, run_command
):
  workdir = tmp_path / 'run'
  bindings = ('--gin_bindings=grid.GridBlock.sizes = [600]', '--seed=5')
  printed = evaluate(grid_file, workdir, *bindings)
  assert '12/12' in printed
  assert '"seed": 5' in (workdir / 'records.jsonl').read_text(encoding='utf-8')
  done = run_command('report', f'--workdir={workdir}', '--title=Mine')
  assert done.returncode == 0, done.stderr
  page = (workdir / 'report' / 'report.html').read_text(encoding='utf-8')
  assert '<h1>Mine</h1>' in page and 'recent' in done.stdout
  # The same folder with another grid.
  error = evaluate(grid_file, workdir, ok=False)
  (line,) = [x for x in error.splitlines() if x.startswith('error:')]
  assert 'belongs to a run of another config' in line
  assert error.endswith('\nUse another workdir.\n')


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ["--gin_bindings=grid.GridBlock.tasks=['niah']"],
      'choose from niah_single_1',
    ),
    (['--shard=2'], '--shard is'),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (
          ["--gin_bindings=grid.GridBlock.methods=['rag']"],
          'choose from MemAgent, recent',
        ),
        (['--gin_bindings=grid.GridBlock.size=[8]'], 'size'),
        (['--shard=2/2'], 'shard 2/2: expected an index'),
        (['--processes=999'], '--processes is 999; this machine has'),
        (['--merge=nowhere'], 'nowhere: no grid ran here'),
      )
    ),
  ],
)
@pytest.mark.slow
def test_bad_flags_are_one_clear_line(grid_file, tmp_path, flags, message):
  error = evaluate(grid_file, tmp_path / 'run', *flags, ok=False)
  last = error.strip().splitlines()[-1]
  assert last.startswith('error:') and message in last


@pytest.mark.slow
def test_a_report_of_nothing_says_so(tmp_path, run_command):
  done = run_command('report', f'--workdir={tmp_path}')
  assert done.returncode == 1 and 'no records' in done.stderr
