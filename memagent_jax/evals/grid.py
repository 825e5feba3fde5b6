"""A grid of evaluation: models x methods x tasks x sizes x seeds, resumable.

    blocks -> plan: batches, longest first, and cells too long to run
      -> Method.answer -> traces/, records*.jsonl, timings*.jsonl

The grid alone decides which examples share a batch, and a batch always has its
full shape, so a killed grid's records equal an uninterrupted one's byte for byte.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import re

from memagent_jax.data.benchmarks import registry
from memagent_jax.evals.methods.method import Method
from memagent_jax.evals.records import Cell, CellExample
from memagent_jax.models.configs import ModelConfig

# Rough tokens of a paragraph, and of a document whose length nobody counted.
_PARAGRAPH_TOKENS, _OWN_TOKENS = 150, 8192
# Names become folders; a comma separates them in the names of batches.
_NAME = re.compile(r'[\w .+-]+')


@dataclasses.dataclass(frozen=True)
class GridBlock:
  """A part of a grid: every combination of its values."""

  models: tuple[str, ...]
  methods: tuple[str, ...]
  tasks: tuple[str, ...]
  # Document sizes in `registry.unit(task)`; 0: documents as they are.
  sizes: tuple[int, ...] = (0,)
  # Documents per cell.
  examples: int = 64
  # Seeds of the documents.
  seeds: tuple[int, ...] = (0,)

  def __post_init__(self) -> None:
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
class GridBatch:
  """Examples that are computed together, all by one model and method."""

  # Name of its progress file; the same in every shard.
  name: str
  examples: tuple[CellExample, ...]
  # Examples its arrays hold; the last batch of a group is filled up to it.
  size: int
  # Rough length of its documents.
  tokens: int
  flops: float

  @property
  def cell(self) -> Cell:
    """The first example's cell; all examples share its model and method."""
    return self.examples[0].cell


@dataclasses.dataclass(frozen=True)
class GridPlan:
  """All the work of a grid."""

  # Longest first.
  batches: tuple[GridBatch, ...]
  # Cells too long for their method, and the tokens of one of their documents.
  not_run: tuple[tuple[Cell, int], ...]

  def order(self) -> dict[CellExample, int]:
    """The position of every example's record in the finished file."""
    examples = [e for batch in self.batches for e in batch.examples]
    examples.sort(key=lambda e: (dataclasses.astuple(e.cell), e.index))
    return {example: i for i, example in enumerate(examples)}

  def shard(self, index: int, count: int) -> tuple[GridBatch, ...]:
    """The batches of process `index`, from 0; `count` share the work evenly.

    Raises:
      ValueError: `index` is not below `count`.
    """
    if not 0 <= index < count:
      raise ValueError(
        f'shard {index}/{count}: expected an index from 0 to {count - 1}.'
      )
    loads, batches = [0.0] * count, []
    # Greedy: the longest remaining batch goes to the shard with the least work.
    for batch in self.batches:
      least = loads.index(min(loads))
      loads[least] += batch.flops
      if least == index:
        batches.append(batch)
    return tuple(batches)


def plan(
  blocks: Sequence[GridBlock],
  methods: Mapping[str, Method],
  configs: Mapping[str, ModelConfig],
  batch_size: int,
  size_tokens: int | None = None,
) -> GridPlan:
  """Plans all blocks; an example that is in several blocks is in one batch.

  Args:
    blocks: the parts of the grid.
    methods: methods by name.
    configs: configs of the models by name.
    batch_size: most documents in a batch; a method may take fewer if they are
      long.
    size_tokens: tokens of one unit of size; None: as `registry.unit` says.

  Returns:
    the batches, longest first, and the cells that are too long to run.

  Raises:
    ValueError: a name that no folder can have, or a block with an unknown model
      or method; the message lists the known ones.
  """
  for name in (*configs, *methods):
    if not _NAME.fullmatch(name):
      raise ValueError(
        f'name {name!r}: expected letters, digits, spaces and . + - _ only.'
      )
  counts: dict[Cell, int] = {}
  for cell, count in _cells(blocks, methods, configs):
    counts[cell] = max(count, counts.get(cell, 0))
  groups: dict[tuple[str, str, int], list[CellExample]] = {}
  not_run = []
  for cell in sorted(counts, key=dataclasses.astuple):
    tokens = _tokens(cell, size_tokens)
    limit = methods[cell.method].most_tokens()
    if limit is not None and tokens > limit:
      not_run.append((cell, tokens))
      continue
    group = groups.setdefault((cell.model, cell.method, tokens), [])
    group += [CellExample(cell, index) for index in range(counts[cell])]
  batches = []
  for (model, name, tokens), examples in groups.items():
    method, config = methods[name], configs[model]
    size = method.batch_size(config, batch_size, tokens)
    flops = size * method.flops(config, tokens)
    for number, start in enumerate(range(0, len(examples), size)):
      batches.append(
        GridBatch(
          name=f'{model},{name},{tokens},{number}',
          examples=tuple(examples[start : start + size]),
          size=size,
          tokens=tokens,
          flops=flops,
        )
      )
  batches.sort(key=lambda batch: (-batch.flops, batch.name))
  return GridPlan(tuple(batches), tuple(not_run))


def _tokens(cell: Cell, size_tokens: int | None) -> int:
  """The rough length of a cell's documents."""
  unit = registry.unit(cell.task)
  if size_tokens is None and unit == 'documents':
    return _OWN_TOKENS
  if size_tokens is None:
    size_tokens = 1 if unit == 'tokens' else _PARAGRAPH_TOKENS
  return max(cell.size, 1) * size_tokens


def _cells(
  blocks: Sequence[GridBlock],
  methods: Mapping[str, Method],
  configs: Mapping[str, ModelConfig],
) -> Iterator[tuple[Cell, int]]:
  """Yields the cells of all blocks, each with its number of examples."""
  for block in blocks:
    for kind, names, choices in (
      ('model', block.models, configs),
      ('method', block.methods, methods),
    ):
      for name in names:
        if name not in choices:
          raise ValueError(
            f'{kind} {name!r} of a block is unknown; choose from '
            f'{", ".join(choices)}.'
          )
    for values in itertools.product(
      block.models, block.methods, block.tasks, block.sizes, block.seeds
    ):
      yield Cell(*values), block.examples
