"""Examples as seqio tasks, which any mixture can hold.

    JSONL | TFRecords -> file_task ------v
    Examples -> example_task: seqio.Task (ids of question and document)
      -> seqio.Mixture -> batches.py, converter.py

Tasks take everything as arguments and need no registration, so one process can
hold the same task at many lengths.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
import re

import numpy as np
import seqio
import tensorflow as tf

from memagent_jax.data.batch import BatchConfig
from memagent_jax.data.example_source import (
  Examples,
  ExampleSource,
  JsonlExamples,
)
from memagent_jax.data.tfrecords import TFRecordExamples
from memagent_jax.models.tokenizer import Tokenizer


class TokenizerVocabulary(seqio.Vocabulary):
  """A `Tokenizer` as a seqio vocabulary."""

  def __init__(self, tokenizer: Tokenizer, vocab_size: int):
    """Wraps the tokenizer of a model with `vocab_size` token ids."""
    super().__init__(extra_ids=0)
    self._tokenizer, self._size = tokenizer, vocab_size

  @property
  def eos_id(self) -> int | None:
    """None: an example's texts do not end a turn."""
    return None

  @property
  def unk_id(self) -> int | None:
    """None: every text has ids."""
    return None

  @property
  def _base_vocab_size(self) -> int:
    return self._size

  def _encode(self, s: str) -> Sequence[int]:
    return self._tokenizer.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    def encode(text: bytes) -> np.ndarray:
      return np.asarray(self._tokenizer.encode(text.decode()), np.int32)

    ids = tf.numpy_function(encode, [s], tf.int32)
    return tf.ensure_shape(ids, (None,))

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    def decode(ids: np.ndarray) -> bytes:
      return self._tokenizer.decode(ids.tolist()).encode()

    return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), ())

  def __eq__(self, other: object) -> bool:
    return (
      isinstance(other, TokenizerVocabulary)
      and self._tokenizer is other._tokenizer
    )


def example_task(
  name: str, examples: Mapping[str, Examples], vocabulary: seqio.Vocabulary
) -> seqio.Task:
  """A task with the features `question` and `document` as token ids.

  Args:
    name: letters, digits and underscores.
    examples: examples by split.
    vocabulary: the vocabulary of the model that reads.

  Raises:
    ValueError: a split without an example.
  """
  feature = seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
  return seqio.Task(
    name,
    ExampleSource(examples),
    output_features={'document': feature, 'question': feature},
    # Documents can be as long as memory allows: nothing is cut.
    preprocessors=[_tokenize],
  )


def file_task(
  tokenizer: Tokenizer, sizes: BatchConfig, *, path: str
) -> seqio.Task:
  """A task whose split `train` is a file that `memagent make-data` wrote.

  Args:
    tokenizer: the tokenizer of the model that reads.
    sizes: unused; the documents keep their lengths.
    path: TFRecords if it ends with `.tfrecord`, else JSONL.

  Raises:
    ValueError: the file is missing, empty, or of another kind.
  """
  del sizes
  if not Path(path).is_file():
    raise ValueError(
      f'documents {path}: no such file; `memagent make-data` makes one.'
    )
  read = TFRecordExamples if path.endswith('.tfrecord') else JsonlExamples
  vocabulary = TokenizerVocabulary(tokenizer, tokenizer.vocab_size)
  name = re.sub(r'\W', '_', Path(path).stem)
  return example_task(name, {'train': read(path)}, vocabulary)


def _tokenize(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  def tokenize(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    ids = {
      name: feature.vocabulary.encode_tf(example[name])
      for name, feature in output_features.items()
    }
    return {**example, **ids}

  return dataset.map(tokenize, num_parallel_calls=1)
