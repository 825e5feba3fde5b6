"""The report of a grid: report.html with its pictures inside, and files beside it.

    rows, timings, not_run, likelihood -> tables and figures
      -> report.html, *.png, *.svg, tables.md, points.csv

Renders whatever rows there are.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import html
import io
import os
from pathlib import Path
from typing import Any

from memagent_jax import grid_rows, row_log, trace
from memagent_jax.report import figures
from memagent_jax.report import series as series_lib
from memagent_jax.report.series import ALL_TASKS, Point, Series

# Failures that the page lists; rows.jsonl has them all.
_SHOWN_FAILURES = 60
_SHOWN_CHARS = 120
Table = list[list[str]]


def write(
  workdir: str | os.PathLike,
  *,
  title: str,
  axis: str = 'tokens',
  trained_tokens: int | None = None,
  least_tokens: int = 0,
  compared: str | os.PathLike | None = None,
) -> Path:
  """Writes the report of a workdir into its folder `report`; its page's path.

  Args:
    workdir: of a grid, finished or not.
    title: of the page.
    axis: what the tokens of rows are called, such as `SmolLM2 tokens`.
    trained_tokens: longest document of training, shaded in the plot.
    least_tokens: where the drop to the longest documents is counted from.
    compared: workdir of another run on the same examples.

  Raises:
    ValueError: a workdir without rows.
  """
  workdir = Path(workdir)
  rows = grid_rows.read_rows(workdir)
  if not rows:
    raise ValueError(
      f'{workdir}: no rows; expected what experiments.evaluate wrote.'
    )
  folder = workdir / 'report'
  folder.mkdir(exist_ok=True)
  timings = grid_rows.read_timings(workdir)
  not_run = grid_rows.read_not_run(workdir)
  parts, tables = [], []
  for sampling, mine in series_lib.samplings(rows).items():
    parts.append(f'<h2>{html.escape(sampling.capitalize())}</h2>')
    tables.append(f'## {sampling.capitalize()}\n')
    sections = _sections(
      mine, timings, not_run, axis, trained_tokens, least_tokens, title
    )
    for name, heading, note, content in sections:
      parts.append(f'<section><h3>{html.escape(heading)}</h3>')
      if isinstance(content, list):
        parts.append(_html_table(content))
        tables.append(f'### {heading}\n\n{markdown(content)}')
      else:
        stem = f'{name}_{_slug(sampling)}' if sampling != 'greedy' else name
        parts.append(f'<figure>{_save(folder, stem, content)}</figure>')
      if note:
        parts.append(f'<p class="quiet">{html.escape(note)}</p>')
      parts.append('</section>')
  likelihood = grid_rows.read_likelihood(workdir)
  if likelihood:
    table = _likelihood(likelihood)
    parts += ['<h2>Likelihood</h2>', _html_table(table)]
    parts.append(f'<p class="quiet">{html.escape(_LIKELIHOOD_NOTE)}</p>')
    tables.append(f'## Likelihood\n\n{markdown(table)}')
  if compared is not None:
    table = _comparison(rows, grid_rows.read_rows(compared))
    heading = f'Against {compared}'
    parts += [f'<h2>{html.escape(heading)}</h2>', _html_table(table)]
    parts.append(f'<p class="quiet">{html.escape(_BOOTSTRAP_NOTE)}</p>')
    tables.append(f'## {heading}\n\n{markdown(table)}')
  parts.append(_failures(workdir, folder, rows))
  (folder / 'tables.md').write_text('\n'.join(tables), encoding='utf-8')
  _write_points(folder / 'points.csv', rows)
  path = folder / 'report.html'
  body = _HEAD.replace('@title@', html.escape(title)) + '\n'.join(parts)
  path.write_text(f'{body}\n</main></body></html>\n', encoding='utf-8')
  return path


_INTERVAL_NOTE = (
  'Percent of right answers with their 95 % interval (Wilson). A failed row '
  'counts as wrong.'
)
_LIKELIHOOD_NOTE = (
  "Mean log-probability of a chunk's tokens, teacher-forced, given the memory of "
  'what came before and given the empty memory: the read term of the '
  "factorisation in the paper's section 3."
)
_BOOTSTRAP_NOTE = (
  'Same examples in both runs: mean difference in points, and the 95 % interval '
  'of 10,000 resamplings of the pairs.'
)
_LINEAR_ATTENTION_NOTE = (
  'Linear attention and recurrent models need weights of their own, trained from '
  'scratch, and are not run here; the paper compares with published ones '
  '(arXiv 2507.02259, table 2).'
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


def _sections(
  rows, timings, not_run, axis, trained_tokens, least_tokens, title
) -> list[tuple[str, str, str, Any]]:
  """(file name, heading, note, table or figure) of one sampling."""
  found = series_lib.points(rows)
  by_task = series_lib.points(rows, by_task=True)
  labels = series_lib.labels(series_lib.all_series(rows))
  priced = [
    (s, line['tokens'], line['flops'])
    for line in not_run
    if (s := Series(line['model'], line['method'])) in labels
  ]
  beyond = {s: [t for other, t, _ in priced if other == s] for s in labels}
  tasks = list(dict.fromkeys(p.task for p in by_task))
  plot = figures.accuracy(
    found,
    labels,
    title=title,
    trained_tokens=trained_tokens,
    not_run=beyond,
  )
  note = f'Lengths are {axis}. {_INTERVAL_NOTE}'
  sections = [
    ('accuracy', 'Accuracy against length', note, plot),
    ('', f'Accuracy, {ALL_TASKS}', '', accuracy_table(found, axis)),
  ]
  drops = _drops(found, labels, least_tokens)
  if len(drops) > 1:
    sections.append(
      ('', 'From short to long', 'Difference with Newcombe’s interval.', drops)
    )
  if len(tasks) > 1:
    figure = figures.accuracy_by_task(by_task, labels)
    sections.append(('accuracy_by_task', 'By task', '', figure))
    for task in tasks:
      mine = [p for p in by_task if p.task == task]
      sections.append(('', f'Accuracy, {task}', '', accuracy_table(mine, axis)))
  for number, s in enumerate(labels):
    figure = figures.depth_by_length(rows, s, labels[s])
    if figure is not None:
      heading = f'Depth of the evidence: {labels[s]}'
      sections.append((f'depth_{number}', heading, '', figure))
  seconds = _seconds(timings)
  figure = figures.cost(found, labels, seconds, priced)
  sections.append(
    ('cost', 'What a document costs', _LINEAR_ATTENTION_NOTE, figure)
  )
  sections.append(('', 'Cost', '', _cost_table(found, labels, seconds, axis)))
  figure = figures.chunk_cost(timings, labels)
  if figure is not None:
    heading = 'Cost of a chunk, and memory'
    sections.append(('chunk_cost', heading, '', figure))
  health = _health(rows, labels, axis)
  if len(health) > 1:
    sections.append(('', 'Memory health', _HEALTH_NOTE, health))
  return sections


_HEALTH_NOTE = (
  'Cut: share of turns whose memory reached its cap. Unchanged: share of turns '
  'that left it as it was. Evidence: share of documents whose answer was in the '
  'memory at some time, and of these at the end; chunk at which it came and, '
  'where it was lost, went (medians).'
)


def _score(point: Point | None) -> str:
  if point is None:
    return ''
  shown = (
    f'{100 * point.score:.1f} [{100 * point.low:.1f}, {100 * point.high:.1f}]'
  )
  return shown + (f', {point.failed} failed' if point.failed else '')


def _drops(found, labels, least_tokens) -> Table:
  lines = [['', 'from', 'to', 'difference in points']]
  for s, label in labels.items():
    result = series_lib.drop([p for p in found if p.series == s], least_tokens)
    if result is not None:
      first, last, difference = result
      lines.append(
        [
          label,
          f'{100 * first.score:.1f} at {first.tokens:,.0f}',
          f'{100 * last.score:.1f} at {last.tokens:,.0f}',
          _points(difference),
        ]
      )
  return lines


def _points(difference: tuple[float, float, float]) -> str:
  middle, low, high = (100 * value for value in difference)
  return f'{middle:+.1f} [{low:+.1f}, {high:+.1f}]'


def _cost_table(found, labels, seconds, axis) -> Table:
  lines = [['', axis, 'tokens seen', 'TFLOPs', 'seconds']]
  for p in found:
    spent = seconds.get((p.series, p.size))
    lines.append(
      [
        labels[p.series],
        f'{p.tokens:,.0f}',
        f'{p.read_tokens:,.0f}',
        f'{p.flops / 1e12:.3g}',
        '' if spent is None else f'{spent:.3g}',
      ]
    )
  return lines


def _seconds(timings) -> dict[tuple[Series, int], float]:
  """Seconds of a document by series and size, side by side with its batch."""
  totals: dict[tuple[Series, int], list[float]] = {}
  for line in timings:
    key = Series(line['model'], line['method']), line['size']
    total = totals.setdefault(key, [0.0, 0])
    total[0] += line['seconds']
    total[1] += line['rows']
  return {key: spent / rows for key, (spent, rows) in totals.items()}


def _health(rows, labels, axis) -> Table:
  lines = [
    [
      *('', axis, 'memory tokens', 'cut', 'unchanged'),
      *('evidence came', 'stayed', 'came at', 'went at'),
    ]
  ]
  groups: dict[tuple[Series, int], list[Mapping]] = {}
  for row in rows:
    if row['health']:
      key = Series(row['model'], row['method']), row['size']
      groups.setdefault(key, []).append(row)
  for (s, _), mine in sorted(
    groups.items(),
    key=lambda item: (list(labels).index(item[0][0]), item[0][1]),
  ):
    health = [row['health'] for row in mine]
    came = [h for h in health if h['evidence_enters_turn'] is not None]
    kept = [h for h in came if h['evidence_kept']]
    lines.append(
      [
        labels[s],
        f'{_median([row["tokens"] for row in mine]):,.0f}',
        f'{_mean([h["memory_tokens"] for h in health]):.1f}',
        f'{_mean([h["saturated"] for h in health]):.1%}',
        f'{_mean([h["unchanged"] for h in health]):.1%}',
        f'{len(came) / len(health):.1%}',
        f'{len(kept) / len(came):.1%}' if came else '',
        _turn([h['evidence_enters_turn'] for h in came]),
        _turn([h['evidence_leaves_turn'] for h in came]),
      ]
    )
  return lines


def _turn(turns) -> str:
  known = [turn + 1 for turn in turns if turn is not None]
  return f'{_median(known):,.0f}' if known else ''


def _mean(values) -> float:
  return sum(values) / len(values)


def _median(values) -> float:
  return float(sorted(values)[len(values) // 2])


def _likelihood(lines) -> Table:
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


def _comparison(rows, others) -> Table:
  lines = [['this run', 'the other', 'pairs', 'other - this']]
  for one, two, count, difference in series_lib.paired(rows, others):
    lines.append(
      [
        f'{one.model}, {one.method}',
        f'{two.model}, {two.method}',
        str(count),
        _points(difference),
      ]
    )
  return lines


def _failures(workdir: Path, folder: Path, rows: Sequence[Mapping]) -> str:
  """The wrong answers, longest documents first, with links to their traces."""
  wrong = sorted(
    (row for row in rows if row['score'] < 1),
    key=lambda row: (-row['tokens'], row['model'], row['method'], row['id']),
  )
  parts = [
    f'<h2>Wrong answers</h2><p class="quiet">{len(wrong):,} of {len(rows):,} rows; '
    f'the {min(len(wrong), _SHOWN_FAILURES)} longest are shown.</p>'
  ]
  if not wrong:
    return parts[0]
  parts.append(
    '<div class="wide"><table class="text"><thead><tr><th>row</th><th>model</th>'
    '<th>method</th><th>tokens</th><th>answer</th><th>expected</th><th>finish</th>'
    '<th>trace</th></tr></thead><tbody>'
  )
  for number, row in enumerate(wrong[:_SHOWN_FAILURES]):
    link = '-'
    if row['trace'] and (workdir / row['trace']).exists():
      target = f'memories_{number}.html'
      _memory_page(folder / target, row, row_log.read(workdir / row['trace']))
      link = f'<a href="{target}">memories</a>'
    cells = [
      row['id'],
      row['model'],
      row['method'],
      f'{row["tokens"]:,}',
      _brief(row['error'] or row['answer'].strip() or '(empty)'),
      _brief(', '.join(row['answers'])),
      row['finish_reason'],
    ]
    shown = ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
    parts.append(f'<tr>{shown}<td>{link}</td></tr>')
  parts.append('</tbody></table></div>')
  return '\n'.join(parts)


def _memory_page(path: Path, row: Mapping, lines: Iterator[dict]) -> None:
  """The changes of one row's memory, beside the chunks that made them."""
  first = next(lines)
  header = {
    'document': row['id'].replace('/', ' '),
    'questions': [first['question']],
    'tokens_read': row['read_tokens'],
    'chunks_read': sum(row['turns'].values()),
    'config': first['caps'],
    'model': f'{row["model"]}, {row["method"]}; expected {row["answers"]}',
    'interrupted': False,
  }
  turns = ({'question_index': 0} | line for line in lines)
  trace.write_page(path, header, [{'answer': first['answer']}], turns)


def _brief(told: str) -> str:
  return told if len(told) <= _SHOWN_CHARS else told[:_SHOWN_CHARS] + ' ...'


def _write_points(path: Path, rows: Sequence[Mapping]) -> None:
  fields = [
    *('sampling', 'model', 'method', 'task', 'size', 'tokens', 'own_tokens'),
    *(
      'turns',
      'count',
      'failed',
      'score',
      'low',
      'high',
      'flops',
      'read_tokens',
    ),
  ]
  with path.open('w', encoding='utf-8', newline='') as file:
    out = csv.writer(file, lineterminator='\n')
    out.writerow(fields)
    for sampling, mine in series_lib.samplings(rows).items():
      for by_task in (False, True):
        for p in series_lib.points(mine, by_task):
          values = [getattr(p, name) for name in fields[3:]]
          out.writerow([sampling, p.series.model, p.series.method, *values])


def _slug(name: str) -> str:
  return ''.join(c if c.isalnum() else '_' for c in name)


def _save(folder: Path, stem: str, figure) -> str:
  """Writes a figure as PNG and SVG; the SVG for the page."""
  import matplotlib.pyplot as plt

  figure.savefig(folder / f'{stem}.png', dpi=150)
  buffer = io.StringIO()
  figure.savefig(buffer, format='svg', metadata={'Date': None})
  plt.close(figure)
  svg = buffer.getvalue()
  (folder / f'{stem}.svg').write_text(svg, encoding='utf-8')
  # Ids of one picture must not be those of another on the same page.
  svg = svg[svg.index('<svg') :]
  for mark in ('id="', 'url(#', 'href="#'):
    svg = svg.replace(mark, f'{mark}{stem}-')
  return svg


def _html_table(table: Table) -> str:
  header, *body = ([html.escape(cell) for cell in line] for line in table)
  head = ''.join(f'<th>{cell}</th>' for cell in header)
  lines = ''.join(
    '<tr>' + ''.join(f'<td>{cell}</td>' for cell in line) + '</tr>\n'
    for line in body
  )
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{lines}'
    '</tbody></table></div>'
  )


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@title@</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #636871;
  --line: #dfe1e5; --page: #fbfbfa; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e5e7; --soft: #9ba1aa;
  --line: #34373c; --page: #17181a; --link: #7db7f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.25rem 5rem;
  background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, 'Segoe UI', sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; margin: 2rem 0 .6rem; }
.quiet { color: var(--soft); font-size: .85rem; max-width: 46rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .75rem; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: right; padding: .3rem .7rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
table.text th, table.text td { text-align: left; vertical-align: top; }
table.text td:nth-child(5), table.text td:nth-child(6) { white-space: normal;
  overflow-wrap: anywhere; min-width: 12rem; }
a { color: var(--link); }
</style></head><body><main>
<h1>@title@</h1>
"""
