"""Records of a grid as points: a score with its interval at every length.

records -> one sampling -> series (model, method) -> a Point for every size
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
# Fields that are equal in two records of the same example.
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
  tokens: float  # median length of the documents by the axis' tokenizer
  own_tokens: float  # median length by the model's tokenizer
  turns: float  # median number of turns that read a document
  count: int
  failed: int  # examples without any answer, which count as wrong
  score: float
  low: float  # 95 % interval of the score
  high: float
  flops: float  # mean over the documents
  read_tokens: float  # mean over the documents


# The name of every series, as `labels` gives it.
Labels = Mapping[Series, str]


def series_of(record: Mapping) -> Series:
  """The series of a record or of a timing."""
  return Series(record['model'], record['method'])


def by_sampling(records: Iterable[Mapping]) -> dict[str, list[Mapping]]:
  """Groups records by how their tokens were drawn: no table mixes them."""
  groups: dict[str, list[Mapping]] = {}
  for record in records:
    groups.setdefault(record['sampling'], []).append(record)
  return groups


def all_series(records: Iterable[Mapping]) -> list[Series]:
  """The series of records, in order of appearance."""
  return list(dict.fromkeys(map(series_of, records)))


def all_series_of(all_points: Iterable[Point]) -> list[Series]:
  """The series of points, in order of appearance."""
  return list(dict.fromkeys(point.series for point in all_points))


def labels(series: Sequence[Series]) -> dict[Series, str]:
  """Names of series, as short as possible: what all share is left out."""
  models = {s.model for s in series}
  methods = {s.method for s in series}

  def label(s: Series) -> str:
    if len(methods) == 1:
      return s.model
    return s.method if len(models) == 1 else f'{s.model}, {s.method}'

  return {s: label(s) for s in series}


def points(records: Iterable[Mapping], by_task: bool = False) -> list[Point]:
  """The points of every series by size, over all tasks or those of every task.

  The records are those of one sampling.
  """
  groups: dict[tuple[Series, str, int], list[Mapping]] = {}
  for record in records:
    task = record['task'] if by_task else ALL_TASKS
    key = (series_of(record), task, record['size'])
    groups.setdefault(key, []).append(record)
  all_points = []
  for (series, task, size), group in groups.items():
    right = sum(record['score'] for record in group)
    low, high = wilson_interval(right, len(group))
    all_points.append(
      Point(
        series=series,
        task=task,
        size=size,
        tokens=_median(record['tokens'] for record in group),
        own_tokens=_median(record['own_tokens'] for record in group),
        turns=_median(sum(record['turns'].values()) for record in group),
        count=len(group),
        failed=sum(bool(record['error']) for record in group),
        score=right / len(group),
        low=low,
        high=high,
        flops=statistics.fmean(record['flops'] for record in group),
        read_tokens=statistics.fmean(record['read_tokens'] for record in group),
      )
    )
  order = {s: i for i, s in enumerate(all_series_of(all_points))}
  return sorted(all_points, key=lambda p: (order[p.series], p.task, p.tokens))


def fewer_tasks(
  records: Iterable[Mapping],
) -> dict[tuple[str, ...], list[float]]:
  """Lengths (median tokens) with missing tasks, by the tasks they do have."""
  records = list(records)
  every_task = {record['task'] for record in records}
  incomplete: dict[tuple[str, ...], list[float]] = {}
  for size, point in lengths(points(records)).items():
    tasks = {record['task'] for record in records if record['size'] == size}
    if tasks != every_task:
      incomplete.setdefault(tuple(sorted(tasks)), []).append(point.tokens)
  return incomplete


def lengths(all_points: Sequence[Point]) -> dict[int, Point]:
  """A point per size, by length: with turns if any has, and of most records."""
  by_size: dict[int, Point] = {}
  for point in sorted(all_points, key=lambda p: (p.turns == 0, -p.count)):
    by_size.setdefault(point.size, point)
  return dict(sorted(by_size.items(), key=lambda item: item[1].tokens))


def drop(
  records: Iterable[Mapping], least_tokens: int = 0
) -> tuple[Point, Point, tuple[str, ...], tuple[float, float, float]] | None:
  """First and last point of one series on the same tasks, and their difference.

  Args:
    records: records of one series.
    least_tokens: least length of the first point, with a tolerance of 5 %.

  Returns:
    None if there are not two such points; else both over the tasks that the
    longest documents have, these tasks, and the difference of the scores with its
    95 % interval, as shares.
  """
  records = list(records)
  last = max(points(records), key=lambda p: p.tokens)
  tasks = {r['task'] for r in records if r['size'] == last.size}
  long_enough = [
    p
    for p in points(r for r in records if r['task'] in tasks)
    if p.tokens >= 0.95 * least_tokens
  ]
  if len(long_enough) < 2:
    return None
  first = long_enough[0]
  tasks &= {r['task'] for r in records if r['size'] == first.size}
  first, last = (
    point
    for size in (first.size, last.size)
    for point in points(
      r for r in records if r['size'] == size and r['task'] in tasks
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
  records: Iterable[Mapping], others: Iterable[Mapping]
) -> list[tuple[Series, Series, int, tuple[float, float, float]]]:
  """Compares the series of two runs of one sampling on their common examples.

  Series of the same name are compared, or all with all if no name is common.

  Returns:
    (series of the first, of the second, pairs, mean difference second - first
    with its 95 % interval), for each pair of series with common examples.
  """
  first, second = _scores(records), _scores(others)
  common_series = [s for s in first if s in second]
  pairs = [(s, s) for s in common_series]
  pairs = pairs or [(a, b) for a in first for b in second]
  comparisons = []
  for a, b in pairs:
    common = [example for example in first[a] if example in second[b]]
    if common:
      difference = paired_bootstrap(
        [first[a][example] for example in common],
        [second[b][example] for example in common],
      )
      comparisons.append((a, b, len(common), difference))
  return comparisons


def _scores(records: Iterable[Mapping]) -> dict[Series, dict[tuple, float]]:
  """The score of every example, by series."""
  scores: dict[Series, dict[tuple, float]] = {}
  for record in records:
    example = tuple(record[name] for name in _EXAMPLE)
    scores.setdefault(series_of(record), {})[example] = record['score']
  return scores


def _median(values: Iterable[float]) -> float:
  return float(statistics.median(values))
