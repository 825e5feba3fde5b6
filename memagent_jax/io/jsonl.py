"""Append-only logs of JSON objects.

A kill costs the line it cut, no more.
"""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path

from memagent_jax.io import workdirs


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
  workdirs.replace(path, _lines(rows))


def _lines(rows: Sequence[Mapping]) -> bytes:
  return b''.join(
    json.dumps(row, ensure_ascii=False).encode() + b'\n' for row in rows
  )
