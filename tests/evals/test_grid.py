"""The plan of a grid: cells, batches, order and shards."""

import dataclasses

import pytest

from memagent_jax.evals import grid
from memagent_jax.evals.grid import GridBlock
from memagent_jax.evals.methods.memory_agent import MemAgent
from memagent_jax.evals.methods.one_turn import OneTurn
from memagent_jax.evals.records import Cell
from tests import tiny_runs

METHODS = {
  'MemAgent': MemAgent(),
  'full': OneTurn(batch_tokens=600, document_tokens=5000, extension='yarn'),
}
CONFIGS = {'a': tiny_runs.CONFIG, 'b': tiny_runs.CONFIG}


def plan(*blocks, batch_size=4):
  return grid.plan(blocks, METHODS, CONFIGS, batch_size)


def block(**changes):
  values = {
    'models': ('a',),
    'methods': ('MemAgent',),
    'tasks': ('niah_single_1',),
    'sizes': (1000,),
    'examples': 3,
  }
  return GridBlock(**values | changes)


def test_a_block_is_everything_with_everything():
  grid_plan = plan(
    block(
      models=('a', 'b'), tasks=('vt', 'cwe'), sizes=(200, 300), seeds=(1, 2)
    )
  )
  cells = {example.cell for example in grid_plan.order()}
  assert len(cells) == 16 and len(grid_plan.order()) == 48
  assert Cell('b', 'MemAgent', 'cwe', 300, 2) in cells


def test_blocks_that_overlap_share_their_examples():
  grid_plan = plan(block(examples=3), block(examples=7))
  assert len(grid_plan.order()) == 7
  assert len({e for batch in grid_plan.batches for e in batch.examples}) == 7


def test_tasks_of_one_length_fill_a_batch_together():
  grid_plan = plan(block(tasks=('vt', 'cwe', 'fwe'), examples=3), batch_size=4)
  assert [len(b.examples) for b in grid_plan.batches] == [4, 4, 1]
  # The last batch is filled up to the shape of the others.
  assert {b.size for b in grid_plan.batches} == {4}
  assert len({b.name for b in grid_plan.batches}) == 3


def test_a_method_decides_how_many_documents_are_a_batch():
  grid_plan = plan(
    block(methods=('full',), sizes=(100, 300), examples=4), batch_size=4
  )
  by_size = {b.cell.size: b.size for b in grid_plan.batches}
  assert by_size == {100: 4, 300: 2}


def test_the_longest_batches_come_first():
  grid_plan = plan(block(sizes=(200, 5000, 1000)))
  assert [b.cell.size for b in grid_plan.batches] == [5000, 1000, 200]


def test_what_is_too_long_is_not_run():
  grid_plan = plan(block(methods=('full',), sizes=(5000, 10_000)))
  assert {example.cell.size for example in grid_plan.order()} == {5000}
  ((cell, tokens),) = grid_plan.not_run
  assert tokens == 10_000
  assert cell == Cell('a', 'full', 'niah_single_1', 10_000, 0)


def test_shards_part_the_batches_and_share_the_work():
  grid_plan = plan(
    block(models=('a', 'b'), sizes=(200, 400, 800, 1600, 3200), examples=9)
  )
  shards = [grid_plan.shard(i, 3) for i in range(3)]
  names = sorted(b.name for shard in shards for b in shard)
  assert names == sorted(b.name for b in grid_plan.batches)
  loads = [sum(b.flops for b in shard) for shard in shards]
  assert max(loads) - min(loads) <= max(b.flops for b in grid_plan.batches)
  for shard in shards:
    costs = [b.flops for b in shard]
    assert costs == sorted(costs, reverse=True)


def test_the_order_of_records_does_not_depend_on_their_batches():
  both = block(tasks=('vt', 'cwe'), sizes=(200, 400))
  one = plan(both, batch_size=4).order()
  other = plan(both, batch_size=1).order()
  assert one == other and sorted(one.values()) == list(range(12))


@pytest.mark.parametrize(
  ('task', 'size', 'unit', 'tokens'),
  [
    ('vt', 3000, None, 3000),
    ('ruler_hqa', 50, None, 50 * 150),
    ('own', 0, None, 8192),
    ('niah_single_2', 16, 256, 16 * 256),
  ],
)
def test_sizes_of_other_units_have_about_their_tokens(task, size, unit, tokens):
  blocks = [block(tasks=(task,), sizes=(size,))]
  (batch,) = grid.plan(blocks, METHODS, CONFIGS, 4, unit).batches
  assert batch.tokens == tokens


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'models': ('c',)}, "model 'c' of a block is unknown; choose from a, b"),
    ({'methods': ('rag',)}, "'rag' .* choose from MemAgent, full"),
    ({'tasks': ('niah',)}, "task 'niah' is unknown; choose from niah_single_1"),
    ({'examples': 0}, 'examples is 0'),
    ({'sizes': ()}, 'a block has no sizes'),
  ],
)
def test_wrong_blocks_say_what_is_known(changes, message):
  with pytest.raises(ValueError, match=message):
    plan(block(**changes))


def test_a_shard_that_is_none():
  with pytest.raises(ValueError, match='shard 3/3: expected an index'):
    plan(block()).shard(3, 3)


def test_lists_of_a_gin_file_are_taken():
  lists = dataclasses.asdict(block())
  assert GridBlock(
    **{k: list(v) if k != 'examples' else v for k, v in lists.items()}
  ) == (block())
