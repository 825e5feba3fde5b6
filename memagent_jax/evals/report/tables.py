"""The tables of a grid's report, for a page and for a terminal.

rows, points, timings, likelihood -> Table -> Markdown | columns

Needs no matplotlib.
"""

from collections.abc import Iterable, Mapping, Sequence
import statistics

from memagent_jax.evals.report import series as series_lib
from memagent_jax.evals.report.series import Labels, Point, Series

# A header, and lines of as many cells.
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


def accuracy_table(found: Sequence[Point], axis: str = 'tokens') -> Table:
  """Header and lines: a length a line, a series a column."""
  labels = series_lib.labels(series_lib.all_series_of(found))
  places = {(p.series, p.size): p for p in found}
  header = [axis, 'own tokens', 'chunks', 'n', *labels.values()]
  lines = [header]
  for size, point in series_lib.lengths(found).items():
    mine = [places[s, size] for s in labels if (s, size) in places]
    counts = dict.fromkeys(str(p.count) for p in mine)
    lines.append(
      [
        f'{point.tokens:,.0f}',
        f'{point.own_tokens:,.0f}',
        f'{point.turns:,.0f}' if point.turns else '',
        '/'.join(counts),
        *(_score(places.get((s, size))) for s in labels),
      ]
    )
  return lines


def markdown(table: Table) -> str:
  """The table as Markdown."""
  header, *body = table
  lines = [header, ['---'] * len(header), *body]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)


def text(table: Table) -> str:
  """The table in columns, for a terminal."""
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
  rows: Sequence[Mapping], labels: Labels, least_tokens: int
) -> Table:
  """A line a series: its shortest and longest documents, and the difference."""
  lines = [['', 'tasks', 'from', 'to', 'difference in points']]
  every_task = {row['task'] for row in rows}
  for s, label in labels.items():
    mine = [row for row in rows if Series(row['model'], row['method']) == s]
    result = series_lib.drop(mine, least_tokens)
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
  found: Sequence[Point],
  labels: Labels,
  seconds: Mapping[tuple[Series, int], float],
  not_run: Sequence[tuple[Series, float, float]],
  axis: str,
) -> Table:
  """A line a point, and one a length that a series was not run at.

  Args:
    found: points over all tasks.
    labels: of the series.
    seconds: as `document_seconds` gives them.
    not_run: (series, tokens, FLOPs) of a document.
    axis: what tokens are called.
  """
  lines = [['', axis, 'tokens seen', 'TFLOPs', 'seconds']]
  for s, label in labels.items():
    for p in found:
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
  """Seconds of a document by series and size, side by side with its batch."""
  totals: dict[tuple[Series, int], list[float]] = {}
  for line in timings:
    key = Series(line['model'], line['method']), line['size']
    total = totals.setdefault(key, [0.0, 0])
    total[0] += line['seconds']
    total[1] += line['rows']
  return {key: spent / rows for key, (spent, rows) in totals.items()}


def health_table(rows: Iterable[Mapping], labels: Labels, axis: str) -> Table:
  """What memories did, a line a series and size; HEALTH_NOTE explains it."""
  lines = [
    [
      *('', axis, 'memory tokens', 'cut', 'unchanged'),
      *('evidence came', 'stayed', 'came at', 'went at'),
    ]
  ]
  for s, mine in rows_with_memory(rows, labels):
    health = [row['health'] for row in mine]
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
        f'{statistics.median_high(row["tokens"] for row in mine):,.0f}',
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


def rows_with_memory(
  rows: Iterable[Mapping], labels: Labels
) -> list[tuple[Series, list[Mapping]]]:
  """Rows that kept a memory, by series and size, in their order."""
  groups: dict[tuple[Series, int], list[Mapping]] = {}
  for row in rows:
    if row['health']:
      key = Series(row['model'], row['method']), row['size']
      groups.setdefault(key, []).append(row)
  order = list(labels)
  keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
  return [(key[0], groups[key]) for key in keys]


def _turn(turns: Iterable[int | None]) -> str:
  known = [turn + 1 for turn in turns if turn is not None]
  return f'{statistics.median_high(known):,.0f}' if known else ''


def likelihood_table(lines: Iterable[Mapping]) -> Table:
  """A line a model, of what `records.read_likelihood` gives."""
  table = [['model', 'chunks', 'with memory', 'without', 'difference']]
  for line in lines:
    table.append(
      [
        line['model'],
        f'{line["chunks"]:,}',
        f'{line["with_memory"]:.4f}',
        f'{line["without_memory"]:.4f}',
        '{:+.4f} [{:+.4f}, {:+.4f}]'.format(*line['difference']),
      ]
    )
  return table


def comparison_table(
  rows: Iterable[Mapping], others: Iterable[Mapping]
) -> Table:
  """Two runs on their common examples, a line a pair of series and sampling.

  Raises:
    ValueError: they have no example in common.
  """
  lines = [['sampling', 'this run', 'the other', 'pairs', 'other - this']]
  theirs = series_lib.samplings(others)
  for sampling, mine in series_lib.samplings(rows).items():
    pairs = series_lib.paired(mine, theirs.get(sampling, ()))
    for one, two, count, difference in pairs:
      lines.append(
        [
          sampling,
          f'{one.model}, {one.method}',
          f'{two.model}, {two.method}',
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
