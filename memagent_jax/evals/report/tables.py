"""The tables of a grid's report, for a page and for a terminal.

    records, points, timings, likelihood -> Table -> Markdown | columns

Records are those of one sampling and points those over all tasks, unless stated
otherwise; `labels` names the series, and `axis` the tokens that lengths are
counted in. This module needs no matplotlib.
"""

from collections.abc import Iterable, Mapping, Sequence
import statistics

from memagent_jax.evals.report import series as series_lib
from memagent_jax.evals.report.series import Labels, Point, Series

# A header and lines, all with the same number of cells.
Table = list[list[str]]

HEALTH_NOTE = (
  'Memory tokens: length below which it is in 10, 50 and 90 % of the turns (medians '
  'over documents). Cut: share of turns whose memory reached its cap. Unchanged: share of turns '
  'that left it as it was. Evidence: share of documents whose answer was in the '
  'memory at some time, and of these at the end; chunk at which it came and, '
  'where it was lost, went (medians).'
)
LIKELIHOOD_NOTE = (
  "Mean log-probability of a chunk's tokens, teacher-forced, given the memory of "
  'what came before and given the empty memory: the read term of the '
  "factorisation in the paper's section 3."
)
DROP_NOTE = (
  'On the tasks that both lengths have; difference with the 95 % interval of '
  'Newcombe.'
)
BOOTSTRAP_NOTE = (
  'Same examples in both runs: mean difference in points, and the 95 % interval '
  'of 10,000 resamplings of the pairs.'
)


def accuracy_table(points: Sequence[Point], axis: str = 'tokens') -> Table:
  """Scores with their intervals: a line for every length, a column for a series.

  The points are those of one task, or over all tasks.
  """
  labels = series_lib.labels(series_lib.all_series_of(points))
  by_series_and_size = {(p.series, p.size): p for p in points}
  header = [axis, 'own tokens', 'chunks', 'n', *labels.values()]
  lines = [header]
  for size, point in series_lib.lengths(points).items():
    columns = [by_series_and_size.get((s, size)) for s in labels]
    counts = dict.fromkeys(str(p.count) for p in columns if p is not None)
    lines.append(
      [
        f'{point.tokens:,.0f}',
        f'{point.own_tokens:,.0f}',
        f'{point.turns:,.0f}' if point.turns else '',
        '/'.join(counts),
        *map(_score, columns),
      ]
    )
  return lines


def markdown(table: Table) -> str:
  """The table as Markdown."""
  header, *body = table
  lines = [header, ['---'] * len(header), *body]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def text(table: Table) -> str:
  """The table in aligned columns, for a terminal."""
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return '\n'.join(
    '  '.join(t.rjust(w) for t, w in zip(line, widths, strict=True))
    for line in table
  )


def _score(point: Point | None) -> str:
  if point is None:
    return ''
  shown = (
    f'{100 * point.score:.1f} [{100 * point.low:.1f}, {100 * point.high:.1f}]'
  )
  return shown + (f', {point.failed} failed' if point.failed else '')


def drop_table(
  records: Sequence[Mapping], labels: Labels, least_tokens: int
) -> Table:
  """The drop from `least_tokens` or more to the longest, series by series."""
  lines = [['', 'tasks', 'from', 'to', 'difference in points']]
  every_task = {record['task'] for record in records}
  for s, label in labels.items():
    own_records = [r for r in records if series_lib.series_of(r) == s]
    result = series_lib.drop(own_records, least_tokens)
    if result is not None:
      first, last, tasks, difference = result
      lines.append(
        [
          label,
          'all' if set(tasks) == every_task else ', '.join(tasks),
          f'{100 * first.score:.1f} at {first.tokens:,.0f} (n = {first.count})',
          f'{100 * last.score:.1f} at {last.tokens:,.0f} (n = {last.count})',
          _points(difference),
        ]
      )
  return lines


def _points(difference: tuple[float, float, float]) -> str:
  middle, low, high = (100 * value for value in difference)
  return f'{middle:+.1f} [{low:+.1f}, {high:+.1f}]'


def cost_table(
  points: Sequence[Point],
  labels: Labels,
  seconds: Mapping[tuple[Series, int], float],
  not_run: Sequence[tuple[Series, float, float]],
  axis: str,
) -> Table:
  """What documents cost: a line for every point, and for lengths not run.

  The seconds of a document are as `document_seconds` gives them; `not_run` has
  (series, tokens, FLOPs) of documents that were not run.
  """
  lines = [['', axis, 'tokens seen', 'TFLOPs', 'seconds']]
  for s, label in labels.items():
    for p in points:
      if p.series == s:
        spent = seconds.get((s, p.size))
        lines.append(
          [
            label,
            f'{p.tokens:,.0f}',
            f'{p.read_tokens:,.0f}',
            f'{p.flops / 1e12:.3g}',
            '' if spent is None else f'{spent:.3g}',
          ]
        )
    lines += [
      [label, f'{tokens:,.0f}', '', f'{flops / 1e12:.3g}', 'not run']
      for other, tokens, flops in not_run
      if other == s
    ]
  return lines


def document_seconds(
  timings: Iterable[Mapping],
) -> dict[tuple[Series, int], float]:
  """Seconds of a document by series and size: its share of the batch's seconds."""
  totals: dict[tuple[Series, int], list[float]] = {}
  for line in timings:
    key = series_lib.series_of(line), line['size']
    total = totals.setdefault(key, [0.0, 0])
    total[0] += line['seconds']
    total[1] += line['batch_size']
  return {key: spent / count for key, (spent, count) in totals.items()}


def health_table(
  records: Iterable[Mapping], labels: Labels, axis: str
) -> Table:
  """Memory health, a line for every series and size; see HEALTH_NOTE."""
  lines = [
    [
      *('', axis, 'memory tokens', 'cut', 'unchanged'),
      *('evidence came', 'stayed', 'came at', 'went at'),
    ]
  ]
  for s, group in records_with_memory(records, labels):
    health = [record['health'] for record in group]
    came = [h for h in health if h['evidence_enters_turn'] is not None]
    kept = [h for h in came if h['evidence_kept']]
    lengths = [
      statistics.median(h[name] for h in health if name in h)
      for name in ('length_p10', 'length_p50', 'length_p90')
      if any(name in h for h in health)
    ]
    lines.append(
      [
        labels[s],
        f'{statistics.median_high(record["tokens"] for record in group):,.0f}',
        ' / '.join(f'{length:.0f}' for length in lengths),
        f'{statistics.fmean(h["saturated"] for h in health):.1%}',
        f'{statistics.fmean(h["unchanged"] for h in health):.1%}',
        f'{len(came) / len(health):.1%}',
        f'{len(kept) / len(came):.1%}' if came else '',
        _turn([h['evidence_enters_turn'] for h in came]),
        _turn([h['evidence_leaves_turn'] for h in came]),
      ]
    )
  return lines


def records_with_memory(
  records: Iterable[Mapping], labels: Labels
) -> list[tuple[Series, list[Mapping]]]:
  """Records of methods with a memory by series, in their order, and size."""
  groups: dict[tuple[Series, int], list[Mapping]] = {}
  for record in records:
    if record['health']:
      key = series_lib.series_of(record), record['size']
      groups.setdefault(key, []).append(record)
  order = list(labels)
  keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
  return [(key[0], groups[key]) for key in keys]


def _turn(turns: Iterable[int | None]) -> str:
  numbers = [turn + 1 for turn in turns if turn is not None]
  return f'{statistics.median_high(numbers):,.0f}' if numbers else ''


def likelihood_table(lines: Iterable[Mapping]) -> Table:
  """A line for every model that `records.read_likelihood` returns."""
  return [
    ['model', 'chunks', 'with memory', 'without', 'difference'],
    *(
      [
        line['model'],
        f'{line["chunks"]:,}',
        f'{line["with_memory"]:.4f}',
        f'{line["without_memory"]:.4f}',
        '{:+.4f} [{:+.4f}, {:+.4f}]'.format(*line['difference']),
      ]
      for line in lines
    ),
  ]


def comparison_table(
  records: Iterable[Mapping], others: Iterable[Mapping]
) -> Table:
  """Two runs on their common examples, a line for every pair of series.

  Raises:
    ValueError: the runs have no example in common.
  """
  lines = [['sampling', 'this run', 'the other', 'pairs', 'other - this']]
  other_groups = series_lib.by_sampling(others)
  for sampling, group in series_lib.by_sampling(records).items():
    pairs = series_lib.paired(group, other_groups.get(sampling, ()))
    for first, second, count, difference in pairs:
      lines.append(
        [
          sampling,
          f'{first.model}, {first.method}',
          f'{second.model}, {second.method}',
          str(count),
          _points(difference),
        ]
      )
  if len(lines) == 1:
    raise ValueError(
      'the two runs have no example in common: same task, size, seed, index and '
      'sampling.'
    )
  return lines
