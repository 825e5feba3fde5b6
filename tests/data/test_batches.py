"""The order of examples, exact resuming, and the content of batches."""

import collections

import numpy as np
import pytest
import seqio

from memagent_jax.data import batches, example_source, tasks, tfrecords
from memagent_jax.data.batch import BatchConfig
from memagent_jax.data.batches import BatchIterator, Schedule
from memagent_jax.data.examples import Example

CONFIG = BatchConfig(batch_size=4, chunk_tokens=16, question_tokens=20, seed=3)


def generated(name, n):
  return example_source.GeneratedExamples(
    lambda i: Example(
      id=f'{name}{i}',
      task=name,
      document='Some words. ' * (i + 1),
      question='Which?',
      answers=('this', 'that'),
      reward='boxed_all',
    ),
    n,
  )


@pytest.fixture
def mixture(tiny_tokenizer):
  vocabulary = tasks.TokenizerVocabulary(tiny_tokenizer, 269)
  first = tasks.example_task(
    'first', {'train': generated('first', 6)}, vocabulary
  )
  second = tasks.example_task(
    'second', {'train': generated('other', 4)}, vocabulary
  )
  return seqio.Mixture('mixed', [(first, 1.0), (second, 1.0)])


def take(iterator, n):
  return [next(iterator) for _ in range(n)]


def ids(batch_list):
  return [name for batch in batch_list for name in batch.ids]


def test_every_example_comes_once_an_epoch():
  schedule = Schedule((5, 3), (5.0, 3.0), seed=0)
  for epoch in range(3):
    seen = [schedule.at(8 * epoch + i) for i in range(8)]
    assert sorted(seen) == [(0, i) for i in range(5)] + [
      (1, i) for i in range(3)
    ]
  first, second = ([schedule.at(8 * e + i) for i in range(8)] for e in (0, 1))
  assert first != second


def test_readings_of_an_example_are_numbered_over_all_epochs():
  schedule = Schedule((3, 1), (1.0, 1.0), seed=0)
  numbers = collections.defaultdict(set)
  for position in range(24):
    numbers[schedule.at(position)].add(schedule.reading(position))
  # Two of every four places go to the only example of the second task.
  assert numbers[1, 0] == set(range(12))
  assert all(numbers[0, i] == set(range(4)) for i in range(3))


def test_rates_share_out_an_epoch_and_leave_no_example_out():
  schedule = Schedule((8, 2), (1.0, 1.0), seed=1)
  counts = collections.Counter(schedule.at(i) for i in range(80))
  assert sum(n for (task, _), n in counts.items() if task == 0) == 40
  # 40 turns over 8 examples, and over 2 examples: each equally often.
  assert set(counts[0, i] for i in range(8)) == {5}
  assert set(counts[1, i] for i in range(2)) == {20}


def test_shares_sum_to_the_total():
  assert batches._shares(10, (1.0, 1.0, 1.0)) == [4, 3, 3]
  assert batches._shares(7, (0.1, 0.9)) == [1, 6]


@pytest.mark.parametrize('batches_before', [0, 1, 2, 5])
def test_a_restored_iterator_goes_on_exactly(
  mixture, tiny_tokenizer, batches_before
):
  straight = BatchIterator(mixture, tiny_tokenizer, CONFIG)
  expected = ids(take(straight, batches_before + 3))
  stopped = BatchIterator(mixture, tiny_tokenizer, CONFIG)
  before = ids(take(stopped, batches_before))
  state = stopped.state()
  # 10 positions per epoch, 4 per batch.
  assert state == {
    'seed': 3,
    'epoch': 4 * batches_before // 10,
    'index': 4 * batches_before % 10,
  }
  resumed = BatchIterator(mixture, tiny_tokenizer, CONFIG)
  resumed.restore(state)
  assert before + ids(take(resumed, 3)) == expected


def test_an_iterator_that_was_used_is_restored_too(mixture, tiny_tokenizer):
  """Forwards and backwards, whatever it was about to yield."""
  iterator = BatchIterator(mixture, tiny_tokenizer, CONFIG)
  states, expected = [], []
  for _ in range(4):
    states.append(iterator.state())
    expected.append(next(iterator).ids)
  for number in (1, 3, 0):
    iterator.restore(states[number])
    assert next(iterator).ids == expected[number]


def test_files_of_both_forms_give_the_same_batches(tmp_path, tiny_tokenizer):
  examples = [generated('first', 6)[i] for i in range(6)]
  lines, records = tmp_path / 'a.jsonl', tmp_path / 'a.tfrecord'
  lines.write_text(''.join(f'{e.to_json()}\n' for e in examples))
  tfrecords.write(records, examples)
  of_lines, of_records = (
    BatchIterator(
      tasks.file_task(tiny_tokenizer, CONFIG, path=str(path)),
      tiny_tokenizer,
      CONFIG,
    )
    for path in (lines, records)
  )
  for one, two in zip(take(of_lines, 3), take(of_records, 3), strict=True):
    assert one.ids == two.ids and one.answers == two.answers
    np.testing.assert_array_equal(
      one.documents.chunk.ids_NxW, two.documents.chunk.ids_NxW
    )


def test_a_batch_holds_the_chunks_of_its_documents(mixture, tiny_tokenizer):
  batch = next(BatchIterator(mixture, tiny_tokenizer, CONFIG))
  chunk = batch.documents.chunk
  assert chunk.ids_NxW.shape[1:] == (4, 16)
  for b, name in enumerate(batch.ids):
    number = int(name.removeprefix('first').removeprefix('other'))
    lengths = chunk.length_N[:, b]
    text = tiny_tokenizer.decode(
      np.concatenate(
        [chunk.ids_NxW[c, b, :n] for c, n in enumerate(lengths)]
      ).tolist()
    )
    assert text == 'Some words. ' * (number + 1)
    assert list(lengths > 0) == sorted(lengths > 0, reverse=True)
  assert batch.answers == (('this', 'that'),) * 4
  assert batch.rewards == ('boxed_all',) * 4


def test_bad_use_is_named(mixture, tiny_tokenizer, tmp_path):
  with pytest.raises(ValueError, match=r"splits \['train'\]; got 'test'"):
    BatchIterator(mixture, tiny_tokenizer, CONFIG, split='test')
  iterator = BatchIterator(mixture, tiny_tokenizer, CONFIG)
  with pytest.raises(ValueError, match='seed 4; this run has seed 3'):
    iterator.restore({'seed': 4, 'epoch': 0, 'index': 0})
  with pytest.raises(ValueError, match='expected epoch, index, seed'):
    iterator.restore({'step': 1})
  source = seqio.TextLineDataSource({'train': str(tmp_path / 'a.txt')})
  lines = seqio.Task('lines', source, {}, [])
  with pytest.raises(ValueError, match='TextLineDataSource'):
    BatchIterator(lines, tiny_tokenizer, CONFIG)
  with pytest.raises(ValueError, match='batch_size is 0'):
    BatchConfig(batch_size=0, chunk_tokens=1, question_tokens=1)
