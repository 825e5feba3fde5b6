"""Rows of examples as seqio tasks, their TFRecords and their offline cache.

    RowSource | TFRecords -> seqio.Task (ids of question and document)
      -> seqio.Mixture -> converter.py

Tasks are made by `example_task` with everything as an argument and need no
registration, so one process can hold many lengths of the same task.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import os
from pathlib import Path
import re

import numpy as np
import seqio
import tensorflow as tf

from memagent_jax.data.example_source import (
  TEXT_FEATURES,
  JsonlRows,
  Rows,
  RowSource,
)
from memagent_jax.data.examples import Example


class TokenizerVocabulary(seqio.Vocabulary):
  """A `models.tokenizer.Tokenizer` (or any encoder) as a seqio vocabulary."""

  def __init__(self, tokenizer, vocab_size: int):
    super().__init__(extra_ids=0)
    self._tokenizer, self._size = tokenizer, vocab_size

  @property
  def eos_id(self) -> int | None:
    return None

  @property
  def unk_id(self) -> int | None:
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._size

  def _encode(self, s: str) -> Sequence[int]:
    return self._tokenizer.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text):
      return np.asarray(self._tokenizer.encode(text.decode()), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    return tf.ensure_shape(ids, (None,))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(row):
      return self._tokenizer.decode(row.tolist()).encode()

    return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), ())

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, TokenizerVocabulary)
      and self._tokenizer is other._tokenizer
    )


def example_task(
  name: str, rows: Mapping[str, Rows], vocabulary: seqio.Vocabulary
) -> seqio.Task:
  """A task with features `question` and `document`, token ids.

  Args:
    name: letters, digits and underscores.
    rows: examples by split.
    vocabulary: of the model that reads.
  """
  return _task(name, RowSource(rows), vocabulary, [_tokenize])


def jsonl_documents(tokenizer, *, path: str) -> seqio.Task:
  """A task over a file of `experiments.make_data`, one example a line.

  Args:
    tokenizer: of the model that reads.
    path: of the JSONL file.

  Raises:
    ValueError: a file that is not there, or is empty.
  """
  if not Path(path).is_file():
    raise ValueError(
      f'documents {path}: no such file; `python -m experiments.make_data` makes '
      'one.'
    )
  vocabulary = TokenizerVocabulary(tokenizer, tokenizer.vocab_size)
  name = re.sub(r'\W', '_', Path(path).stem)
  return example_task(name, {'train': JsonlRows(path)}, vocabulary)


def tfrecord_task(
  name: str, files: Mapping[str, str], vocabulary: seqio.Vocabulary
) -> seqio.Task:
  """The same task over TFRecords that `write_tfrecords` made, by split."""
  features = dict.fromkeys(
    ('document', 'question', *TEXT_FEATURES),
    tf.io.FixedLenFeature((), tf.string),
  )
  features['answers'] = tf.io.FixedLenSequenceFeature(
    (), tf.string, allow_missing=True
  )
  source = seqio.TFExampleDataSource(files, features)
  return _task(name, source, vocabulary, [_tokenize])


def _task(name, source, vocabulary, preprocessors) -> seqio.Task:
  feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  return seqio.Task(
    name,
    source,
    output_features={'document': feature, 'question': feature},
    # Documents can be as long as memory allows: nothing is cut after the cache.
    preprocessors=[*preprocessors, seqio.CacheDatasetPlaceholder()],
  )


def _tokenize(dataset, output_features):
  def tokenize(row):
    ids = {
      name: feature.vocabulary.encode_tf(row[name])
      for name, feature in output_features.items()
    }
    return {**row, **ids}

  return dataset.map(tokenize, num_parallel_calls=1)


def write_tfrecords(path: str | os.PathLike, rows: Iterable[Example]) -> int:
  """Writes text features of the examples as TFRecords; how many there were."""
  count = 0
  with tf.io.TFRecordWriter(os.fspath(path)) as writer:
    for example in rows:
      fields = {'answers': list(example.answers)}
      for name in ('document', 'question', *TEXT_FEATURES):
        fields[name] = [getattr(example, name)]
      writer.write(_tf_example(fields).SerializeToString())
      count += 1
  return count


def _tf_example(fields: Mapping[str, Sequence[str]]) -> tf.train.Example:
  features = {}
  # Sorted, so that equal rows are equal bytes.
  for name in sorted(fields):
    values = [text.encode() for text in fields[name]]
    features[name] = tf.train.Feature(
      bytes_list=tf.train.BytesList(value=values)
    )
  return tf.train.Example(features=tf.train.Features(feature=features))


def cache_task(task: seqio.Task, directory: str | os.PathLike) -> Path:
  """Writes seqio's offline cache of a task: tokenised once, read many times.

  In the layout of seqio's own caching script, which needs apache-beam; read it
  with `seqio.add_global_cache_dirs([directory])` and `use_cached=True`.
  """
  folder = Path(directory) / seqio.get_task_dir_from_name(task.name)
  folder.mkdir(parents=True, exist_ok=True)
  for split in task.splits:
    dataset = task.source.get_dataset(split, shuffle=False)
    dataset = task.preprocess_precache(dataset)
    prefix = seqio.get_cached_tfrecord_prefix(os.fspath(folder), split)
    stats = {'examples': 0, 'document_tokens': 0}
    with tf.io.TFRecordWriter(f'{prefix}-00000-of-00001') as writer:
      for row in dataset.as_numpy_iterator():
        writer.write(seqio.dict_to_tfexample(row).SerializeToString())
        stats['examples'] += 1
        stats['document_tokens'] += len(row['document'])
    info = {
      'num_shards': 1,
      'features': {
        name: {'shape': spec.shape.as_list(), 'dtype': spec.dtype.name}
        for name, spec in dataset.element_spec.items()
      },
      'seqio_version': seqio.__version__,
    }
    _write_json(seqio.get_cached_info_path(os.fspath(folder), split), info)
    _write_json(seqio.get_cached_stats_path(os.fspath(folder), split), stats)
  (folder / 'COMPLETED').touch()
  return folder


def _write_json(path: str, content: object) -> None:
  Path(path).write_text(json.dumps(content, indent=2), encoding='utf-8')
