"""TFRecords: written records are read back, by number; damage is detected."""

import pytest
import tensorflow as tf

from memagent_jax.data import tfrecords
from memagent_jax.data.examples import Example

EXAMPLES = [
  Example(
    id=f'e{i}',
    task='t',
    document='Grün ' * (i + 1),
    question=f'Question {i}?',
    answers=(f'a{i}', 'b'),
    reward='boxed_all',
    metric='em',
  )
  for i in range(4)
]


def test_examples_come_back_by_number(tmp_path):
  path = tmp_path / 'a.tfrecord'
  assert tfrecords.write(path, EXAMPLES) == 4
  examples = tfrecords.TFRecordExamples(path)
  assert len(examples) == 4
  assert [examples[i] for i in (3, 0, 2, 1)] == [
    EXAMPLES[i] for i in (3, 0, 2, 1)
  ]
  again = tmp_path / 'again.tfrecord'
  tfrecords.write(again, iter(EXAMPLES))
  assert again.read_bytes() == path.read_bytes()


def test_tensorflow_reads_the_same_texts(tmp_path):
  path = tmp_path / 'a.tfrecord'
  tfrecords.write(path, EXAMPLES)
  spec = {
    'document': tf.io.FixedLenFeature((), tf.string),
    'answers': tf.io.VarLenFeature(tf.string),
  }
  records = [
    tf.io.parse_single_example(record, spec)
    for record in tf.data.TFRecordDataset(str(path))
  ]
  assert [r['document'].numpy().decode() for r in records] == [
    e.document for e in EXAMPLES
  ]
  assert records[2]['answers'].values.numpy().tolist() == [b'a2', b'b']


def test_damage_is_seen_before_the_first_example(tmp_path):
  path = tmp_path / 'a.tfrecord'
  tfrecords.write(path, EXAMPLES)
  whole = path.read_bytes()
  flipped = bytearray(whole)
  flipped[-10] ^= 1
  for damaged in (whole[:-1], bytes(flipped)):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match='no whole record; expected TFRecords'):
      tfrecords.TFRecordExamples(path)
