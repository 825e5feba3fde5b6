"""`memagent` as a user types it: the overview, and a line for every mistake."""

import os
from pathlib import Path
import subprocess
import sys
import time

import pytest

from memagent_jax.commands import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def memagent(tmp_path):
  """Runs `python -m memagent_jax` in an empty folder."""

  def run(*arguments, **environment):
    return subprocess.run(
      [sys.executable, '-m', 'memagent_jax', *arguments],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(ROOT)} | environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  return run


def test_the_overview_names_every_command_and_is_quick(memagent):
  start = time.monotonic()
  done = memagent('--help')
  assert time.monotonic() - start < 2.0
  assert done.returncode == 0 and done.stdout == memagent().stdout
  lines = done.stdout.splitlines()
  assert max(map(len, lines)) < 80
  listed = [line.split()[0] for line in lines[2:] if line[2] != ' ']
  assert listed == [name.replace('_', '-') for name in cli.COMMANDS]
  assert len(listed) == 15 and 'Trains as a gin file says' in done.stdout
  doors = {path.stem for path in (ROOT / 'experiments').glob('[a-z]*.py')}
  assert doors == set(cli.COMMANDS)


@pytest.mark.parametrize('name', ['import-weights', 'import_weights'])
def test_help_of_a_command_has_its_own_flags(memagent, name):
  done = memagent(name, '--help')
  assert done.returncode == 0 and not done.stderr
  assert done.stdout.startswith('Writes a model as a Hugging Face directory')
  assert '--source' in done.stdout and '--alsologtostderr' not in done.stdout


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['aks'], 'unknown command aks; did you mean ask?'),
    (['make-dat'], 'unknown command make-dat; did you mean make-data?'),
    (['xyz'], 'unknown command xyz; see memagent --help.'),
    (
      ['ask', '--documnt=a'],
      'unknown flag --documnt; did you mean --document?',
    ),
    (['ask', '--xyz'], 'unknown flag --xyz; see memagent ask --help.'),
    (['ask', '--seed=x'], 'flag --seed=x: invalid literal for int()'),
    (['ask'], '--document and --question are needed. See memagent ask --help.'),
    (
      ['import-weights', '--out=x'],
      'flag --source=None: Flag --source must hav',
    ),
    (['report', 'x'], '--workdir is needed, and no other arguments. See memag'),
  ],
)
def test_a_slip_is_one_line(memagent, arguments, message):
  done = memagent(*arguments)
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'error: {message}')


@pytest.mark.slow
def test_slips_in_gin_are_one_line_and_no_library_says_a_word(memagent):
  for binding, message in (
    ('trainer.train.num_step = 3', 'did you mean num_steps?'),
    ('STEP = 3', 'did you mean STEPS?'),
  ):
    done = memagent(
      *('train', '--gin_file=tiny_grpo', '--workdir=run'),
      f'--gin_bindings={binding}',
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ') and message in line


# --- Extras -------------------------------------------------------------------

# A module that Python imports at startup; it hides the packages in BLOCKED.
BLOCK = """
import os
import sys


class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in os.environ['BLOCKED'].split():
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)


sys.meta_path.insert(0, Blocked())
"""
TRAIN = 'gin seqio tensorflow bm25s matplotlib tensorboardX wonderwords'


@pytest.fixture
def without(memagent, tmp_path):
  """Runs a command without some packages."""
  site = tmp_path / 'site'
  site.mkdir()
  (site / 'sitecustomize.py').write_text(BLOCK)

  def run(packages, *arguments):
    path = os.pathsep.join((str(site), str(ROOT)))
    return memagent(*arguments, PYTHONPATH=path, BLOCKED=packages)

  return run


@pytest.mark.parametrize(
  ('packages', 'arguments'),
  [
    ('gin', ['train', '--gin_file=tiny_grpo', '--workdir=run']),
    ('gin', ['report', '--workdir=run']),
    ('gin', ['evaluate', '--help']),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ('seqio', ['train', '--gin_file=tiny_grpo', '--workdir=run']),
        ('matplotlib', ['report', '--workdir=run']),
        (
          'tensorflow',
          ['make-data', '--task=vt', '--tokenizer=bytes', '--out=x'],
        ),
      )
    ),
  ],
)
def test_a_missing_extra_is_one_line(without, packages, arguments):
  done = without(packages, *arguments)
  assert done.returncode == 1 and not done.stdout
  assert done.stderr == (
    f'error: {arguments[0]} needs the extra [train]: pip install '
    "'memagent-jax[train]'\n"
  )


def test_a_missing_package_of_no_extra_is_not_hidden(without):
  done = without('jinja2 jax', 'import-weights', '--source=x', '--out=y')
  assert (
    "No module named 'jax'" in done.stderr and 'needs the' not in done.stderr
  )


@pytest.mark.slow
def test_the_base_reads(without, tiny_model_dir, tmp_path):
  """Asks, scores and tokenises without any package of [train]."""
  document = tmp_path / 'document.txt'
  document.write_text('The mask was worn by the King. ' * 20)
  model = f'--model={tiny_model_dir}'
  done = without(
    *(TRAIN, 'ask', model, f'--document={document}', '--question=Who?'),
    *('--chunk_tokens=200', '--memory_tokens=8', '--answer_tokens=4'),
  )
  assert done.returncode == 0, done.stderr
  assert 'Q: Who?' in done.stdout
  done = without(
    *(TRAIN, 'tokenize-document', model, '--document=big_stone_gap'),
    '--out=store',
  )
  assert done.returncode == 0, done.stderr
