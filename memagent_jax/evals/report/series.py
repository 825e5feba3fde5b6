"""Rows of a grid as points: a score with its interval at every length.

rows -> one sampling -> series (model, method) -> Point of every size
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import statistics

from memagent_jax.evals.statistics import (
  difference_interval,
  paired_bootstrap,
  wilson_interval,
)

ALL_TASKS = 'all tasks'
# Fields that two rows of the same example share.
_EXAMPLE = ('task', 'size', 'seed', 'index')


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of a plot."""

  model: str
  method: str


@dataclasses.dataclass(frozen=True)
class Point:
  """One series at one size."""

  series: Series
  task: str  # or ALL_TASKS
  size: int
  tokens: float  # median of the documents, by the axis' tokenizer
  own_tokens: float  # median, by the model's
  turns: float  # median number of turns that read the document
  count: int
  failed: int  # of these, without any answer: they count as wrong
  score: float
  low: float  # 95 % interval of the score
  high: float
  flops: float  # mean of a document
  read_tokens: float  # mean of a document


# Names of series, as `labels` gives them.
Labels = Mapping[Series, str]


def samplings(rows: Iterable[Mapping]) -> dict[str, list[Mapping]]:
  """Rows by how they were sampled: no table mixes them."""
  found: dict[str, list[Mapping]] = {}
  for row in rows:
    found.setdefault(row['sampling'], []).append(row)
  return found


def all_series(rows: Iterable[Mapping]) -> list[Series]:
  """The series of rows, in order of appearance."""
  return list(dict.fromkeys(Series(r['model'], r['method']) for r in rows))


def labels(series: Sequence[Series]) -> dict[Series, str]:
  """Names as short as they can be: what all share is left out."""
  models = {s.model for s in series}
  methods = {s.method for s in series}

  def label(s: Series) -> str:
    if len(methods) == 1:
      return s.model
    return s.method if len(models) == 1 else f'{s.model}, {s.method}'

  return {s: label(s) for s in series}


def points(rows: Iterable[Mapping], by_task: bool = False) -> list[Point]:
  """Points of every series, by task or over all of them, by size."""
  groups: dict[tuple[Series, str, int], list[Mapping]] = {}
  for row in rows:
    task = row['task'] if by_task else ALL_TASKS
    key = (Series(row['model'], row['method']), task, row['size'])
    groups.setdefault(key, []).append(row)
  found = []
  for (series, task, size), mine in groups.items():
    right = sum(row['score'] for row in mine)
    low, high = wilson_interval(right, len(mine))
    found.append(
      Point(
        series=series,
        task=task,
        size=size,
        tokens=_median(row['tokens'] for row in mine),
        own_tokens=_median(row['own_tokens'] for row in mine),
        turns=_median(sum(row['turns'].values()) for row in mine),
        count=len(mine),
        failed=sum(bool(row['error']) for row in mine),
        score=right / len(mine),
        low=low,
        high=high,
        flops=statistics.fmean(row['flops'] for row in mine),
        read_tokens=statistics.fmean(row['read_tokens'] for row in mine),
      )
    )
  order = {s: i for i, s in enumerate(all_series_of(found))}
  return sorted(found, key=lambda p: (order[p.series], p.task, p.tokens))


def all_series_of(found: Iterable[Point]) -> list[Series]:
  """The series of points, in order of appearance."""
  return list(dict.fromkeys(point.series for point in found))


def fewer_tasks(rows: Iterable[Mapping]) -> dict[tuple[str, ...], list[float]]:
  """Lengths (median tokens) whose rows are not of all tasks, by their tasks."""
  rows = list(rows)
  everything = {row['task'] for row in rows}
  found: dict[tuple[str, ...], list[float]] = {}
  for size, point in lengths(points(rows)).items():
    tasks = {row['task'] for row in rows if row['size'] == size}
    if tasks != everything:
      found.setdefault(tuple(sorted(tasks)), []).append(point.tokens)
  return found


def lengths(found: Sequence[Point]) -> dict[int, Point]:
  """A point of every size, by length: of a series with turns and most rows."""
  by_size: dict[int, Point] = {}
  for point in sorted(found, key=lambda p: (p.turns == 0, -p.count)):
    by_size.setdefault(point.size, point)
  return dict(sorted(by_size.items(), key=lambda item: item[1].tokens))


def drop(
  rows: Iterable[Mapping], least_tokens: int = 0
) -> tuple[Point, Point, tuple[str, ...], tuple[float, float, float]] | None:
  """First and last point of one series on the same tasks, and their difference.

  Args:
    rows: of one series.
    least_tokens: the first point has as many; 5 % less are no less.

  Returns:
    None where there are not two such points; else both over the tasks that the
    longest documents have, these tasks, and the difference of the scores with its
    95 % interval, as shares.
  """
  rows = list(rows)
  last = max(points(rows), key=lambda p: p.tokens)
  tasks = {row['task'] for row in rows if row['size'] == last.size}
  mine = [
    p
    for p in points(row for row in rows if row['task'] in tasks)
    if p.tokens >= 0.95 * least_tokens
  ]
  if len(mine) < 2:
    return None
  first = mine[0]
  tasks &= {row['task'] for row in rows if row['size'] == first.size}
  first, last = (
    point
    for size in (first.size, last.size)
    for point in points(
      r for r in rows if r['size'] == size and r['task'] in tasks
    )
  )
  return (
    first,
    last,
    tuple(sorted(tasks)),
    difference_interval(
      (first.score * first.count, first.count),
      (last.score * last.count, last.count),
    ),
  )


def paired(
  rows: Iterable[Mapping], others: Iterable[Mapping]
) -> list[tuple[Series, Series, int, tuple[float, float, float]]]:
  """Series of two runs, both of one sampling, on their common examples.

  Series of the same name are compared, or all with all where none have one.

  Returns:
    (series of the first, of the second, pairs, mean difference second - first
    with its 95 % interval), for each pair of series with common examples.
  """
  one, two = _by_series(rows), _by_series(others)
  same = [s for s in one if s in two]
  pairs = [(s, s) for s in same] or [(a, b) for a in one for b in two]
  found = []
  for a, b in pairs:
    common = [key for key in one[a] if key in two[b]]
    if common:
      scores = [
        [side[s][k] for k in common] for side, s in ((one, a), (two, b))
      ]
      found.append((a, b, len(common), paired_bootstrap(*scores)))
  return found


def _by_series(rows: Iterable[Mapping]) -> dict[Series, dict[tuple, float]]:
  found: dict[Series, dict[tuple, float]] = {}
  for row in rows:
    series = Series(row['model'], row['method'])
    key = tuple(row[name] for name in _EXAMPLE)
    found.setdefault(series, {})[key] = row['score']
  return found


def _median(values: Iterable[float]) -> float:
  return float(statistics.median(values))
