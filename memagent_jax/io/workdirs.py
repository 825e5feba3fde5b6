"""Directories that belong to one run: claimed by its config, held by one process.

config text -> claim -> config.gin | refused, with the lines that differ

What is written here is there whole or not at all, whoever looks or is killed.
"""

from collections.abc import Iterator
import contextlib
import difflib
import fcntl
import os
from pathlib import Path
import uuid

# The file of a workdir that says whose it is.
CONFIG = 'config.gin'


def claim(workdir: str | os.PathLike, config_text: str) -> None:
  """Makes a workdir for one config; processes side by side may claim it at once.

  Raises:
    ValueError: it is of another config; the lines that differ are shown.
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
def alone(path: str | os.PathLike) -> Iterator[None]:
  """Holds a lock file meanwhile; who is killed lets go of it.

  Raises:
    ValueError: another process holds it.
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
  """Writes a file, all at once."""
  path = Path(path)
  partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
  try:
    partial.write_bytes(content)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
