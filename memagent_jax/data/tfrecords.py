"""Examples as TFRecords: written one after another, read by index.

    examples -> write -> FILE.tfrecord -> TFRecordExamples -> example_source.py

Records hold what a task needs: texts, answers, names of reward and metric.
"""

from collections.abc import Iterable
import os
from pathlib import Path

import tensorflow as tf

from memagent_jax.data.example_source import TEXT_FEATURES
from memagent_jax.data.examples import Example

_SCALARS = ('document', 'question', *TEXT_FEATURES)
# Bytes before a record's data (its length and the length's checksum) and after
# it (the data's checksum).
_HEAD_BYTES, _TAIL_BYTES = 12, 4


def write(path: str | os.PathLike, examples: Iterable[Example]) -> int:
  """Writes the examples, equal ones as equal bytes; returns how many."""
  count = 0
  with tf.io.TFRecordWriter(os.fspath(path)) as writer:
    for example in examples:
      fields = {name: [getattr(example, name)] for name in _SCALARS}
      fields['answers'] = list(example.answers)
      # Sorted, so that equal examples are equal bytes.
      features = {
        name: tf.train.Feature(
          bytes_list=tf.train.BytesList(
            value=[text.encode() for text in fields[name]]
          )
        )
        for name in sorted(fields)
      }
      record = tf.train.Example(features=tf.train.Features(feature=features))
      writer.write(record.SerializeToString())
      count += 1
  return count


class TFRecordExamples:
  """The examples in a file that `write` made; memory holds only their offsets.

  Fields that a task does not need (tokens, gold spans, source) keep their
  defaults.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the file once, which verifies every checksum.

    Raises:
      ValueError: the file holds no TFRecords, or damaged ones.
    """
    self._path = Path(path)
    self._places = []
    records = tf.data.TFRecordDataset(os.fspath(path))
    offset = 0
    try:
      for size in records.map(tf.strings.length).as_numpy_iterator():
        self._places.append((offset + _HEAD_BYTES, int(size)))
        offset += _HEAD_BYTES + int(size) + _TAIL_BYTES
    except tf.errors.DataLossError as e:
      raise ValueError(
        f'{path}: got bytes at {offset:,} that are no whole record; expected '
        'TFRecords: write the file again with `memagent make-data`.'
      ) from e

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Example:
    offset, size = self._places[index]
    with self._path.open('rb') as file:
      file.seek(offset)
      features = tf.train.Example.FromString(file.read(size)).features.feature
    texts = {
      name: [value.decode() for value in features[name].bytes_list.value]
      for name in (*_SCALARS, 'answers')
    }
    scalars = {name: texts[name][0] for name in _SCALARS}
    return Example(answers=tuple(texts['answers']), **scalars)
