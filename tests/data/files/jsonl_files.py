"""JSONL files with a wrong record among correct ones."""

from collections.abc import Mapping
import json
from pathlib import Path


def write(path: Path, right: Mapping, *records: Mapping | bytes) -> Path:
  """A file of these lines; a mapping changes the fields of a correct record."""
  lines = [
    record
    if isinstance(record, bytes)
    else json.dumps({**right, **record}).encode()
    for record in records
  ]
  path.write_bytes(b'\n'.join(lines))
  return path
