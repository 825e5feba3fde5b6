"""Safetensors files: checked on opening, read and written one tensor at a time.

A file is an 8-byte header length, a JSON header (name -> dtype, shape, byte
range) and the tensors' bytes. The format is handled here, not by the
safetensors library, so that errors on a damaged file name the tensor and the
bytes, and so that writing streams instead of holding all tensors at once.
A directory has one file, or shards and an index (tensor name -> file).
"""

from collections.abc import Iterable, Mapping
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# Name in a safetensors header -> numpy name (bfloat16 comes with ml_dtypes).
DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
_NAMES = {numpy: name for name, numpy in DTYPES.items()}
# A longer header means a damaged length field, not a model.
_MAX_HEADER_BYTES = 100_000_000


class Entry(NamedTuple):
  """Where one tensor lies."""

  path: Path
  dtype: str  # a numpy name
  shape: tuple[int, ...]
  offset_bytes: int  # from the start of the file

  def read(self) -> np.ndarray:
    """A memory-mapped view of the tensor; the map lives as long as the array."""
    if not math.prod(self.shape):
      return np.zeros(self.shape, jnp.dtype(self.dtype))
    return np.memmap(
      self.path,
      dtype=jnp.dtype(self.dtype),
      mode='r',
      offset=self.offset_bytes,
      shape=self.shape,
    )


def open_file(path: Path) -> dict[str, Entry]:
  """The entries of all tensors in the file, by name.

  Raises:
    ValueError: the file is truncated, damaged, or holds a dtype other than
      DTYPES; file, tensor, bytes found and bytes expected are named.
  """
  size = path.stat().st_size
  header, data_start = _read_header(path, size)
  entries, end = {}, data_start
  for name, field in header.items():
    if name == '__metadata__':
      continue
    entry, tensor_end = _entry(path, name, field, data_start)
    if tensor_end > size:
      found = max(0, size - entry.offset_bytes)
      raise ValueError(
        f'{path}: truncated: tensor {name} has {found} bytes, expected '
        f'{tensor_end - entry.offset_bytes}; the file has {size} bytes, '
        f'expected at least {tensor_end}. Get the file again.'
      )
    entries[name] = entry
    end = max(end, tensor_end)
  if end != size:
    raise ValueError(
      f'{path}: damaged: the file has {size} bytes, expected {end} by its '
      'header. Get the file again.'
    )
  return entries


def read_json(path: Path) -> dict:
  """The parsed file; raises ValueError, naming it, if it is not JSON."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as e:
    raise ValueError(f'{path}: not valid JSON: {e}.') from None


def shorten(names: list[str]) -> str:
  """The first five names, for an error message, and how many more there are."""
  more = f' and {len(names) - 5} more' if len(names) > 5 else ''
  return ', '.join(names[:5]) + more


def open_directory(directory: Path) -> dict[str, Entry]:
  """The entries of all tensors in a directory's single or sharded file."""
  if (directory / SINGLE).is_file():
    return open_file(directory / SINGLE)
  if not (directory / INDEX).is_file():
    raise ValueError(
      f'{directory}: no weights; expected {SINGLE}, or {INDEX} and its shards.'
    )
  index = read_json(directory / INDEX)
  weight_map = index.get('weight_map')
  if not isinstance(weight_map, dict):
    raise ValueError(f'{directory / INDEX}: no weight_map in it.')
  files = sorted(set(weight_map.values()))
  absent = [f for f in files if not (directory / f).is_file()]
  if absent:
    raise ValueError(
      f'{directory}: shards missing: {shorten(absent)}; {INDEX} names '
      f'{len(files)}.'
    )
  entries: dict[str, Entry] = {}
  for file in files:
    entries |= open_file(directory / file)
  absent = [name for name in weight_map if name not in entries]
  if absent:
    raise ValueError(
      f'{directory}: {INDEX} names tensors that its shards lack: '
      f'{shorten(absent)}.'
    )
  return entries


def _read_header(path: Path, size: int) -> tuple[dict, int]:
  """The parsed header, and the offset at which the tensors start."""
  with path.open('rb') as f:
    length = int.from_bytes(f.read(8), 'little')
    if size < 8 or length > _MAX_HEADER_BYTES:
      raise ValueError(
        f'{path}: no safetensors file: {size} bytes, header of {length} bytes.'
      )
    if 8 + length > size:
      raise ValueError(
        f'{path}: truncated in its header: the file has {size} bytes, expected '
        f'at least {8 + length}. Get the file again.'
      )
    text = f.read(length)
  try:
    header = json.loads(text)
  except ValueError as e:
    raise ValueError(f'{path}: damaged: its header is no JSON ({e}).') from None
  if not isinstance(header, dict):
    raise ValueError(f'{path}: damaged: its header is no JSON object.')
  return header, 8 + length


def _entry(
  path: Path, name: str, field: Any, data_start: int
) -> tuple[Entry, int]:
  """The entry of one header field, and the offset just past its tensor."""
  try:
    code, shape = field['dtype'], tuple(field['shape'])
    start, end = field['data_offsets']
    count = math.prod(shape)
  except (KeyError, TypeError, ValueError):
    raise ValueError(
      f'{path}: damaged: header of tensor {name} is {field!r}; expected dtype, '
      'shape and data_offsets.'
    ) from None
  if code not in DTYPES:
    raise ValueError(
      f'{path}: tensor {name} has dtype {code}; supported: {", ".join(DTYPES)}.'
    )
  expected = count * jnp.dtype(DTYPES[code]).itemsize
  if end - start != expected or start < 0:
    raise ValueError(
      f'{path}: damaged: tensor {name} spans {end - start} bytes, expected '
      f'{expected} for {code} {list(shape)}.'
    )
  entry = Entry(path, DTYPES[code], shape, data_start + start)
  return entry, data_start + end


def write_file(
  path: Path,
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Iterable[tuple[str, np.ndarray]],
  dtype: str,
) -> None:
  """Writes the tensors, cast to `dtype`, as they come.

  Args:
    path: the file to write.
    shapes: name -> shape of every tensor, in the order of `tensors`.
    tensors: (name, array) pairs.
    dtype: a value of DTYPES.
  """
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, shape in shapes.items():
    start, end = end, end + math.prod(shape) * jnp.dtype(dtype).itemsize
    header[name] = {
      'dtype': _NAMES[dtype],
      'shape': list(shape),
      'data_offsets': [start, end],
    }
  text = json.dumps(header, separators=(',', ':')).encode()
  # Padding keeps the tensors aligned for readers that map the file.
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as f:
    f.write(len(text).to_bytes(8, 'little'))
    f.write(text)
    for (name, tensor), (expected, shape) in zip(
      tensors, shapes.items(), strict=True
    ):
      assert (name, tensor.shape) == (expected, shape), (name, expected)
      # As plain bytes: bfloat16 has no buffer format.
      f.write(
        np.ascontiguousarray(tensor, jnp.dtype(dtype)).view(np.uint8).data
      )
