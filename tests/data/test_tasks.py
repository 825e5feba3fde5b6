"""seqio tasks, the offline cache, TFRecords and the document converter."""

import numpy as np
import pytest
import seqio

from memagent_jax.data import converter as converter_lib
from memagent_jax.data import example_source, tasks
from memagent_jax.data.examples import Example


def example(i, words=6):
  return Example(
    id=f'e{i}',
    task='t',
    document=' '.join(f'Word{j} of {i}.' for j in range(words)),
    question=f'Question {i}?',
    answers=(f'a{i}', 'b'),
  )


def rows(n):
  return example_source.GeneratedRows(lambda i: example(i, words=i + 1), n)


@pytest.fixture
def vocabulary(tiny_tokenizer):
  return tasks.TokenizerVocabulary(tiny_tokenizer, 269)


def test_a_task_gives_the_ids_of_the_tokenizer(vocabulary, tiny_tokenizer):
  task = tasks.example_task('plain', {'train': rows(3)}, vocabulary)
  got = list(task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator())
  assert [r['id'] for r in got] == [b'e0', b'e1', b'e2']
  for i, row in enumerate(got):
    ids = tiny_tokenizer.encode(example(i, i + 1).document)
    assert row['document'].tolist() == ids
    assert row['answers'].tolist() == [f'a{i}'.encode(), b'b']
  assert task.num_input_examples('train') == 3


def test_a_file_of_examples_is_a_task(tmp_path, tiny_tokenizer):
  path = tmp_path / 'two-rows.jsonl'
  path.write_text(''.join(f'{example(i).to_json()}\n' for i in range(2)))
  task = tasks.jsonl_documents(tiny_tokenizer, path=str(path))
  got = list(task.get_dataset(None, 'train', shuffle=False).as_numpy_iterator())
  assert [r['id'] for r in got] == [b'e0', b'e1']
  assert task.name == 'two_rows'
  with pytest.raises(ValueError, match=r'none\.jsonl: no such file.*make_data'):
    tasks.jsonl_documents(tiny_tokenizer, path=str(tmp_path / 'none.jsonl'))


def test_shards_share_the_rows_and_shuffling_is_seeded(vocabulary):
  task = tasks.example_task('shards', {'train': rows(10)}, vocabulary)

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
  short = tasks.example_task('short', {'train': rows(4)}, vocabulary)
  long = tasks.example_task('long', {'train': rows(8)}, vocabulary)
  mixture = seqio.Mixture('both', [(short, 1.0), (long, 3.0)])
  dataset = mixture.get_dataset(
    {'document': None, 'question': None}, 'train', shuffle=False
  )
  assert 'document' in next(dataset.as_numpy_iterator())


def test_tfrecords_read_back_as_the_same_task(vocabulary, tmp_path):
  path = tmp_path / 'train.tfrecord'
  count = tasks.write_tfrecords(path, (example(i, i + 1) for i in range(3)))
  assert count == 3
  read = tasks.tfrecord_task('records', {'train': str(path)}, vocabulary)
  made = tasks.example_task('made', {'train': rows(3)}, vocabulary)
  for one, two in zip(
    read.get_dataset(None, 'train', shuffle=False).as_numpy_iterator(),
    made.get_dataset(None, 'train', shuffle=False).as_numpy_iterator(),
    strict=True,
  ):
    assert one.keys() == two.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], two[name])
  again = tmp_path / 'again.tfrecord'
  tasks.write_tfrecords(again, (example(i, i + 1) for i in range(3)))
  assert again.read_bytes() == path.read_bytes()


def test_the_offline_cache_is_seqios_own(vocabulary, tmp_path):
  task = tasks.example_task('cached', {'train': rows(3)}, vocabulary)
  tasks.cache_task(task, tmp_path)
  seqio.add_global_cache_dirs([str(tmp_path)])
  fresh = tasks.example_task('cached', {'train': rows(3)}, vocabulary)
  cached = fresh.get_dataset(None, 'train', use_cached=True, shuffle=False)
  plain = fresh.get_dataset(None, 'train', shuffle=False)
  for one, two in zip(
    cached.as_numpy_iterator(), plain.as_numpy_iterator(), strict=True
  ):
    for name in ('id', 'document', 'question', 'answers'):
      np.testing.assert_array_equal(one[name], two[name])
  assert fresh.get_cached_stats('train')['examples'] == 3


def test_converter_cuts_chunks_and_rounds_their_slots_up(
  vocabulary, tiny_tokenizer
):
  task = tasks.example_task('chunks', {'train': rows(6)}, vocabulary)
  converter = converter_lib.DocumentConverter(tiny_tokenizer, 16, 'token')
  dataset = converter(
    task.get_dataset(None, 'train', shuffle=False),
    converter.task_feature_lengths(20),
  )
  for i, row in enumerate(dataset.as_numpy_iterator()):
    ids = tiny_tokenizer.encode(example(i, i + 1).document)
    full, rest = divmod(len(ids), 16)
    lengths = [16] * full + [rest] * bool(rest)
    slots = converter_lib.bucket(len(lengths))
    assert row['chunk'].shape == (slots, 16)
    assert row['chunk_length'].tolist() == lengths + [0] * (
      slots - len(lengths)
    )
    joined = [
      token
      for chunk, n in zip(row['chunk'], row['chunk_length'], strict=True)
      for token in chunk[:n].tolist()
    ]
    assert joined == ids
    asked = tiny_tokenizer.encode(f'Question {i}?')
    assert row['question'][: row['question_length']].tolist() == asked


def test_buckets_are_powers_of_two():
  assert [converter_lib.bucket(n) for n in (0, 1, 2, 3, 4, 5, 8, 9)] == [
    *(1, 1, 2, 4, 4, 8, 8, 16)
  ]


def test_a_question_over_its_cap_is_named(vocabulary, tiny_tokenizer):
  task = tasks.example_task('capped', {'train': rows(1)}, vocabulary)
  converter = converter_lib.DocumentConverter(tiny_tokenizer, 16)
  dataset = converter(
    task.get_dataset(None, 'train', shuffle=False),
    converter.task_feature_lengths(3),
  )
  with pytest.raises(Exception, match=r'example e0: the question has .* is 3'):
    next(dataset.as_numpy_iterator())


def test_jsonl_rows_come_in_any_order(tmp_path):
  path = tmp_path / 'rows.jsonl'
  lines = [example(i).to_json() for i in range(4)]
  path.write_text('\n'.join(lines) + '\n\n', encoding='utf-8')
  found = example_source.JsonlRows(path)
  assert len(found) == 4
  assert [found[i] for i in (3, 0, 2)] == [example(i) for i in (3, 0, 2)]


def test_a_split_without_examples_is_an_error():
  with pytest.raises(ValueError, match='split train has no example'):
    example_source.RowSource({'train': rows(0)})
