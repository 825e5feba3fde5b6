"""Gin files of runs: they parse, and mistakes in them are reported."""

import dataclasses
from pathlib import Path
import re
import subprocess

from absl import flags
from absl.testing import flagsaver
import gin
import pytest

from memagent_jax.commands import runs, train
from memagent_jax.evals import grid, runner
from memagent_jax.io import workdirs
from memagent_jax.train.train_state import OptimizerConfig
from tests import tiny_runs

ROOT = Path(__file__).parents[2]
RUNS = sorted(
  path
  for name in ('train', 'eval')
  for path in (ROOT / 'gin_configs' / name).iterdir()
)


@pytest.fixture(autouse=True)
def clean_gin():
  gin.clear_config(clear_constants=True)
  yield
  gin.clear_config(clear_constants=True)


@pytest.mark.parametrize('path', RUNS, ids=lambda path: path.stem)
def test_every_run_parses_and_binds_its_start(path):
  gin.parse_config_file(str(path))
  assert gin.query_parameter('memagent_jax.commands.runs.run.start') is not None


@pytest.mark.parametrize('path', RUNS, ids=lambda path: path.stem)
def test_the_optimizer_of_every_training_can_be_made(path):
  gin.parse_config_file(str(path))
  start = gin.query_parameter('memagent_jax.commands.runs.run.start')
  if start.selector.endswith('trainer.train'):
    assert isinstance(runs.bound('optimizer'), OptimizerConfig)


@pytest.mark.parametrize('path', RUNS, ids=lambda path: path.stem)
def test_every_grid_can_be_planned(path):
  gin.parse_config_file(str(path))
  start = gin.query_parameter('memagent_jax.commands.runs.run.start')
  if not start.selector.endswith('.runner.evaluate'):
    return
  methods, models = runs.bound('methods'), runs.bound('models')
  window = dataclasses.replace(tiny_runs.CONFIG, max_positions=2048)
  plan = grid.plan(
    runs.bound('blocks'), methods, dict.fromkeys(models, window), 16
  )
  used = {batch.cell.method for batch in plan.batches}
  assert used & {'MemAgent', 'remote'} and used <= set(methods)
  sampled = 'temperature 0.7, top-p 0.95'
  expected = sampled if path.stem == 'eval_released' else 'greedy'
  assert {methods[name].sampling for name in used} == {expected}
  assert isinstance(runs.bound('documents'), runner.DocumentsConfig)


def test_the_papers_lengths_of_ruler_hqa():
  # Source: MemAgent, arXiv 2507.02259, section 4: 7K to 3.5M tokens.
  gin.parse_config_file(str(ROOT / 'gin_configs/eval/eval_ruler_hqa.gin'))
  assert gin.query_parameter('memagent_jax.evals.grid.GridBlock.sizes') == [
    *(50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600)
  ]


def test_the_answer_only_run_changes_one_thing_and_ends_earlier():
  text = (ROOT / 'gin_configs/train/tiny_grpo_answer_only.gin').read_text()
  bindings = [
    line
    for line in text.splitlines()
    if line and not line.startswith(('#', 'from ', 'import ', 'include '))
  ]
  assert "include 'gin_configs/train/tiny_grpo.gin'" in text
  # No schedule depends on the number of steps.
  base = (ROOT / 'gin_configs/train/tiny_grpo.gin').read_text()
  assert re.findall(r'.*%STEPS', base) == ['  num_steps = %STEPS']
  assert bindings == [
    'STEPS = 160',
    'rollouts.RolloutConfig.learn_memory_turns = False',
  ]


def test_a_configuration_is_one_text_whatever_the_order_of_its_imports(
  tmp_path, monkeypatch
):
  # Gin's set of imports is ordered by hashes, which differ between processes.
  path = tmp_path / 'two_names.gin'
  path.write_text(
    'from __gin__ import dynamic_registration\n'
    'import memagent_jax.rl.grpo\n'
    'import memagent_jax.rl.grpo as objective\n'
    'memagent_jax.rl.grpo.GrpoConfig.clip_low = 0.1\n'
  )
  gin.parse_config_file(str(path))
  imports = list(gin.config._IMPORTS)
  texts = set()
  for order in (imports, imports[::-1]):
    monkeypatch.setattr(gin.config, '_IMPORTS', order)
    texts.add(runs._config_text())
  assert len(texts) == 1


# --- Error messages -----------------------------------------------------------


@pytest.fixture
def error_of(tmp_path, tiny_model_dir):
  """The line that ends a run of the tiny model with changed flags."""

  def failed(*bindings, file='gin_configs/train/tiny_grpo.gin'):
    flags.FLAGS.mark_as_parsed()
    bindings = [
      f"pretrained.load_model.name_or_dir = '{tiny_model_dir}'",
      *bindings,
    ]
    with (
      flagsaver.flagsaver(
        gin_file=[str(file)],
        gin_bindings=bindings,
        workdir=str(tmp_path / 'run'),
      ),
      pytest.raises(SystemExit) as e,
    ):
      train.main(['train'])
    # An exit code that is text goes to stderr; the status is then 1.
    assert e.value.code.startswith('error: ')
    return e.value.code.removeprefix('error: ')

  return failed


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    (
      'rollouts.RolloutConfig.rollouts = 1',
      'rollouts is 1; a group needs 2 or more',
    ),
    (
      'rollouts.RolloutConfig.mini_batches = 3',
      '16 documents do not divide into 3 mini-batches',
    ),
    (
      'config.ReadingConfig.chunk_tokens = 4000',
      'a memory turn needs ',
    ),
    (
      'rollouts.Rollouts.reading = @greedy/config.ReadingConfig()',
      'training rollouts have temperature 0.0',
    ),
    (
      'learned/needle_documents.needle_documents.tasks_and_rates = {}',
      'tasks none; choose from niah_single_1',
    ),
    (
      "learned/needle_documents.needle_documents.tasks_and_rates = {'niah': 1.0}",
      "tasks ['niah']; choose from niah_single_1",
    ),
    (
      "learned/needle_documents.needle_documents.essays = ['none.txt']",
      'none.txt',
    ),
    ('trainer.train.num_steps = None', 'num_steps is None'),
    ("pretrained.load_model.name_or_dir = 'none'", "model 'none': no such"),
    ('grpo.GrpoConfig.clip_low = 2.0', 'clip_low is 2.0; expected more than 0'),
    ('rollouts.Rollouts.document = 3', "'document'; did you mean documents?"),
    ('rollouts.Rollout.rollouts = 3', 'did you mean rollouts.Rollouts?'),
    ('trainer.train.source = @rollots.Rollouts', 'mean rollouts.Rollouts?'),
    (
      'import memagent_jax.rl.rollout',
      'did you mean memagent_jax.rl.rollouts?',
    ),
    ('import nothing_like_it', "No module named 'nothing_like_it'"),
    (
      'trainer.train.num_steps = %STEP',
      "'STEP/gin.macro'; did you mean STEPS?",
    ),
    ('STEP = 3', 'nothing refers to the macro STEP; did you mean STEPS?'),
    (
      'sampeld/config.ReadingConfig.temperature = 1.0',
      'nothing refers to the scope sampeld; did you mean sampled?',
    ),
    (
      "include 'gin_configs/runs/tiny_grpo.gin'",
      'did you mean gin_configs/train/tiny_grpo.gin?',
    ),
    ('config.ReadingConfig.chunk_tokens = %gin.REQUIRED', 'chunk_tokens'),
  ],
)
def test_settings_that_cannot_be_run(error_of, tmp_path, binding, message):
  error = error_of(binding)
  assert message in error
  assert '\n' not in error
  assert not (tmp_path / 'run').exists()


def test_a_window_that_is_too_small_is_counted_out(error_of):
  error = error_of('config.ReadingConfig.chunk_tokens = 4000')
  # The tiny model has a window of 2,048 tokens.
  for part in ('4000 (chunk_tokens)', '64 (memory_tokens)', 'sees 2048'):
    assert part in error


def test_a_file_that_starts_nothing(error_of):
  assert 'start' in error_of(file='gin_configs/objectives/paper.gin')


def test_a_workdir_of_another_run(error_of, tmp_path):
  workdirs.claim(tmp_path / 'run', 'trainer.train.num_steps = 7\n')
  error = error_of()
  assert '- that run, + this one' in error.splitlines()[0]
  assert '-trainer.train.num_steps = 7' in error.splitlines()
  assert error.endswith('\nUse another workdir.')


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'process_id': 0}, 'are of --distributed; give it as well'),
    (
      {'distributed': True, 'coordinator': 'host:1', 'process_id': 0},
      "('host:1', None, 0); expected all three, or none",
    ),
  ],
)
def test_processes_that_are_half_told(error_of, given, message):
  with flagsaver.flagsaver(**given):
    assert message in error_of()


def test_launch_files_start_runs_that_are_there():
  """Each is valid shell, and its run and its mesh exist."""
  files = sorted((ROOT / 'experiments/launch').glob('*.s*'))
  assert len(files) == 3
  for path in files:
    text = path.read_text()
    subprocess.run(['bash', '-n', str(path)], check=True)
    assert '--distributed' in text
    run, mesh = (
      re.search(rf'^{name}=(\w+)$', text, re.MULTILINE)[1]
      for name in ('RUN', 'MESH')
    )
    assert (ROOT / f'gin_configs/train/{run}.gin').exists()
    assert (ROOT / f'gin_configs/meshes/{mesh}.gin').exists()


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--gin_bindings=trainer.train.num_step = 2', 'did you mean num_steps?'),
    pytest.param(
      '--gin_bindings=rollouts.RolloutConfig.rollouts = 1',
      'rollouts is 1',
      marks=pytest.mark.slow,
    ),
  ],
)
@pytest.mark.slow
def test_a_command_ends_with_one_line(
  run_command, tmp_path, tiny_model_dir, flag, message
):
  done = run_command(
    'train',
    '--gin_file=gin_configs/train/tiny_grpo.gin',
    f'--workdir={tmp_path}/run',
    f"--gin_bindings=pretrained.load_model.name_or_dir = '{tiny_model_dir}'",
    flag,
    cwd=ROOT,
  )
  assert done.returncode == 1
  assert 'Traceback' not in done.stderr
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert message in line
  assert done.stderr.splitlines()[-1] == line
  assert not (tmp_path / 'run').exists()


def test_another_folder_than_the_root_has_the_same_files(run_command):
  files = ('--gin_file=paper', '--gin_file=gin_configs/objectives/dapo.gin')
  done = run_command('compare_objectives', *files)
  assert done.returncode == 0, done.stderr
  assert 'kl_coefficient' in done.stdout and not done.stderr
