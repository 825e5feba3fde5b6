"""JSONL files with a wrong row among right ones."""

from collections.abc import Mapping
import json
from pathlib import Path


def write(path: Path, right: Mapping, *rows: Mapping | bytes) -> Path:
  """A file of these lines; a mapping changes the fields of a right row."""
  lines = [
    row if isinstance(row, bytes) else json.dumps({**right, **row}).encode()
    for row in rows
  ]
  path.write_bytes(b'\n'.join(lines))
  return path
