"""Examples by number as a seqio source, in any order that is asked for.

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
  """Examples by number, in any order, from a file or generated."""

  def __len__(self) -> int:
    """The number of examples."""

  def __getitem__(self, index: int) -> Example:
    """Example `index`."""


class JsonlExamples:
  """The examples of a JSONL file; only their offsets are held in memory."""

  def __init__(self, path: str | os.PathLike):
    """Reads the file once, to know where each line begins."""
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
  """Examples that a function of their number generates when they are read."""

  def __init__(self, make: Callable[[int], Example], num_examples: int):
    """Generates nothing yet.

    Args:
      make: a pure function from a number to its example.
      num_examples: how many numbers there are, from 0.
    """
    self._make, self._num_examples = make, num_examples

  def __len__(self) -> int:
    return self._num_examples

  def __getitem__(self, index: int) -> Example:
    return self._make(index)


class ExampleSource(seqio.DataSource):
  """A seqio source over examples that also gives them in a prescribed order."""

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
    """Any number of shards: an example is read by its number."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """The split itself, one shard."""
    return [split]

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: object,
  ) -> tf.data.Dataset:
    """One pass over the split, shuffled by `seed` alone where it is given."""
    order = list(range(len(self._examples[split])))
    if shuffle:
      seeded('rows', split, 0 if seed is None else int(seed)).shuffle(order)
    if shard_info is not None:
      order = order[shard_info.index :: shard_info.num_shards]
    numbers = tf.data.Dataset.from_tensor_slices(np.asarray(order, np.int64))
    return self.in_order(split, numbers)

  def in_order(self, split: str, numbers: tf.data.Dataset) -> tf.data.Dataset:
    """The examples whose int64 numbers the dataset `numbers` gives."""
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
      # A function, not a generator: nothing runs on when the process ends.
      values = tf.numpy_function(
        load, [number], [tf.string] * (len(scalars) + 1)
      )
      features = {
        name: tf.ensure_shape(value, ())
        for name, value in zip(scalars, values, strict=False)
      }
      return features | {'answers': tf.ensure_shape(values[-1], (None,))}

    return numbers.map(load_tf, num_parallel_calls=1)
