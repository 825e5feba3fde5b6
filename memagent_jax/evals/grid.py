"""A grid of evaluation: models x methods x tasks x sizes x seeds, resumable.

    blocks -> plan: batches, longest first, and cells too long to run
      -> Method.answer -> traces/, rows*.jsonl, timings*.jsonl -> finish

Which rows are in a batch depends on the grid alone and a batch always has its
full shape, so a killed grid's rows are an uninterrupted one's, byte for byte.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import itertools

from memagent_jax.data.benchmarks import registry
from memagent_jax.evals.methods.method import Method
from memagent_jax.evals.records import Cell
from memagent_jax.models.configs import ModelConfig

# About the tokens of a paragraph, and of a document that nobody counted.
_PARAGRAPH_TOKENS, _OWN_TOKENS = 150, 8192


@dataclasses.dataclass(frozen=True)
class Block:
  """A part of a grid: everything in it with everything else."""

  models: tuple[str, ...]
  methods: tuple[str, ...]
  tasks: tuple[str, ...]
  # Of documents, as `benchmarks.unit` says: tokens or paragraphs; 0: as they are.
  sizes: tuple[int, ...] = (0,)
  # Documents of a cell.
  examples: int = 64
  # Of the documents.
  seeds: tuple[int, ...] = (0,)

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name != 'examples':
        object.__setattr__(self, field.name, tuple(value))
        if not value:
          raise ValueError(
            f'a block has no {field.name}; expected one or more.'
          )
    if self.examples < 1:
      raise ValueError(f'examples is {self.examples}; expected 1 or more.')
    for task in self.tasks:
      registry.check(task)


@dataclasses.dataclass(frozen=True)
class Place:
  """One row of a grid."""

  cell: Cell
  index: int


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows that are computed together."""

  # Names its progress file; the same in every shard.
  name: str
  places: tuple[Place, ...]
  # Rows that its arrays have: the last batch of a group is filled up.
  rows: int
  # About how long its documents are.
  tokens: int
  flops: float

  @property
  def cell(self) -> Cell:
    """Of the first row; model and method are those of all."""
    return self.places[0].cell


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that a grid is going to do."""

  # Longest first.
  batches: tuple[Batch, ...]
  # Cells that no method will run, and tokens of one of their documents.
  not_run: tuple[tuple[Cell, int], ...]

  def order(self) -> dict[tuple[Cell, int], int]:
    """Where a row stands in the finished file."""
    places = [place for batch in self.batches for place in batch.places]
    places.sort(key=lambda p: (dataclasses.astuple(p.cell), p.index))
    return {(p.cell, p.index): i for i, p in enumerate(places)}

  def shard(self, index: int, count: int) -> tuple[Batch, ...]:
    """The batches of one of `count` processes; each gets the same work.

    Raises:
      ValueError: no such shard.
    """
    if not 0 <= index < count:
      raise ValueError(
        f'shard {index}/{count}: expected an index from 0 to {count - 1}.'
      )
    loads, mine = [0.0] * count, []
    # The longest that is left goes to whom has the least.
    for batch in self.batches:
      least = loads.index(min(loads))
      loads[least] += batch.flops
      if least == index:
        mine.append(batch)
    return tuple(mine)


def plan(
  blocks: Sequence[Block],
  methods: Mapping[str, Method],
  configs: Mapping[str, ModelConfig],
  rows: int,
  size_tokens: int | None = None,
) -> Plan:
  """Batches of all blocks; a row that is in several blocks is in one batch.

  Args:
    blocks: of the grid.
    methods: by name.
    configs: of the models, by name.
    rows: of a batch at most; a method may take fewer of long documents.
    size_tokens: tokens of a unit of size; None: as `benchmarks.unit` says.

  Raises:
    ValueError: a block with an unknown model or method; it lists the known.
  """
  counts: dict[Cell, int] = {}
  for cell, count in _cells(blocks, methods, configs):
    counts[cell] = max(count, counts.get(cell, 0))
  groups: dict[tuple[str, str, int], list[Place]] = {}
  not_run = []
  for cell in sorted(counts, key=dataclasses.astuple):
    method, config = methods[cell.method], configs[cell.model]
    tokens, limit = _tokens(cell, size_tokens), method.most_tokens()
    if limit is not None and tokens > limit:
      not_run.append((cell, tokens))
      continue
    group = groups.setdefault((cell.model, cell.method, tokens), [])
    group += [Place(cell, index) for index in range(counts[cell])]
  batches = []
  for (model, name, tokens), places in groups.items():
    method, config = methods[name], configs[model]
    size = method.batch_rows(config, rows, tokens)
    cost = size * method.flops(config, tokens)
    for number, start in enumerate(range(0, len(places), size)):
      batches.append(
        Batch(
          # A comma is in no name.
          f'{model},{name},{tokens},{number}',
          tuple(places[start : start + size]),
          size,
          tokens,
          cost,
        )
      )
  batches.sort(key=lambda batch: (-batch.flops, batch.name))
  return Plan(tuple(batches), tuple(not_run))


def _tokens(cell: Cell, size_tokens: int | None) -> int:
  """About how long a cell's documents are."""
  unit = registry.unit(cell.task)
  if size_tokens is None and unit == 'documents':
    return _OWN_TOKENS
  if size_tokens is None:
    size_tokens = 1 if unit == 'tokens' else _PARAGRAPH_TOKENS
  return max(cell.size, 1) * size_tokens


def _cells(
  blocks: Sequence[Block],
  methods: Mapping[str, Method],
  configs: Mapping[str, ModelConfig],
) -> Iterable[tuple[Cell, int]]:
  for block in blocks:
    for kind, names, known in (
      ('model', block.models, configs),
      ('method', block.methods, methods),
    ):
      for name in names:
        if name not in known:
          raise ValueError(
            f'{kind} {name!r} of a block is unknown; choose from '
            f'{", ".join(known)}.'
          )
    for values in itertools.product(
      block.models, block.methods, block.tasks, block.sizes, block.seeds
    ):
      yield Cell(*values), block.examples
