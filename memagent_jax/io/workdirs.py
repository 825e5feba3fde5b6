"""Directories that belong to one run: claimed by its config, held by one process.

    config text -> claim -> config.gin | refused, with the lines that differ

Every file is written whole or not at all, even if the process is killed.
"""

from collections.abc import Iterator
import contextlib
import difflib
import fcntl
import os
from pathlib import Path
import uuid

# The config of the run that a workdir belongs to.
CONFIG = 'config.gin'


def claim(workdir: str | os.PathLike, config_text: str) -> None:
  """Makes a workdir for one config; several processes may claim it at once.

  Args:
    workdir: the directory, which need not exist.
    config_text: the config of the run.

  Raises:
    ValueError: the directory belongs to another config; the message shows the
      lines that differ.
  """
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / CONFIG
  if not path.exists():
    replace(path, config_text.encode())
  theirs = path.read_text(encoding='utf-8').splitlines()
  ours = config_text.splitlines()
  if theirs == ours:
    return
  diff = difflib.unified_diff(theirs, ours, n=0, lineterm='')
  # The first two lines would name files.
  lines = [line for line in list(diff)[2:] if not line.startswith('@@')]
  raise ValueError(
    f'{workdir} belongs to a run of another config (- that run, + this one):\n'
    + '\n'.join(lines)
    + '\nUse another workdir.'
  )


@contextlib.contextmanager
def exclusive(path: str | os.PathLike) -> Iterator[None]:
  """Holds a lock file while the `with` block runs.

  The lock is released with the process, however that ends.

  Args:
    path: the lock file, which need not exist.

  Raises:
    ValueError: another process holds the lock.
  """
  with Path(path).open('a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise ValueError(
        f'{path}: another process is at this work; wait for it, or stop it.'
      ) from e
    yield


def replace(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file all at once: its readers see the old content or the new."""
  path = Path(path)
  partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
  try:
    partial.write_bytes(content)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
