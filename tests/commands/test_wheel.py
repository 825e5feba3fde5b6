"""The wheel alone can train, evaluate, report, ask and make data."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).parents[2]
# The run `demo_grpo` and the grid `demo_lengths`, as small as they can be.
TRAIN = (
  'STEPS = 1',
  'rollouts.RolloutConfig.documents_per_step = 2',
  'rollouts.RolloutConfig.rollouts = 2',
  'learned/needle_documents.needle_documents.chunks = 1',
)
EVALUATE = (
  "runner.evaluate.models = {'after RL': 'memagent-tiny'}",
  "grid.GridBlock.models = ['after RL']",
  "grid.GridBlock.tasks = ['niah_single_1']",
  'short/grid.GridBlock.sizes = [1]',
  'short/grid.GridBlock.examples = 2',
  'runner.evaluate.batch_size = 2',
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel of this checkout, built from a copy."""
  source = tmp_path_factory.mktemp('source')
  for name in ('setup.py', 'pyproject.toml', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('memagent_jax', 'gin_configs'):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  folder = tmp_path_factory.mktemp('wheel')
  _pip('wheel', '--no-build-isolation', f'--wheel-dir={folder}', str(source))
  (path,) = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def memagent(wheel, tmp_path_factory):
  """Runs a command of the installed wheel in an empty folder."""
  target = tmp_path_factory.mktemp('target')
  _pip('install', f'--target={target}', str(wheel))
  folder = tmp_path_factory.mktemp('empty')

  def run(*arguments, code=0):
    done = subprocess.run(
      [sys.executable, '-m', 'memagent_jax.commands.cli', *arguments],
      cwd=folder,
      # The TPU compiler, if the tests have one, looks for a TPU.
      env={k: v for k, v in os.environ.items() if not k.startswith('TPU_')}
      | {
        'PYTHONPATH': str(target),
        'MEMAGENT_CACHE': str(folder / 'cache'),
        # Programs run for only a few seconds.
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
      },
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    assert done.returncode == code, done.stderr
    return done

  run.folder = folder
  return run


def _pip(*arguments):
  subprocess.run(
    [*(sys.executable, '-m', 'pip', *arguments), '--quiet', '--no-deps'],
    check=True,
  )


def _bindings(*bindings):
  return [f'--gin_bindings={binding}' for binding in bindings]


@pytest.mark.slow
def test_it_holds_what_runs_need_and_no_results(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    (entry,) = [name for name in names if name.endswith('entry_points.txt')]
    assert b'memagent = memagent_jax.commands.cli:main' in archive.read(entry)
  assert {name.partition('/')[0] for name in names} == {
    *('memagent_jax', Path(entry).parent.name),
  }
  gin = [name for name in names if name.endswith('.gin')]
  assert len(gin) == len(list((ROOT / 'gin_configs').rglob('*.gin')))
  assets = {
    f'memagent_jax/{path.relative_to(ROOT / "memagent_jax").as_posix()}'
    for path in (ROOT / 'memagent_jax/assets').rglob('*')
    if path.is_file()
  }
  assert assets <= set(names)
  assert not [name for name in names if name.endswith(('.png', 'curve.jsonl'))]
  assert wheel.stat().st_size < 10e6


@pytest.mark.slow
def test_the_overview_comes_from_the_wheel(memagent):
  assert 'make-data' in memagent('--help').stdout
  # Errors about gin files name the folder searched: not the checkout's.
  done = memagent(
    'compare-objectives', '--gin_file=zzz', '--gin_file=y', code=1
  )
  (line,) = done.stderr.splitlines()
  assert line.endswith('target0/memagent_jax/gin_configs.')


@pytest.mark.slow
def test_it_trains_evaluates_and_reports_in_any_folder(memagent):
  done = memagent(
    *('train', '--gin_file=demo_grpo', '--workdir=grpo'), *_bindings(*TRAIN)
  )
  assert done.stdout.startswith('step 0  reward/mean') and not done.stderr
  assert (memagent.folder / 'grpo/model/model.safetensors').is_file()
  done = memagent(
    *('evaluate', '--gin_file=demo_lengths', '--workdir=lengths'),
    *(_bindings(*EVALUATE)),
    f'--processes={min(2, len(os.sched_getaffinity(0)))}',
  )
  assert '2/2 ' in done.stdout and not done.stderr
  done = memagent('report', '--workdir=lengths')
  assert 'page: lengths/report/report.html' in done.stdout and not done.stderr


@pytest.mark.slow
def test_it_asks_and_makes_data_in_any_folder(memagent):
  done = memagent(
    *('ask', '--model=memagent-tiny', '--document=big_stone_gap'),
    *('--question=Who directed it?', '--max_characters=600'),
    *('--chunk_tokens=256', '--memory_tokens=8', '--answer_tokens=4'),
    '--output=reading.json',
  )
  assert 'Q: Who directed it?' in done.stdout
  assert max(map(len, done.stderr.splitlines()[1:])) <= 80
  reading = json.loads((memagent.folder / 'reading.json').read_text())
  assert reading['turns'][0]['chunk'].startswith('Just Another Romantic')
  memagent(
    *('make-data', '--task=niah_single_2', '--tokens=600', '--num_examples=1'),
    *('--tokenizer=memagent-tiny-tokenizer', '--out=data.jsonl'),
  )
  (line,) = (memagent.folder / 'data.jsonl').read_text().splitlines()
  example = json.loads(line)
  assert example['source'] == 'adventures_of_sherlock_holmes.txt.gz'
  assert example['tokenizer'] == 'memagent-tiny-tokenizer'
