"""Examples by number as a seqio source, in any order that is asked for.

JsonlRows | GeneratedRows -> RowSource -> tasks.py, batches.py
"""

from collections.abc import Callable, Mapping, Sequence
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import seqio
import tensorflow as tf

from memagent_jax.data import examples
from memagent_jax.data.examples import Example, seeded

# Features of a row beside its ids; strings, so that they pass through.
TEXT_FEATURES = ('id', 'task', 'reward', 'metric')


class Rows(Protocol):
  """Examples by number, in any order: `JsonlRows`, or made on the fly."""

  def __len__(self) -> int:
    """How many there are."""

  def __getitem__(self, index: int) -> Example:
    """Example `index`."""


class JsonlRows:
  """The examples of a JSONL file, read where they lie: only offsets are kept."""

  def __init__(self, path: str | os.PathLike):
    self._path = Path(path)
    self._offsets = []
    with self._path.open('rb') as file:
      offset = 0
      for line in file:
        if line.strip():
          self._offsets.append(offset)
        offset += len(line)

  def __len__(self) -> int:
    return len(self._offsets)

  def __getitem__(self, index: int) -> Example:
    with self._path.open('rb') as file:
      file.seek(self._offsets[index])
      return examples.from_json(file.readline().decode())


class GeneratedRows:
  """Examples that are made when they are asked for."""

  def __init__(self, make: Callable[[int], Example], num_examples: int):
    self._make, self._num_examples = make, num_examples

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> Example:
    return self._make(index)


class RowSource(seqio.DataSource):
  """A seqio source over rows; also gives them in an order asked for."""

  def __init__(self, rows: Mapping[str, Rows]):
    sizes = {split: len(r) for split, r in rows.items()}
    for split, size in sizes.items():
      if size == 0:
        raise ValueError(f'split {split} has no example.')
    super().__init__(splits=tuple(rows), num_input_examples=sizes)
    self._rows = dict(rows)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    return [split]

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused,
  ) -> tf.data.Dataset:
    """One pass over the split, shuffled by `seed` alone where it is given."""
    order = list(range(len(self._rows[split])))
    if shuffle:
      seeded('rows', split, 0 if seed is None else int(seed)).shuffle(order)
    if shard_info is not None:
      order = order[shard_info.index :: shard_info.num_shards]
    numbers = tf.data.Dataset.from_tensor_slices(np.asarray(order, np.int64))
    return self.in_order(split, numbers)

  def in_order(self, split: str, numbers: tf.data.Dataset) -> tf.data.Dataset:
    """The rows whose int64 numbers the dataset `numbers` gives."""
    rows = self._rows[split]
    scalars = ('document', 'question', *TEXT_FEATURES)

    def load(number):
      example = rows[int(number)]
      fields = [getattr(example, name).encode() for name in scalars]
      return [
        *fields,
        np.asarray([a.encode() for a in example.answers], object),
      ]

    def features(number):
      # A function, not a generator: nothing runs on when the process ends.
      found = tf.numpy_function(
        load, [number], [tf.string] * (len(scalars) + 1)
      )
      row = {
        name: tf.ensure_shape(value, ())
        for name, value in zip(scalars, found, strict=False)
      }
      return row | {'answers': tf.ensure_shape(found[-1], (None,))}

    return numbers.map(features, num_parallel_calls=1)
