"""Examples by index as a seqio source, in any order.

JsonlExamples | TFRecordExamples | GeneratedExamples
  -> ExampleSource -> tasks.py, batches.py
"""

from collections.abc import Callable, Mapping, Sequence
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import seqio
import tensorflow as tf

from memagent_jax.data.examples import Example, from_json, seeded

# Strings of an example that pass through a task unchanged.
TEXT_FEATURES = ('id', 'task', 'reward', 'metric')


class Examples(Protocol):
  """Examples by index, from a file or generated."""

  def __len__(self) -> int:
    """The number of examples."""

  def __getitem__(self, index: int) -> Example:
    """Example `index`."""


class JsonlExamples:
  """The examples of a JSONL file; only their offsets are held in memory."""

  def __init__(self, path: str | os.PathLike):
    """Reads the file once to find where each line begins."""
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
      return from_json(file.readline().decode())


class GeneratedExamples:
  """Examples that a function of their index generates when they are read."""

  def __init__(self, make: Callable[[int], Example], num_examples: int):
    """Generates nothing yet.

    Args:
      make: a pure function from an index to its example.
      num_examples: number of examples; indices start at 0.
    """
    self._make, self._num_examples = make, num_examples

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> Example:
    return self._make(index)


class ExampleSource(seqio.DataSource):
  """A seqio source of examples that also reads them in a prescribed order."""

  def __init__(self, examples: Mapping[str, Examples]):
    """Makes a source of the examples of each split.

    Raises:
      ValueError: a split without an example.
    """
    sizes = {split: len(e) for split, e in examples.items()}
    for split, size in sizes.items():
      if size == 0:
        raise ValueError(f'split {split} has no example.')
    super().__init__(splits=tuple(examples), num_input_examples=sizes)
    self._examples = dict(examples)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: examples are read by index, so any number of shards will do."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """The split itself, as the only shard."""
    return [split]

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: object,
  ) -> tf.data.Dataset:
    """One pass over the split; `seed` (None: 0) alone decides a shuffle."""
    order = list(range(len(self._examples[split])))
    if shuffle:
      seeded('rows', split, 0 if seed is None else int(seed)).shuffle(order)
    if shard_info is not None:
      order = order[shard_info.index :: shard_info.num_shards]
    numbers = tf.data.Dataset.from_tensor_slices(np.asarray(order, np.int64))
    return self.in_order(split, numbers)

  def in_order(self, split: str, numbers: tf.data.Dataset) -> tf.data.Dataset:
    """The examples at the int64 indices that the dataset `numbers` yields."""
    examples = self._examples[split]
    scalars = ('document', 'question', *TEXT_FEATURES)

    def load(number: np.ndarray) -> list[Any]:
      example = examples[int(number)]
      fields = [getattr(example, name).encode() for name in scalars]
      return [
        *fields,
        np.asarray([a.encode() for a in example.answers], object),
      ]

    def load_tf(number: tf.Tensor) -> dict[str, tf.Tensor]:
      # A function, not a generator: none is left running at the process's end.
      values = tf.numpy_function(
        load, [number], [tf.string] * (len(scalars) + 1)
      )
      features = {
        name: tf.ensure_shape(value, ())
        for name, value in zip(scalars, values, strict=False)
      }
      return features | {'answers': tf.ensure_shape(values[-1], (None,))}

    return numbers.map(load_tf, num_parallel_calls=1)
