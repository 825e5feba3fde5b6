"""Files of records in any form: Parquet, a JSON array, or JSON lines.

    file -> read -> upstream.py, benchmarks/question_sets.py

Memory holds one record; for Parquet, eight records and a page.
"""

from collections.abc import Collection, Iterator
import os
from pathlib import Path
from typing import Any

from memagent_jax.data import text
from memagent_jax.data.files import json_records

_PARQUET_MAGIC = b'PAR1'
_LFS_POINTER = b'version https://git-lfs'
_HEAD_BYTES = 4096
_BATCH_RECORDS = 8


def read(
  path: str | os.PathLike,
  columns: Collection[str] | None = None,
  max_record_bytes: int = json_records.MAX_RECORD_BYTES,
) -> Iterator[Any]:
  """The records of Parquet, a JSON array, or JSON lines, one by one.

  Args:
    path: the file; its content says which of the three it is.
    columns: Parquet columns to read if they exist; None reads all.
    max_record_bytes: longest line of JSON lines in bytes; longest element of an
      array in characters.

  Raises:
    ValueError: no such file, or one in none of the three forms; names file,
      record, got and expected.
  """
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file.')
  with path.open('rb') as stream:
    head = stream.read(_HEAD_BYTES)
  if head.startswith(_LFS_POINTER):
    raise ValueError(f'{path}: a Git LFS pointer, not the data; git lfs pull.')
  if head.startswith(_PARQUET_MAGIC):
    yield from _parquet_records(path, columns)
    return
  is_array = head.removeprefix(b'\xef\xbb\xbf').lstrip()[:1] == b'['
  records = _array_records if is_array else _line_records
  yield from records(path, max_record_bytes)


def _array_records(path: Path, max_record_bytes: int) -> Iterator[object]:
  number = 1
  try:
    for element in json_records.split_array(
      text.read_pieces(path), max_record_bytes
    ):
      yield json_records.parse(element)
      number += 1
  except ValueError as e:
    raise ValueError(
      f'{path}: record {number}: got {e}; expected a JSON array of objects.'
    ) from None


def _line_records(path: Path, max_record_bytes: int) -> Iterator[object]:
  for number, size, line in json_records.read_lines(path, max_record_bytes):
    if size > max_record_bytes:
      raise ValueError(
        f'{path}:{number}: got {size:,} bytes; expected at most '
        f'{max_record_bytes:,}.'
      )
    try:
      record = json_records.parse_line(line)
    except ValueError as e:
      raise ValueError(
        f'{path}:{number}: got {e}; expected Parquet, a JSON array, or one JSON '
        'object a line.'
      ) from None
    yield record


def _parquet_records(
  path: Path, columns: Collection[str] | None
) -> Iterator[object]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise ValueError(
      f'{path}: reading Parquet needs pyarrow; '
      "pip install 'memagent_jax[parquet]'."
    ) from None
  try:
    # One row group may be the whole file, so it is read page by page (writers
    # put up to 1,024 records in a page).
    with parquet.ParquetFile(
      path, pre_buffer=False, buffer_size=1 << 20
    ) as file:
      names = file.schema_arrow.names
      if columns is not None:
        names = [name for name in names if name in columns]
      for batch in file.iter_batches(_BATCH_RECORDS, columns=names):
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError) as e:
    raise ValueError(f'{path}: not a readable Parquet file: {e}') from e
