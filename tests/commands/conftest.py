"""Runs a command of `experiments` in its own process."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_command(tmp_path):
  """Calls `python -m experiments.NAME flags...` in the test's folder, or `cwd`.

  Its output is captured as text; `environment` adds to this process's.
  """

  def run(name, *flags, cwd=tmp_path, **environment):
    return subprocess.run(
      [sys.executable, '-m', f'experiments.{name}', *flags],
      cwd=cwd,
      env=os.environ | {'PYTHONPATH': str(ROOT)} | environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )

  return run
