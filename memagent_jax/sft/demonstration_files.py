"""Demonstrations of single turns as JSONL: read and checked.

    {"question": ..., "memory": ..., "chunk": ..., "response": ...}
      -> Demonstration -> demonstrations.py

One object per line; `FIELDS` is the schema. Texts are used as they are, with
their white space, and fill the template as questions, memories and chunks do.
"""

from collections.abc import Iterator, Mapping
import os

from memagent_jax.data.examples import Demonstration
from memagent_jax.data.files import checked_records, json_records
from memagent_jax.data.files.checked_records import is_any_text, is_text

# What is expected in each field; the last two are optional.
FIELDS: Mapping[str, str] = {
  'question': 'a text that is not blank',
  'memory': "a text; the template's empty_memory before the first chunk",
  'response': 'a text that is not blank',
  'chunk': 'a text that is not blank, or null in an answer turn',
  'id': 'a text that no other line has; without it, FILE/LINE is taken',
}


def read(
  path: str | os.PathLike,
  *,
  max_line_bytes: int = json_records.MAX_RECORD_BYTES,
) -> Iterator[tuple[int, Demonstration]]:
  """Yields line number (from 1) and demonstration, in the order of the file.

  Args:
    path: a JSONL file as `FIELDS` says.
    max_line_bytes: longest line.

  Raises:
    ValueError: the first problem: file and line, field, got, expected.
  """
  for record in checked_records.read(
    path, FIELDS, noun='demonstration', max_line_bytes=max_line_bytes
  ):
    if record.fields:
      record.check('question', is_text)
      record.check('memory', is_any_text)
      record.check('response', is_text)
      record.check('chunk', lambda chunk: chunk is None or is_text(chunk))
    if record.problems:
      raise ValueError(str(record.problems[0]))
    yield (
      record.line,
      Demonstration(
        question=record.fields['question'],
        memory=record.fields['memory'],
        chunk=record.fields.get('chunk'),
        response=record.fields['response'],
      ),
    )
