"""seqio tasks, including those from files, and the document converter."""

import numpy as np
import pytest
import seqio

from memagent_jax.data import converter as converter_lib
from memagent_jax.data import example_source, tasks, tfrecords
from memagent_jax.data.batch import BatchConfig
from memagent_jax.data.examples import Example

SIZES = BatchConfig(1, 16, 16)


def example(i, words=6):
  return Example(
    id=f'e{i}',
    task='t',
    document=' '.join(f'Word{j} of {i}.' for j in range(words)),
    question=f'Question {i}?',
    answers=(f'a{i}', 'b'),
  )


def generated(n):
  return example_source.GeneratedExamples(lambda i: example(i, words=i + 1), n)


@pytest.fixture
def vocabulary(tiny_tokenizer):
  return tasks.TokenizerVocabulary(tiny_tokenizer, 269)


def test_a_task_gives_the_ids_of_the_tokenizer(vocabulary, tiny_tokenizer):
  task = tasks.example_task('plain', {'train': generated(3)}, vocabulary)
  got = list(task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator())
  assert [r['id'] for r in got] == [b'e0', b'e1', b'e2']
  for i, features in enumerate(got):
    ids = tiny_tokenizer.encode(example(i, i + 1).document)
    assert features['document'].tolist() == ids
    assert features['answers'].tolist() == [f'a{i}'.encode(), b'b']
  assert task.num_input_examples('train') == 3


def test_files_of_both_forms_are_the_same_task(tmp_path, tiny_tokenizer):
  path = tmp_path / 'two-examples.jsonl'
  path.write_text(''.join(f'{example(i).to_json()}\n' for i in range(2)))
  records = path.with_suffix('.tfrecord')
  tfrecords.write(records, (example(i) for i in range(2)))
  of_lines, of_records = (
    tasks.file_task(tiny_tokenizer, SIZES, path=str(p)) for p in (path, records)
  )
  assert of_lines.name == of_records.name == 'two_examples'

  def read(task):
    return list(
      task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator()
    )

  assert [r['id'] for r in read(of_lines)] == [b'e0', b'e1']
  for one, two in zip(read(of_lines), read(of_records), strict=True):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('none.jsonl', None, r'none\.jsonl: no such file.*make-data'),
    ('none.tfrecord', None, r'none\.tfrecord: no such file.*make-data'),
    ('empty.jsonl', '', 'split train has no example'),
    ('empty.tfrecord', '', 'split train has no example'),
    ('lines.tfrecord', '{"id": "a line, not a record"}\n', 'TFRecords'),
  ],
)
def test_files_that_are_no_examples_are_named(
  tmp_path, tiny_tokenizer, name, content, message
):
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    tasks.file_task(tiny_tokenizer, SIZES, path=str(tmp_path / name))


def test_shards_share_the_examples_and_shuffling_is_seeded(vocabulary):
  task = tasks.example_task('shards', {'train': generated(10)}, vocabulary)

  def ids(shuffle, seed, index, count):
    info = seqio.ShardInfo(index, count)
    dataset = task.get_dataset(
      None, 'train', shuffle=shuffle, seed=seed, shard_info=info
    )
    return [r['id'].decode() for r in dataset.as_numpy_iterator()]

  assert ids(False, None, 1, 3) == ['e1', 'e4', 'e7']
  whole = [ids(True, 5, i, 3) for i in range(3)]
  assert sorted(name for part in whole for name in part) == [
    f'e{i}' for i in range(10)
  ]
  assert whole == [ids(True, 5, i, 3) for i in range(3)]
  assert ids(True, 6, 0, 1) != ids(True, 5, 0, 1)


def test_two_lengths_of_one_task_make_a_mixture(vocabulary):
  short = tasks.example_task('short', {'train': generated(4)}, vocabulary)
  long = tasks.example_task('long', {'train': generated(8)}, vocabulary)
  mixture = seqio.Mixture('both', [(short, 1.0), (long, 3.0)])
  dataset = mixture.get_dataset(
    {'document': None, 'question': None}, 'train', shuffle=False
  )
  assert 'document' in next(dataset.as_numpy_iterator())


def test_converter_cuts_chunks_and_rounds_their_slots_up(
  vocabulary, tiny_tokenizer
):
  task = tasks.example_task('chunks', {'train': generated(6)}, vocabulary)
  converter = converter_lib.DocumentConverter(tiny_tokenizer, 16, 'token')
  dataset = converter(
    task.get_dataset(None, 'train', shuffle=False),
    converter.task_feature_lengths(20),
  )
  for i, document in enumerate(dataset.as_numpy_iterator()):
    ids = tiny_tokenizer.encode(example(i, i + 1).document)
    full, rest = divmod(len(ids), 16)
    lengths = [16] * full + [rest] * bool(rest)
    slots = converter_lib.bucket(len(lengths))
    assert document['chunk'].shape == (slots, 16)
    assert document['chunk_length'].tolist() == lengths + [0] * (
      slots - len(lengths)
    )
    joined = [
      token
      for chunk, n in zip(
        document['chunk'], document['chunk_length'], strict=True
      )
      for token in chunk[:n].tolist()
    ]
    assert joined == ids
    asked = tiny_tokenizer.encode(f'Question {i}?')
    assert document['question'][: document['question_length']].tolist() == asked


def test_buckets_are_powers_of_two():
  assert [converter_lib.bucket(n) for n in (0, 1, 2, 3, 4, 5, 8, 9)] == [
    *(1, 1, 2, 4, 4, 8, 8, 16)
  ]


def test_a_question_over_its_cap_is_named(vocabulary, tiny_tokenizer):
  task = tasks.example_task('capped', {'train': generated(1)}, vocabulary)
  converter = converter_lib.DocumentConverter(tiny_tokenizer, 16)
  dataset = converter(
    task.get_dataset(None, 'train', shuffle=False),
    converter.task_feature_lengths(3),
  )
  with pytest.raises(Exception, match=r'example e0: the question has .* is 3'):
    next(dataset.as_numpy_iterator())


def test_examples_of_lines_come_in_any_order(tmp_path):
  path = tmp_path / 'examples.jsonl'
  lines = [example(i).to_json() for i in range(4)]
  path.write_text('\n'.join(lines) + '\n\n', encoding='utf-8')
  examples = example_source.JsonlExamples(path)
  assert len(examples) == 4
  assert [examples[i] for i in (3, 0, 2)] == [example(i) for i in (3, 0, 2)]


def test_a_split_without_examples_is_an_error():
  with pytest.raises(ValueError, match='split train has no example'):
    example_source.ExampleSource({'train': generated(0)})
