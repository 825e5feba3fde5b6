"""Needle documents: numbers of chunks, the evidence in them, seeds that matter."""

import itertools

import pytest

from memagent_jax.data.batch import BatchConfig
from memagent_jax.data.batches import BatchIterator
from memagent_jax.data.benchmarks.needle_documents import needle_documents
from memagent_jax.data.chunks import CUTS

TASKS = {'niah_single_1': 1.0, 'niah_single_2': 2.0, 'niah_multikey_1': 1.0}
CHUNK_TOKENS = 800


@pytest.fixture(scope='module')
def essay(tmp_path_factory):
  path = tmp_path_factory.mktemp('essay') / 'essay.txt'
  sentences = [
    f'On day {i} it rained, and nobody came to the house. ' for i in range(300)
  ]
  path.write_text(''.join(sentences))
  return str(path)


@pytest.fixture
def read(tiny_tokenizer, essay):
  """Examples of a mixture as dicts: id, task, answers and texts of the chunks."""

  def documents(count, chunks, *, seed=0, chunk_cut='sentence', **changes):
    tokens = changes.pop('chunk_tokens', CHUNK_TOKENS)
    config = BatchConfig(1, tokens, 200, chunk_cut)
    mixture = needle_documents(
      tiny_tokenizer,
      config,
      chunks=chunks,
      essays=[essay],
      num_examples=20,
      seed=seed,
      **{'tasks_and_rates': TASKS} | changes,
    )
    batches = BatchIterator(mixture, tiny_tokenizer, config)
    return [row_of(batch) for batch in itertools.islice(batches, count)]

  def row_of(batch):
    chunk = batch.documents.chunk
    length_C = chunk.length_N[:, 0]
    texts = [
      tiny_tokenizer.decode(ids[:length])
      for ids, length in zip(chunk.ids_NxW[:, 0], length_C, strict=True)
      if length
    ]
    return {
      'id': batch.ids[0],
      'task': batch.tasks[0],
      'answers': batch.answers[0],
      'reward': batch.rewards[0],
      'chunks': texts,
    }

  return documents


@pytest.mark.parametrize('cut', CUTS)
@pytest.mark.parametrize('chunks', [1, 2, 5])
def test_documents_have_the_chunks_asked_for_and_their_evidence(
  read, chunks, cut
):
  rows = read(12, chunks, chunk_cut=cut)
  assert {row['task'] for row in rows} == set(TASKS)
  for row in rows:
    assert len(row['chunks']) == chunks
    document = ''.join(row['chunks'])
    assert len(row['answers']) == 1 and row['reward'] == 'boxed_em'
    needle = f' is: {row["answers"][0]}.'
    assert document.count(needle) == 1
    if cut == 'sentence':
      # No needle is cut in two.
      assert sum(needle in chunk for chunk in row['chunks']) == 1


def test_evidence_is_in_any_chunk(read):
  rows = read(20, 2)
  places = [
    next(i for i, text in enumerate(row['chunks']) if row['answers'][0] in text)
    for row in rows
  ]
  assert 4 <= sum(places) <= 16


def test_long_documents_may_be_a_little_shorter(read):
  for row in read(3, 48, chunk_tokens=200):
    assert 47 <= len(row['chunks']) <= 48


def test_seeds_make_the_documents(read):
  one, again, other = read(8, 1), read(8, 1), read(8, 1, seed=1)
  assert one == again
  for key in ('id', 'chunks', 'answers'):
    assert not {str(r[key]) for r in one} & {str(r[key]) for r in other}
  assert len({row['id'] for row in one}) == 8


def test_rates_say_how_often_a_task_comes(read):
  # An epoch of 60 has 15, 30 and 15.
  tasks = [row['task'] for row in read(60, 1)]
  assert tasks.count('niah_single_2') == 30


@pytest.mark.parametrize(
  ('tasks', 'message'),
  [
    ({'niah': 1.0, 'vt': 1.0}, r"tasks \['niah', 'vt'\]; choose from niah_"),
    ({}, 'tasks none; choose from niah_single_1, '),
    ({'niah_single_1': 0.0}, 'expected rates above 0'),
  ],
)
def test_tasks_that_are_none_are_refused(read, tasks, message):
  with pytest.raises(ValueError, match=message):
    read(1, 1, tasks_and_rates=tasks)


def test_a_chunk_too_small_for_a_needle_is_refused(read):
  with pytest.raises(ValueError, match=r'niah_|tokens'):
    read(1, 1, chunk_tokens=40)
