"""Runs one side of a comparison in its own process, which idles until asked.

    suite -- a number per line --> worker -- a line of JSON --> suite

Idle workers wait on their input, so sides that take turns share both cores and
do not disturb each other.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Self

# Where another interpreter imports this package from, after its own packages.
_ROOT = str(Path(__file__).parents[3])
_START = (
  f'import sys; sys.path.append({_ROOT!r}); '
  'from memagent_jax.commands import cli; cli.main()'
)


class Worker:
  """A process of `memagent benchmark --worker=name`, for use in `with`."""

  def __init__(self, python: str, name: str, **flags: object) -> None:
    self._process = subprocess.Popen(
      command(python, name, **flags),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    self._stdin, self._stdout = self._process.stdin, self._process.stdout
    # Versions of the measured packages, by name.
    self.version = self._answer()

  def ask(self, number: int) -> dict:
    """Returns one measurement at a batch size."""
    self._stdin.write(f'{number}\n')
    self._stdin.flush()
    return self._answer()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._stdin.close()
    self._process.wait()

  def _answer(self) -> dict:
    line = self._stdout.readline()
    if not line:
      raise RuntimeError(f'a worker ended with {self._process.wait()}.')
    return json.loads(line)


def serve(version: dict[str, str], measure: Callable[[int], dict]) -> None:
  """Answers every number on standard input with one measurement."""
  print(json.dumps(version), flush=True)
  for line in sys.stdin:
    print(json.dumps(measure(int(line))), flush=True)


def run_once(name: str, python: str = sys.executable, **flags: object) -> dict:
  """Returns the one measurement that a worker without input prints."""
  done = subprocess.run(
    command(python, name, **flags),
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  # A peer may print other things first.
  return json.loads(done.stdout.splitlines()[-1])


def command(python: str, name: str, **flags: object) -> list[str]:
  """Command line of a worker."""
  start = [python, '-c', _START, 'benchmark', f'--worker={name}']
  return start + [f'--{flag}={value}' for flag, value in flags.items()]


def pythons(torch_python: str) -> dict[str, str]:
  """Interpreter by side: `jax`, and `torch` where it can be imported."""
  check = [torch_python, '-c', 'import torch, transformers']
  done = subprocess.run(check, capture_output=True, check=False)
  if done.returncode:
    print(f'{torch_python} has no torch: measuring ours alone.')
    return {'jax': sys.executable}
  return {'jax': sys.executable, 'torch': torch_python}


def peak_bytes() -> int:
  """Peak resident memory of this process so far, in bytes."""
  import resource

  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
  """Resident memory of this process now, in bytes; Linux only."""
  pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE')
