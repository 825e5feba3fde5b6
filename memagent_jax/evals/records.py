"""The files of a grid's workdir: what is read of them, without any model.

rows*.jsonl, timings*.jsonl, not_run.jsonl -> runner.py, report/
"""

from collections.abc import Iterable, Mapping
import dataclasses
import os
from pathlib import Path

from memagent_jax import rewards
from memagent_jax.io import jsonl

LIKELIHOOD = 'likelihood.jsonl'
NOT_RUN = 'not_run.jsonl'


@dataclasses.dataclass(frozen=True)
class Cell:
  """One number of a report: rows that differ in their example only."""

  model: str
  method: str
  task: str
  size: int
  seed: int


def read_rows(
  workdir: str | os.PathLike, scorer: str | None = None
) -> list[dict]:
  """The rows of a workdir, every one once; half-written lines are left out.

  A failed row gives way to one of its place that did not fail.

  Args:
    workdir: of a grid.
    scorer: one of `rewards.SCORERS` that scores the answers anew; None leaves
      the score of the row's own metric.

  Raises:
    ValueError: an unknown scorer, or answers that it does not take.
  """
  rows: dict[tuple[Cell, int], dict] = {}
  for path in sorted(Path(workdir).glob('rows*.jsonl')):
    for row in jsonl.read(path):
      if rows.setdefault(place(row), row)['error']:
        rows[place(row)] = row
  if scorer is not None:
    for row in rows.values():
      score = rewards.score(scorer, row['answer'], row['answers'])
      row['score'] = 0.0 if row['error'] else score.value
  return list(rows.values())


def read_timings(workdir: str | os.PathLike) -> list[dict]:
  """What every finished batch took."""
  return [
    line
    for path in sorted(Path(workdir).glob('timings*.jsonl'))
    for line in jsonl.read(path)
  ]


def place(row: Mapping) -> tuple[Cell, int]:
  """Which row of the grid a line of `rows.jsonl` is."""
  fields = [field.name for field in dataclasses.fields(Cell)]
  return Cell(*(row[name] for name in fields)), row['index']


def read_likelihood(workdir: str | os.PathLike) -> list[dict]:
  """What `likelihood.measure` found, a line a model."""
  path = Path(workdir) / LIKELIHOOD
  return list(jsonl.read(path)) if path.exists() else []


def read_not_run(workdir: str | os.PathLike) -> list[dict]:
  """Cells that are too long for their method; tokens and FLOPs of a document."""
  path = Path(workdir) / NOT_RUN
  return list(jsonl.read(path)) if path.exists() else []


def write_not_run(
  workdir: str | os.PathLike, not_run: Iterable[tuple[Cell, int, float]]
) -> None:
  """Writes what `read_not_run` reads: cell, tokens and FLOPs of each."""
  jsonl.rewrite(
    Path(workdir) / NOT_RUN,
    [
      {**dataclasses.asdict(cell), 'tokens': tokens, 'flops': flops}
      for cell, tokens, flops in not_run
    ],
  )
