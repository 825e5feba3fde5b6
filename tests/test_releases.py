"""Facts about a release are stated in one place, or everywhere the same."""

from pathlib import Path
import re
import subprocess
import sys

import pytest
import yaml

import memagent_jax
from memagent_jax.commands import cli

ROOT = Path(__file__).parents[1]
VERSION = memagent_jax.__version__


def text(path: str) -> str:
  return (ROOT / path).read_text(encoding='utf-8')


def test_the_citation_is_of_this_version():
  citation = yaml.safe_load(text('CITATION.cff'))
  assert citation['version'] == VERSION
  (paper,) = citation['references']
  assert paper['doi'] == '10.48550/arXiv.2507.02259'


def test_the_changelog_opens_with_this_version():
  heading = re.search(r'^## \[(.*?)\] - (.*)$', text('CHANGELOG.md'), re.M)
  assert heading is not None and heading[1] == VERSION
  assert re.fullmatch(r'unreleased|\d{4}-\d\d-\d\d', heading[2])


def test_the_installer_types_no_version_of_its_own():
  done = subprocess.run(
    [sys.executable, 'setup.py', '--version'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split()[-1] == VERSION
  assert VERSION not in text('setup.py')


def test_the_command_prints_it(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['memagent', '--version'])
  cli.main()
  assert capsys.readouterr().out == f'memagent {VERSION}\n'


def test_ci_runs_the_pythons_that_the_installer_names():
  named = re.findall(r'Python :: (3\.\d+)', text('setup.py'))
  jobs = yaml.safe_load(text('.github/workflows/ci.yml'))['jobs']
  assert jobs['test']['strategy']['matrix']['python'] == named


@pytest.mark.parametrize('name', ['ci', 'release'])
def test_workflows_call_targets_that_the_makefile_has(name):
  called = {
    target
    for line in re.findall(
      r'run: make (.*) PYTHON=python', text(f'.github/workflows/{name}.yml')
    )
    for target in line.split()
  }
  targets = set(re.findall(r'^([\w-]+):', text('Makefile'), re.M))
  # `docs` comes with the pages.
  assert called - {'docs'} <= targets
