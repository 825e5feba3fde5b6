"""Append-only logs of JSON objects, one per line.

A killed process loses at most the line it was writing.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path

from memagent_jax.io import workdirs


def read(path: str | os.PathLike) -> Iterator[dict]:
  """Yields the objects of a log; a half-written last line is left out."""
  with Path(path).open('rb') as lines:
    for line in lines:
      if not line.endswith(b'\n'):
        return
      yield json.loads(line)


def append(path: str | os.PathLike, objects: Sequence[Mapping]) -> None:
  """Appends objects in one write, which is on disk when this returns.

  A half-written last line is cut off first.
  """
  with Path(path).open('a+b') as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) not in (b'', b'\n'):
      file.seek(0)
      file.truncate(file.read().rfind(b'\n') + 1)
    file.write(_lines(objects))
    file.flush()
    os.fsync(file.fileno())


def rewrite(path: str | os.PathLike, objects: Sequence[Mapping]) -> None:
  """Replaces a log by these objects, all at once."""
  workdirs.replace(path, _lines(objects))


def _lines(objects: Sequence[Mapping]) -> bytes:
  return b''.join(
    json.dumps(value, ensure_ascii=False).encode() + b'\n' for value in objects
  )
