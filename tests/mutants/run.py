"""Puts small bugs into a copy of the code, one at a time: do the tests notice?

  python -m tests.mutants.run [--only=TEXT] [--workers=2]

`make mutants` runs all of `edits.py`: the exit status is 1 if a named test passes
in spite of its bug. Every edit goes into a forked child, so that jax, TensorFlow
and other libraries, which no edit touches, are imported only once.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import importlib
import json
import os
from pathlib import Path
import shutil
import signal
import sys
import tempfile
import time

from tests.mutants.edits import EDITS, Edit

ROOT = Path(__file__).parents[2]
# Everything that the tests read.
COPIED = (
  *('memagent_jax', 'tests', 'gin_configs', 'experiments'),
  *('setup.py', 'pyproject.toml'),
)
# Libraries that take seconds to import.
LIBRARIES = (
  *('flax.linen', 'gin', 'hypothesis', 'jax.experimental.multihost_utils'),
  *('optax', 'orbax.checkpoint', 'pytest', 'seqio', 'tensorboardX'),
  *('tensorflow', 'transformers'),
)
# Time limits of a single test, of an edit's tests, and of all the named tests.
_TEST_SECONDS, _EDIT_SECONDS, _ALL_SECONDS = 120, 600, 3600


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run of tests ended."""

  # pytest's exit status; None if it had to be stopped.
  status: int | None
  # Node ids of the tests that failed.
  failed: Sequence[str]
  seconds: float
  output: str

  def fails(self, test: str) -> bool:
    """Whether a test, or a test with some parameters, failed."""
    return any(f == test or f.startswith(f'{test}[') for f in self.failed)


class _Failed:
  """A pytest plugin that writes the tests that failed to a file."""

  def __init__(self, path: Path):
    self._path, self._failed = path, []

  def pytest_runtest_logreport(self, report):
    if report.failed:
      self._failed.append(report.nodeid)

  def pytest_sessionfinish(self):
    self._path.write_text(json.dumps(self._failed))


def mutated(text: str, edit: Edit) -> str:
  """The text of the edit's file with its bug.

  Raises:
    ValueError: the text to replace does not occur exactly once.
  """
  count = text.count(edit.before)
  if count != 1:
    raise ValueError(
      f'{edit.bug}: {edit.file} has {count} times {edit.before!r}; expected 1.'
    )
  return text.replace(edit.before, edit.after)


class _Run:
  """Running tests of a copy, in their own process."""

  def __init__(
    self, copy: Path, edit: Edit | None, tests: Sequence[str], seconds: float
  ):
    self.copy, self.edit = copy, edit
    self._original: tuple[Path, str] | None = None
    if edit is not None:
      path = copy / edit.file
      self._original = path, path.read_text(encoding='utf-8')
      path.write_text(mutated(self._original[1], edit), encoding='utf-8')
    self._failed = copy.with_suffix('.failed.json')
    self._failed.unlink(missing_ok=True)
    self._output = copy.with_suffix('.output.txt')
    self._begun, self._seconds = time.monotonic(), seconds
    sys.stdout.flush()
    self._pid = os.fork()
    if self._pid == 0:
      status = 99
      try:
        status = self._child(tests)
      finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

  def _child(self, tests: Sequence[str]) -> int:
    # Processes that the tests start end with this one.
    os.setsid()
    output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    os.chdir(self.copy)
    sys.path[0] = str(self.copy)
    for name in [n for n in sys.modules if n.split('.')[0] == 'tests']:
      del sys.modules[name]
    import pytest

    import memagent_jax

    assert Path(memagent_jax.__file__).is_relative_to(self.copy)
    return pytest.main(
      [
        *('-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', '--tb=short'),
        # Named tests are run even if they are slow.
        *('-o', 'addopts=', f'--timeout={_TEST_SECONDS}', '--disable-warnings'),
        *tests,
      ],
      plugins=[_Failed(self._failed)],
    )

  def outcome(self) -> Outcome | None:
    """The outcome; None while the run continues."""
    pid, code = os.waitpid(self._pid, os.WNOHANG)
    seconds = time.monotonic() - self._begun
    ended = pid != 0
    if not ended and seconds < self._seconds:
      return None
    self.kill()
    if not ended:
      os.waitpid(self._pid, 0)
    if self._original is not None:
      path, text = self._original
      path.write_text(text, encoding='utf-8')
    failed = []
    if self._failed.exists():
      failed = json.loads(self._failed.read_text())
    return Outcome(
      os.waitstatus_to_exitcode(code) if ended else None,
      failed,
      seconds,
      self._output.read_text(encoding='utf-8', errors='replace'),
    )

  def kill(self) -> None:
    """Ends whatever is left of the run, including the tests' own processes."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._pid, signal.SIGKILL)


def outcomes(
  jobs: Sequence[tuple[Edit | None, Sequence[str]]],
  copies: Sequence[Path],
  seconds: float,
) -> Iterator[tuple[Edit | None, Outcome]]:
  """Runs jobs, one in each copy at a time; yields outcomes as they end."""
  waiting, free, running = list(jobs), list(copies), []
  try:
    while waiting or running:
      while waiting and free:
        edit, tests = waiting.pop(0)
        running.append(_Run(free.pop(), edit, tests, seconds))
      time.sleep(0.05)
      for run in list(running):
        outcome = run.outcome()
        if outcome is not None:
          running.remove(run)
          free.append(run.copy)
          yield run.edit, outcome
  finally:
    for run in running:
      run.kill()


def _copy(to: Path) -> Path:
  """Copies the code and its tests, without compiled files."""
  ignored = shutil.ignore_patterns('__pycache__', '*.pyc')
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, to / name, ignore=ignored)
    else:
      shutil.copy(ROOT / name, to / name)
  return to


def _shares(tests: Sequence[str], count: int) -> list[list[str]]:
  """Splits tests into `count` lists of similar size, keeping files together."""
  files: dict[str, list[str]] = {}
  for test in tests:
    files.setdefault(test.partition('::')[0], []).append(test)
  shares: list[list[str]] = [[] for _ in range(count)]
  for file in sorted(files.values(), key=len, reverse=True):
    min(shares, key=len).extend(file)
  return [share for share in shares if share]


def _pass_unmutated(edits: Sequence[Edit], copies: Sequence[Path]) -> bool:
  """Whether all named tests pass with the code as it is."""
  tests = sorted({test for edit in edits for test in edit.tests})
  print(f'{len(tests)} tests in the code as it is', flush=True)
  jobs = [(None, share) for share in _shares(tests, len(copies))]
  passed = True
  for _, outcome in outcomes(jobs, copies, _ALL_SECONDS):
    print(f'  status {outcome.status} {outcome.seconds:6.1f} s', flush=True)
    if outcome.status != 0:
      passed = False
      print(outcome.output)
  return passed


def _missed(edit: Edit, outcome: Outcome) -> list[str]:
  """Tests that did not fail; all of them if pytest did not end by failures."""
  if outcome.status != 1:
    return list(edit.tests)
  return [test for test in edit.tests if not outcome.fails(test)]


def main() -> int:
  """Runs the edits that the flags name; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='Text in a bug or its file.')
  parser.add_argument('--workers', type=int, default=2)
  flags = parser.parse_args()
  edits = [e for e in EDITS if flags.only in f'{e.bug} {e.file}']
  if not edits:
    parser.error(f'no edit has {flags.only!r} in its bug or file.')
  for edit in edits:
    mutated((ROOT / edit.file).read_text(encoding='utf-8'), edit)
  begun = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='mutants.') as folder:
    # Children find no file compiled from another edit; XLA's cache identifies
    # programs by what they compute.
    os.environ |= {
      'PYTHONDONTWRITEBYTECODE': '1',
      'JAX_COMPILATION_CACHE_DIR': f'{folder}/compiled',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
      importlib.import_module(library)
    copies = [_copy(Path(folder, f'copy{i}')) for i in range(flags.workers)]
    if not _pass_unmutated(edits, copies):
      print('some tests fail in the code as it is; nothing was tried.')
      return 1
    unnoticed = []
    jobs = [(edit, edit.tests) for edit in edits]
    for edit, outcome in outcomes(jobs, copies, _EDIT_SECONDS):
      missed = _missed(edit, outcome)
      print(
        f'{"NOT NOTICED" if missed else "noticed":<11} {outcome.seconds:6.1f} s  '
        f'{edit.file.removeprefix("memagent_jax/")}: {edit.bug}',
        flush=True,
      )
      if missed:
        unnoticed.append(edit)
        print(f'  status {outcome.status}; passed: {", ".join(missed)}')
        print('\n'.join(outcome.output.splitlines()[-15:]), flush=True)
  print(
    f'{len(edits) - len(unnoticed)} of {len(edits)} bugs were noticed, in '
    f'{(time.monotonic() - begun) / 60:.1f} minutes'
  )
  return 1 if unnoticed else 0


if __name__ == '__main__':
  sys.exit(main())
