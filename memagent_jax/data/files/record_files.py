"""Files of rows, whatever their form: Parquet, a JSON array, or JSON lines.

    file -> read_rows -> published.py, question_sets.py

Memory is that of a row; of Parquet, of eight rows and a page.
"""

from collections.abc import Collection, Iterator
import os
from pathlib import Path

from memagent_jax.data import text
from memagent_jax.data.files import json_records

_PARQUET_MAGIC = b'PAR1'
_LFS_POINTER = b'version https://git-lfs'
_HEAD_BYTES = 4096
_BATCH_ROWS = 8


def read_rows(
  path: str | os.PathLike,
  columns: Collection[str] | None = None,
  max_row_bytes: int = json_records.MAX_ROW_BYTES,
) -> Iterator[object]:
  """The rows of a file of Parquet, one JSON array, or JSON lines, one by one.

  Args:
    path: the file; its content says which of the three it is.
    columns: of Parquet, read only these where they exist; None reads all.
    max_row_bytes: longest line of JSON lines; of an array, the longest element
      in characters.

  Raises:
    ValueError: no such file, or none of the three: file, row, got, expected.
  """
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file.')
  with path.open('rb') as stream:
    head = stream.read(_HEAD_BYTES)
  if head.startswith(_LFS_POINTER):
    raise ValueError(f'{path}: a Git LFS pointer, not the data; git lfs pull.')
  if head.startswith(_PARQUET_MAGIC):
    yield from _parquet_rows(path, columns)
    return
  is_array = head.removeprefix(b'\xef\xbb\xbf').lstrip()[:1] == b'['
  rows = _array_rows if is_array else _line_rows
  yield from rows(path, max_row_bytes)


def _array_rows(path: Path, max_row_bytes: int) -> Iterator[object]:
  number = 1
  try:
    for element in json_records.split_array(
      text.read_pieces(path), max_row_bytes
    ):
      yield json_records.parse(element)
      number += 1
  except ValueError as e:
    raise ValueError(
      f'{path}: row {number}: got {e}; expected a JSON array of objects.'
    ) from None


def _line_rows(path: Path, max_row_bytes: int) -> Iterator[object]:
  for number, size, line in json_records.read_lines(path, max_row_bytes):
    if size > max_row_bytes:
      raise ValueError(
        f'{path}:{number}: got {size:,} bytes; expected at most '
        f'{max_row_bytes:,}.'
      )
    try:
      row = json_records.parse_line(line)
    except ValueError as e:
      raise ValueError(
        f'{path}:{number}: got {e}; expected Parquet, a JSON array, or one JSON '
        'object a line.'
      ) from None
    yield row


def _parquet_rows(
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
    # One row group may be the whole file: read it page by page (writers put up
    # to 1,024 rows in one).
    with parquet.ParquetFile(
      path, pre_buffer=False, buffer_size=1 << 20
    ) as file:
      names = file.schema_arrow.names
      if columns is not None:
        names = [name for name in names if name in columns]
      for batch in file.iter_batches(_BATCH_ROWS, columns=names):
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError) as e:
    raise ValueError(f'{path}: not a readable Parquet file: {e}') from e
