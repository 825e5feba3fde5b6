"""The files of a grid's workdir, read and written without any model.

    runner.py -> records*.jsonl, timings*.jsonl, not_run.jsonl, traces/ -> report/

A record is the result of one example: one line of `records.jsonl`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import shutil

from memagent_jax import rewards
from memagent_jax.io import jsonl, workdirs

# Records of a finished grid; shards in progress have `records_*.jsonl`.
RECORDS = 'records.jsonl'
LIKELIHOOD = 'likelihood.jsonl'
NOT_RUN = 'not_run.jsonl'


@dataclasses.dataclass(frozen=True)
class Cell:
  """One number of a report: its records differ in nothing but their example."""

  model: str
  method: str
  task: str
  size: int
  seed: int


@dataclasses.dataclass(frozen=True)
class CellExample:
  """One example of a cell, of which a grid has one record."""

  cell: Cell
  index: int


def key(record: Mapping) -> CellExample:
  """The example of the grid that a record belongs to."""
  fields = [field.name for field in dataclasses.fields(Cell)]
  return CellExample(Cell(*(record[name] for name in fields)), record['index'])


def read_records(
  workdir: str | os.PathLike, scorer: str | None = None
) -> list[dict]:
  """The records of a workdir, one for every example.

  Half-written lines are left out. A failed record gives way to a later one of
  the same example.

  Args:
    workdir: the workdir of a grid.
    scorer: one of `rewards.SCORERS`, which scores the answers anew; None: the
      scores by the tasks' own metrics.

  Raises:
    ValueError: an unknown scorer, or answers that it does not take.
  """
  records: dict[CellExample, dict] = {}
  for path in sorted(Path(workdir).glob('records*.jsonl')):
    for record in jsonl.read(path):
      if records.setdefault(key(record), record)['error']:
        records[key(record)] = record
  if scorer is not None:
    for record in records.values():
      score = rewards.score(scorer, record['answer'], record['answers'])
      record['score'] = 0.0 if record['error'] else score.value
  return list(records.values())


def read_timings(workdir: str | os.PathLike) -> list[dict]:
  """The time, FLOPs and peak memory of every finished batch."""
  return [
    line
    for path in sorted(Path(workdir).glob('timings*.jsonl'))
    for line in jsonl.read(path)
  ]


def read_likelihood(workdir: str | os.PathLike) -> list[dict]:
  """The results of `likelihood.measure`, one for every model."""
  return _read(Path(workdir) / LIKELIHOOD)


def read_not_run(workdir: str | os.PathLike) -> list[dict]:
  """Cells too long for their method, with tokens and FLOPs of a document."""
  return _read(Path(workdir) / NOT_RUN)


def _read(path: Path) -> list[dict]:
  return list(jsonl.read(path)) if path.exists() else []


def write_not_run(
  workdir: str | os.PathLike, not_run: Iterable[tuple[Cell, int, float]]
) -> None:
  """Writes cells, with tokens and FLOPs of a document, for `read_not_run`."""
  jsonl.rewrite(
    Path(workdir) / NOT_RUN,
    [
      {**dataclasses.asdict(cell), 'tokens': tokens, 'flops': flops}
      for cell, tokens, flops in not_run
    ],
  )


class Writer:
  """Writes what one shard of a grid has computed."""

  def __init__(self, workdir: str | os.PathLike, suffix: str = ''):
    """Prepares to write; files of different shards differ in their suffix."""
    self._workdir = Path(workdir)
    self._suffix = suffix

  def add_records(self, records: Sequence[Mapping]) -> None:
    """Appends records, all in one write."""
    jsonl.append(self._workdir / f'records{self._suffix}.jsonl', records)

  def add_timing(self, timing: Mapping) -> None:
    """Appends the timing of a batch."""
    jsonl.append(self._workdir / f'timings{self._suffix}.jsonl', [timing])

  def write_trace(
    self, cell: Cell, example_id: str, lines: Sequence[Mapping]
  ) -> str:
    """Writes the trace of an example; returns its path in the workdir."""
    name = f'{example_id.replace("/", "_")}.jsonl'
    path = Path('traces') / cell.model / cell.method / name
    (self._workdir / path).parent.mkdir(parents=True, exist_ok=True)
    jsonl.rewrite(self._workdir / path, lines)
    return str(path)


def join(
  workdir: str | os.PathLike, order: Mapping[CellExample, int]
) -> tuple[int, int]:
  """Brings all records of a workdir into one file, in the grid's order.

  The order is as `GridPlan.order` gives it. Returns the number of records in
  the file, and the number in the whole grid.
  """
  records = {
    order[key(record)]: record
    for record in read_records(workdir)
    if key(record) in order
  }
  jsonl.rewrite(Path(workdir) / RECORDS, [records[i] for i in sorted(records)])
  for path in Path(workdir).glob('records_*.jsonl'):
    path.unlink()
  return len(records), len(order)


def collect(
  workdir: str | os.PathLike,
  others: Sequence[str | os.PathLike],
  config_text: str,
) -> None:
  """Copies the files of other workdirs of the same grid into this one.

  These are records, timings, traces and what the first shard alone writes; all
  workdirs must have the given config.

  Raises:
    ValueError: a folder where no grid ran, or one of another config.
  """
  workdir = Path(workdir)
  for number, other in enumerate(map(Path, others)):
    if not (other / workdirs.CONFIG).exists():
      raise ValueError(f'{other}: no grid ran here.')
    workdirs.claim(other, config_text)
    for kind in ('records', 'timings'):
      for path in sorted(other.glob(f'{kind}*.jsonl')):
        target = workdir / f'{kind}_from_{number}_{path.name}'
        jsonl.rewrite(target, list(jsonl.read(path)))
    for name in (LIKELIHOOD, NOT_RUN):
      if (other / name).exists():
        jsonl.rewrite(workdir / name, list(jsonl.read(other / name)))
    if (other / 'traces').exists():
      shutil.copytree(other / 'traces', workdir / 'traces', dirs_exist_ok=True)
