"""The lines of a JSONL file, checked against a schema, with all their problems.

    json_records -> Record(fields, problems)
      -> own_documents, sft/demonstration_files

A field that is null counts as absent. A name that is not in the schema is a
problem, and so is an id that an earlier line has.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
from pathlib import Path
import re
from typing import Any, TypeGuard

from memagent_jax.data.files import json_records

_SURROGATE = re.compile('[\ud800-\udfff]')


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing that is wrong, or doubtful, in a file."""

  path: str
  # Line number from 1; 0 for the file as a whole.
  line: int
  field: str
  got: str
  expected: str

  def __str__(self) -> str:
    place = f'{self.path}:{self.line}' if self.line else self.path
    return f'{place}: {self.field}: got {self.got}; expected {self.expected}.'


@dataclasses.dataclass
class Record:
  """One line and its problems, to which the callers of `read` may add."""

  path: Path
  # Line number from 1; 0 for the file as a whole.
  line: int
  schema: Mapping[str, str]
  # Fields that are not null, always with `id`; empty if it is no object.
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  problems: list[Problem] = dataclasses.field(default_factory=list)

  def problem(self, field: str, got: str, expected: str | None = None) -> None:
    """Adds a problem; `expected` defaults to the schema's text for `field`."""
    if expected is None:
      expected = self.schema[field]
    problem = Problem(str(self.path), self.line, field, got, expected)
    self.problems.append(problem)

  def check(self, field: str, holds: Callable[[object], bool]) -> None:
    """Adds a problem unless `holds` is true of the value (None: absent)."""
    value = self.fields.get(field)
    if not holds(value):
      self.problem(field, json_records.brief(value))


def read(
  path: str | os.PathLike,
  schema: Mapping[str, str],
  *,
  noun: str,
  max_line_bytes: int,
  too_long: str = '',
) -> Iterator[Record]:
  """The lines of a file that are not blank; one problem if there are none.

  Args:
    path: a JSONL file.
    schema: what is expected in each field, including `id`.
    noun: what a line holds, for messages.
    max_line_bytes: length of the longest line allowed.
    too_long: what to do about a longer line, for messages.
  """
  path = Path(path)
  if not path.is_file():
    record = Record(path, 0, schema)
    record.problem('file', 'no such file', 'a JSONL file')
    yield record
    return
  lines_by_id: dict[str, int] = {}
  number = 0
  for number, size, line in json_records.read_lines(path, max_line_bytes):
    record = Record(path, number, schema)
    if size > max_line_bytes:
      expected = f'at most {max_line_bytes:,} bytes{too_long}'
      record.problem('line', f'{size:,} bytes', expected)
    else:
      _parse(record, line, lines_by_id)
    yield record
  if not number:
    record = Record(path, 0, schema)
    record.problem('file', 'no line', f'one {noun} a line')
    yield record


def is_text(value: object) -> bool:
  """Whether a value is text that is not blank and can be encoded."""
  return is_any_text(value) and value != '' and not value.isspace()


def is_any_text(value: object) -> TypeGuard[str]:
  """Whether a value is text that can be encoded; it may be blank."""
  # A lone surrogate, which JSON can write as an escape, cannot be encoded.
  return isinstance(value, str) and not _SURROGATE.search(value)


def _parse(
  record: Record, line: bytearray, lines_by_id: dict[str, int]
) -> None:
  try:
    value = json_records.parse_line(line)
  except ValueError as e:
    record.problem('line', str(e), 'one JSON object in UTF-8')
    return
  if not isinstance(value, dict):
    record.problem('line', json_records.brief(value), 'one JSON object')
    return
  names = ', '.join(record.schema)
  for name in value:
    if name not in record.schema:
      record.problem(
        json_records.brief(name), 'an unknown field', f'only {names}'
      )
  record.fields = {k: v for k, v in value.items() if v is not None}
  record.fields.setdefault('id', f'{record.path.stem}/{record.line}')
  record.check('id', is_text)
  if is_text(record.fields['id']):
    first = lines_by_id.setdefault(record.fields['id'], record.line)
    if first != record.line:
      name = json_records.brief(record.fields['id'])
      record.problem('id', f'{name}, which line {first} has too')
