"""Append-only logs of JSON objects, and the workdirs that hold one.

A kill costs the line it cut, no more.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fcntl
import json
import os
from pathlib import Path
import uuid

# The file of a workdir that says whose rows it has.
CONFIG = 'config.gin'


def read(path: str | os.PathLike) -> Iterator[dict]:
  """Objects of a log; a half-written last line is left out."""
  with Path(path).open('rb') as lines:
    for line in lines:
      if not line.endswith(b'\n'):
        return
      yield json.loads(line)


def append(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
  """Appends objects as one write that is on disk when this returns.

  A half-written last line is cut off first.
  """
  with Path(path).open('a+b') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) not in (b'', b'\n'):
      file.seek(0)
      file.truncate(file.read().rfind(b'\n') + 1)
    file.write(_lines(rows))
    file.flush()
    os.fsync(file.fileno())


def rewrite(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
  """Replaces a log by these objects, all at once."""
  _replace(Path(path), _lines(rows))


def claim_workdir(workdir: str | os.PathLike, config_text: str) -> None:
  """Makes a workdir for the rows of one config.

  Processes that start side by side may claim it at once.

  Raises:
    ValueError: it has rows of another config.
  """
  workdir = Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / CONFIG
  if not path.exists():
    _replace(path, config_text.encode())
  if path.read_text(encoding='utf-8') != config_text:
    raise ValueError(
      f'{workdir} has rows of another config ({path.name}); use another workdir.'
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


def _replace(path: Path, content: bytes) -> None:
  """Writes a file that is never there in part, whoever looks or is killed."""
  partial = path.with_name(f'{path.name}.{uuid.uuid4().hex}.partial')
  try:
    partial.write_bytes(content)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _lines(rows: Sequence[Mapping]) -> bytes:
  return b''.join(
    json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows
  )
