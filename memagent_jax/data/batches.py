"""Batches of documents in an order that three integers determine.

    Mixture or Task -> Schedule(seed) -> examples by index -> DocumentConverter
      -> Batch(Documents, ids, answers);  state() = {seed, epoch, index}

tf.data iterators over Python functions cannot be saved. To continue at (seed,
epoch, index), a new iterator is built there, which costs nothing else.
"""

import atexit
from collections.abc import Iterator, Mapping
import functools
import itertools
import re
from typing import Any
import weakref

import numpy as np
import seqio
import tensorflow as tf

from memagent_jax.data.batch import Batch, BatchConfig
from memagent_jax.data.converter import DocumentConverter
from memagent_jax.data.example_source import ExampleSource
from memagent_jax.data.examples import seeded
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import Documents, Tokens

# Iterators that may still hold a pipeline. TensorFlow waits for a pipeline's threads
# when it is freed, and threads that need Python never end once it shuts down.
_ITERATORS: weakref.WeakSet['BatchIterator'] = weakref.WeakSet()


@atexit.register
def _free_pipelines() -> None:
  for iterator in list(_ITERATORS):
    iterator._rows = None


class BatchIterator:
  """Endless batches, the same ones in every process of a run.

  Examples are taken epoch by epoch: an epoch has as many positions as the
  mixture has examples, divided among tasks by rate, in an order drawn from
  (seed, epoch). Over all epochs the examples of a task come equally often.
  """

  def __init__(
    self,
    provider: seqio.Task | seqio.Mixture,
    tokenizer: Tokenizer,
    config: BatchConfig,
    *,
    split: str = 'train',
  ):
    """Makes an iterator at the start of epoch 0.

    Raises:
      ValueError: a task without the split, or one whose source is not an
        ExampleSource.
    """
    self._config, self._split = config, split
    self._tasks = _tasks_of(provider, split)
    rates: tuple[float, ...] = (1.0,)
    if isinstance(provider, seqio.Mixture):
      rates = tuple(float(provider.get_rate(task)) for task in self._tasks)
    sizes = tuple(task.num_input_examples(split) for task in self._tasks)
    self._schedule = Schedule(sizes, rates, config.seed)
    self._converter = DocumentConverter(
      tokenizer, config.chunk_tokens, config.chunk_cut
    )
    self._position = 0
    self._rows: Iterator | None = None
    _ITERATORS.add(self)

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> Batch:
    """The next batch.

    Raises:
      ValueError: an example cannot be generated, or its question is over the
        cap.
    """
    if self._rows is None:
      self._rows = self._dataset(self._position).as_numpy_iterator()
    try:
      rows = list(itertools.islice(self._rows, self._config.batch_size))
    except tf.errors.InvalidArgumentError as e:
      # tf.data wraps what our own functions raise, traceback and all.
      own = re.search(r'ValueError: (.*?)\nTraceback', e.message, re.DOTALL)
      if own is None:
        raise
      raise ValueError(own.group(1)) from e
    begin, self._position = self._position, self._position + len(rows)
    readings = map(self._schedule.reading, range(begin, self._position))
    return _batch(rows, tuple(readings))

  def state(self) -> dict[str, int]:
    """Where the next batch begins: `seed`, `epoch` and `index` in the epoch."""
    epoch, index = divmod(self._position, self._schedule.epoch_size)
    return {'seed': self._config.seed, 'epoch': epoch, 'index': index}

  def restore(self, state: Mapping[str, int]) -> None:
    """Continues where `state` was taken.

    Raises:
      ValueError: the state is not one, or has another seed.
    """
    if sorted(state) != ['epoch', 'index', 'seed']:
      raise ValueError(
        f'iterator state has {sorted(state)}; expected epoch, index, seed.'
      )
    if state['seed'] != self._config.seed:
      raise ValueError(
        f'iterator state is of seed {state["seed"]}; this run has seed '
        f'{self._config.seed}.'
      )
    size = self._schedule.epoch_size
    self._position = state['epoch'] * size + state['index']
    self._rows = None

  def _dataset(self, start: int) -> tf.data.Dataset:
    """Model features of the examples from position `start` on."""

    def entry(number: np.ndarray) -> np.ndarray:
      return np.asarray(self._schedule.at(start + int(number)), np.int64)

    # tf.data's counter ends at 2^63, which is never reached.
    entries = tf.data.Dataset.counter().map(
      lambda number: tf.ensure_shape(
        tf.numpy_function(entry, [number], tf.int64), (2,)
      )
    )
    parts = []
    for number, task in enumerate(self._tasks):
      of_task = entries.filter(lambda e, number=number: e[0] == number)
      dataset = task.source.in_order(self._split, of_task.map(lambda e: e[1]))
      dataset = task.preprocess_precache(dataset)
      parts.append(task.preprocess_postcache(dataset, sequence_length=None))
    choice = entries.map(lambda e: e[0])
    mixed = tf.data.Dataset.choose_from_datasets(parts, choice)
    lengths = self._converter.task_feature_lengths(self._config.question_tokens)
    return self._converter(mixed, lengths)


class Schedule:
  """Which example of which task is at a position, as a pure function."""

  def __init__(
    self, sizes: tuple[int, ...], rates: tuple[float, ...], seed: int
  ):
    """Makes the order for tasks with `sizes` examples, mixed at `rates`."""
    self._sizes, self._seed = sizes, seed
    self.epoch_size = sum(sizes)
    self._quotas = _shares(self.epoch_size, rates)
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
    self._pass = functools.lru_cache(maxsize=2 * len(sizes))(self._make_pass)

  def at(self, position: int) -> tuple[int, int]:
    """(task index, example index) at a position counted over all epochs."""
    return self._entry(position)[:2]

  def reading(self, position: int) -> int:
    """Which reading of its example a position is, from 0."""
    return self._entry(position)[2]

  def _entry(self, position: int) -> tuple[int, int, int]:
    epoch, index = divmod(position, self.epoch_size)
    return self._epoch(epoch)[index]

  def _make_epoch(self, epoch: int) -> list[tuple[int, int, int]]:
    entries = []
    for task, (size, quota) in enumerate(
      zip(self._sizes, self._quotas, strict=True)
    ):
      # Continues where the previous epoch stopped: nothing is left out.
      for place in range(epoch * quota, (epoch + 1) * quota):
        turn, index = divmod(place, size)
        entries.append((task, self._pass(task, turn)[index], turn))
    seeded('epoch', self._seed, epoch).shuffle(entries)
    return entries

  def _make_pass(self, task: int, turn: int) -> list[int]:
    order = list(range(self._sizes[task]))
    seeded('pass', self._seed, task, turn).shuffle(order)
    return order


def _shares(total: int, rates: tuple[float, ...]) -> list[int]:
  """`total` split by rates; the largest fractions are rounded up."""
  exact = [total * rate / sum(rates) for rate in rates]
  shares = [int(x) for x in exact]
  by_rest = sorted(range(len(rates)), key=lambda i: shares[i] - exact[i])
  for i in by_rest[: total - sum(shares)]:
    shares[i] += 1
  return shares


def _tasks_of(
  provider: seqio.Task | seqio.Mixture, split: str
) -> list[seqio.Task]:
  tasks = [provider] if isinstance(provider, seqio.Task) else provider.tasks
  for task in tasks:
    if not isinstance(task.source, ExampleSource):
      raise ValueError(
        f'task {task.name} has a {type(task.source).__name__}; exact resuming '
        'needs examples by number: make it with example_task or file_task.'
      )
    if split not in task.splits:
      raise ValueError(
        f'task {task.name} has splits {list(task.splits)}; got {split!r}.'
      )
  return tasks


def _batch(rows: list[Mapping[str, Any]], readings: tuple[int, ...]) -> Batch:
  """The rows as a batch, padded to the most chunk slots among them."""
  slots = max(len(row['chunk_length']) for row in rows)
  width = rows[0]['chunk'].shape[1]
  chunk_CxBxK = np.zeros((slots, len(rows), width), np.int32)
  chunk_length_CxB = np.zeros((slots, len(rows)), np.int32)
  for b, row in enumerate(rows):
    own = len(row['chunk_length'])
    chunk_CxBxK[:own, b] = row['chunk']
    chunk_length_CxB[:own, b] = row['chunk_length']
  documents = Documents(
    question=Tokens(
      np.stack([row['question'] for row in rows]),
      np.asarray([row['question_length'] for row in rows], np.int32),
    ),
    chunk=Tokens(chunk_CxBxK, chunk_length_CxB),
  )

  def texts(name: str) -> tuple[str, ...]:
    return tuple(row[name].decode() for row in rows)

  return Batch(
    documents=documents,
    ids=texts('id'),
    tasks=texts('task'),
    answers=tuple(tuple(a.decode() for a in row['answers']) for row in rows),
    rewards=texts('reward'),
    metrics=texts('metric'),
    readings=readings,
  )
