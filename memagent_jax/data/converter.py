"""Task features to one padded document: question ids and chunk slots.

question ids, document ids -> DocumentConverter -> question [Q], chunk [C, K]
  -> batches.py, which pads all documents to the same number of chunk slots
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import seqio
import tensorflow as tf

from memagent_jax.data.chunks import ChunkCutter
from memagent_jax.data.example_source import TEXT_FEATURES
from memagent_jax.data.examples import check_question
from memagent_jax.models.tokenizer import Tokenizer


class DocumentConverter(seqio.FeatureConverter):
  """Converts task features to one padded document: its question and chunks.

  Chunk slots are rounded up to a power of two, so that few shapes occur.
  """

  TASK_FEATURES: ClassVar = {
    'document': seqio.FeatureConverter.FeatureSpec(tf.int32),
    'question': seqio.FeatureConverter.FeatureSpec(tf.int32),
  }
  MODEL_FEATURES: ClassVar = {
    'question': seqio.FeatureConverter.FeatureSpec(tf.int32),
    'question_length': seqio.FeatureConverter.FeatureSpec(tf.int32, rank=0),
    'chunk': seqio.FeatureConverter.FeatureSpec(tf.int32, rank=2),
    'chunk_length': seqio.FeatureConverter.FeatureSpec(tf.int32),
  }
  PACKING_FEATURE_DTYPES = None

  def __init__(
    self, tokenizer: Tokenizer, chunk_tokens: int, chunk_cut: str = 'sentence'
  ):
    """Makes a converter; the arguments are those of `ChunkCutter`."""
    text = seqio.FeatureConverter.FeatureSpec(tf.string, rank=0)
    passed = dict.fromkeys(TEXT_FEATURES, text)
    passed['answers'] = seqio.FeatureConverter.FeatureSpec(tf.string)
    # Chunk slots differ between documents; only the question has a length to
    # check, which `_convert_features` does.
    super().__init__(
      pack=False, apply_length_check=False, passthrough_features=passed
    )
    self._cutter = ChunkCutter(tokenizer, chunk_tokens, chunk_cut)
    self._chunk_tokens = chunk_tokens

  def task_feature_lengths(self, question_tokens: int) -> dict[str, int | None]:
    """The lengths that seqio asks for: only the question has a cap."""
    lengths = dict.fromkeys([*self.TASK_FEATURES, *self._passthrough_features])
    return lengths | {'question': question_tokens}

  def _convert_features(
    self,
    ds: tf.data.Dataset,
    task_feature_lengths: Mapping[str, int],
  ) -> tf.data.Dataset:
    question_tokens = task_feature_lengths['question']

    def convert(
      document: np.ndarray, question: np.ndarray, name: bytes
    ) -> tuple[Any, ...]:
      chunk, length = self._chunks(document)
      check_question(name.decode(), len(question), question_tokens)
      padded = np.zeros(question_tokens, np.int32)
      padded[: len(question)] = question
      return padded, np.int32(len(question)), chunk, length

    def convert_tf(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      question, question_length, chunk, length = tf.numpy_function(
        convert,
        [example['document'], example['question'], example['id']],
        [tf.int32] * 4,
      )
      return {
        'question': tf.ensure_shape(question, (question_tokens,)),
        'question_length': tf.ensure_shape(question_length, ()),
        'chunk': tf.ensure_shape(chunk, (None, self._chunk_tokens)),
        'chunk_length': tf.ensure_shape(length, (None,)),
        **{name: example[name] for name in self._passthrough_features},
      }

    return ds.map(convert_tf, num_parallel_calls=1)

  def _chunks(self, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[C, K] ids and [C] lengths; slots beyond the document have length 0."""
    chunks = self._cutter.split(document.tolist())
    slots = bucket(len(chunks))
    ids = np.zeros((slots, self._chunk_tokens), np.int32)
    length = np.zeros(slots, np.int32)
    for i, chunk in enumerate(chunks):
      ids[i, : len(chunk)] = chunk
      length[i] = len(chunk)
    return ids, length

  def get_model_feature_lengths(
    self, task_feature_lengths: Mapping[str, int | None]
  ) -> dict[str, int | None]:
    """The question's length; the others differ from document to document."""
    lengths = dict.fromkeys([*self.MODEL_FEATURES, *self._passthrough_features])
    return lengths | {'question': task_feature_lengths['question']}


def bucket(chunks: int) -> int:
  """The number of slots for `chunks` chunks: a power of two, at least 1."""
  return 1 << max(0, chunks - 1).bit_length()
