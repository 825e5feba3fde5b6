"""The report of a grid, finished or not: one self-contained page, and files.

records, timings, not_run, likelihood -> tables and figures
  -> report.html, *.png, *.svg, tables.md, points.csv
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import html
import io
import itertools
import os
from pathlib import Path
import statistics
from typing import Any

from memagent_jax.agent import memory_health, trace
from memagent_jax.evals import records
from memagent_jax.evals.report import figures, tables
from memagent_jax.evals.report import series as series_lib
from memagent_jax.evals.report.series import ALL_TASKS, Labels, Point, Series
from memagent_jax.evals.report.tables import Table
from memagent_jax.io import jsonl

# Wrong answers that the page lists per series; records.jsonl has them all.
_SHOWN_FAILURES = 10
_SHOWN_CHARS = 120


def write(
  workdir: str | os.PathLike,
  *,
  title: str,
  axis: str = 'tokens',
  trained_tokens: int | None = None,
  least_tokens: int = 0,
  compared: str | os.PathLike | None = None,
  scorer: str | None = None,
) -> Path:
  """Writes the report of a workdir into its folder `report` or `report_SCORER`.

  Args:
    workdir: workdir of a grid, finished or not.
    title: title of the page.
    axis: name of the tokens that lengths are counted in, such as `SmolLM2 tokens`.
    trained_tokens: longest document of training, shaded in the plot; None: no
      shade.
    least_tokens: least length that the drop to the longest documents is counted
      from.
    compared: workdir of another run on the same examples; None: no comparison.
    scorer: as in `records.read_records`.

  Returns:
    path of the page.

  Raises:
    ValueError: a workdir without records, an unknown scorer, or runs to compare
      that have no example in common.
  """
  workdir = Path(workdir)
  all_records = _records(workdir, scorer)
  folder = workdir / (f'report_{scorer}' if scorer else 'report')
  folder.mkdir(exist_ok=True)
  timings = records.read_timings(workdir)
  not_run = records.read_not_run(workdir)
  parts, lines = [], []
  for sampling, group in series_lib.by_sampling(all_records).items():
    parts.append(f'<h2>{html.escape(sampling.capitalize())}</h2>')
    lines.append(f'## {sampling.capitalize()}\n')
    sections = _sections(
      group, timings, not_run, axis, trained_tokens, least_tokens, title, scorer
    )
    for name, heading, note, content in sections:
      if isinstance(content, list):
        part, marked = _table_part(3, heading, content, note)
        lines.append(marked)
      else:
        stem = f'{name}_{_slug(sampling)}' if sampling != 'greedy' else name
        figure = f'<figure>{_save(folder, stem, content)}</figure>'
        part = _part(3, heading, figure, note)
      parts.append(f'<section>{part}\n</section>')
  for heading, note, table in _closing_tables(
    workdir, all_records, compared, scorer
  ):
    part, marked = _table_part(2, heading, table, note)
    parts.append(part)
    lines.append(marked)
  parts.append(_failures(workdir, folder, all_records))
  (folder / 'tables.md').write_text('\n'.join(lines), encoding='utf-8')
  _write_points(folder / 'points.csv', all_records)
  path = folder / 'report.html'
  body = _HEAD.replace('@title@', html.escape(title)) + '\n'.join(parts)
  path.write_text(f'{body}\n</main></body></html>\n', encoding='utf-8')
  return path


def _records(workdir: str | os.PathLike, scorer: str | None) -> list[dict]:
  all_records = records.read_records(workdir, scorer)
  if not all_records:
    raise ValueError(
      f'{workdir}: no records; expected what memagent evaluate wrote.'
    )
  return all_records


_INTERVAL_NOTE = (
  'Percent of right answers with their 95 % interval (Wilson). A failed example '
  'counts as wrong.'
)
_CHUNK_COST_NOTE = (
  'Seconds include compiling. The peak is that of the process while a batch runs, '
  'including what earlier batches left, such as compiled programs.'
)
_LINEAR_ATTENTION_NOTE = (
  'Linear attention and recurrent models need weights of their own, trained from '
  'scratch, and are not run here. Published for models of 1.3B parameters trained '
  'at 4K tokens (arXiv 2412.06464, table 2), niah_single_2 at 1K / 2K / 4K / 8K: '
  'Mamba2 99.4 / 98.8 / 56.2 / 17.0 %, DeltaNet 98.4 / 45.6 / 18.6 / 14.4 %, '
  'Gated DeltaNet 100.0 / 99.8 / 92.2 / 29.6 %.'
)


def _part(level: int, heading: str, content: str, note: str) -> str:
  """A heading, the HTML below it, and a note unless it is empty."""
  lines = [f'<h{level}>{html.escape(heading)}</h{level}>', content]
  if note:
    lines.append(f'<p class="quiet">{html.escape(note)}</p>')
  return '\n'.join(lines)


def _table_part(
  level: int, heading: str, table: Table, note: str
) -> tuple[str, str]:
  """A table below its heading, for the page and for tables.md."""
  return (
    _part(level, heading, _html_table(table), note),
    f'{"#" * level} {heading}\n\n{tables.markdown(table)}',
  )


def _closing_tables(
  workdir: Path,
  all_records: Sequence[Mapping],
  compared: str | os.PathLike | None,
  scorer: str | None,
) -> Iterator[tuple[str, str, Table]]:
  """Yields (heading, note, table) for what does not belong to one sampling."""
  likelihood = records.read_likelihood(workdir)
  if likelihood:
    table = tables.likelihood_table(likelihood)
    yield 'Likelihood', tables.LIKELIHOOD_NOTE, table
  if compared is not None:
    others = _records(compared, scorer)
    table = tables.comparison_table(all_records, others)
    yield f'Against {compared}', tables.BOOTSTRAP_NOTE, table


def _sections(
  group: Sequence[Mapping],
  timings: Sequence[Mapping],
  not_run: Sequence[Mapping],
  axis: str,
  trained_tokens: int | None,
  least_tokens: int,
  title: str,
  scorer: str | None,
) -> list[tuple[str, str, str, Any]]:
  """(file name, heading, note, table or figure) for the records of one sampling."""
  points = series_lib.points(group)
  by_task = series_lib.points(group, by_task=True)
  labels = series_lib.labels(series_lib.all_series(group))
  prices: dict[tuple[Series, int], list[float]] = {}
  for line in not_run:
    if (s := series_lib.series_of(line)) in labels:
      prices.setdefault((s, line['tokens']), []).append(line['flops'])
  # Means over all tasks.
  priced = [(s, t, statistics.fmean(f)) for (s, t), f in prices.items()]
  beyond = {s: [t for other, t, _ in priced if other == s] for s in labels}
  tasks = list(dict.fromkeys(p.task for p in by_task))
  plot = figures.accuracy(
    points,
    labels,
    title=title,
    trained_tokens=trained_tokens,
    not_run=beyond,
  )
  scored = f'Scored by {scorer}. ' if scorer else ''
  note = f'Lengths are {axis}. {scored}{_INTERVAL_NOTE}'
  for fewer, lengths in series_lib.fewer_tasks(group).items():
    at = ', '.join(f'{length:,.0f}' for length in lengths)
    note += f' At {at} only {", ".join(fewer)}.'
  sections = [
    ('accuracy', 'Accuracy against length', note, plot),
    (
      '',
      f'Accuracy, {ALL_TASKS}',
      _LINEAR_ATTENTION_NOTE,
      tables.accuracy_table(points, axis),
    ),
  ]
  drops = tables.drop_table(group, labels, least_tokens)
  if len(drops) > 1:
    sections.append(('', 'From short to long', tables.DROP_NOTE, drops))
  if len(tasks) > 1:
    figure = figures.accuracy_by_task(by_task, labels)
    sections.append(('accuracy_by_task', 'By task', '', figure))
    for task in tasks:
      own_points = [p for p in by_task if p.task == task]
      table = tables.accuracy_table(own_points, axis)
      sections.append(('', f'Accuracy, {task}', '', table))
  for number, s in enumerate(labels):
    depths = figures.depth_by_length(group, s, labels[s])
    if depths is not None:
      heading = f'Depth of the evidence: {labels[s]}'
      sections.append((f'depth_{number}', heading, '', depths))
  seconds = tables.document_seconds(timings)
  figure = figures.cost(points, labels, seconds, priced)
  sections.append(('cost', 'What a document costs', '', figure))
  table = tables.cost_table(points, labels, seconds, priced, axis)
  sections.append(('', 'Cost', '', table))
  chunks = figures.chunk_cost(timings, labels)
  if chunks is not None:
    heading = 'Cost of a chunk, and memory'
    sections.append(('chunk_cost', heading, _CHUNK_COST_NOTE, chunks))
  health = tables.health_table(group, labels, axis)
  if len(health) > 1:
    note = ' '.join([tables.HEALTH_NOTE, *_health_alarms(group, labels)])
    sections.append(('', 'Memory health', note, health))
  return sections


def _health_alarms(group: Sequence[Mapping], labels: Labels) -> list[str]:
  """Sentences on what is wrong with the memories of a series at a size."""
  sentences = []
  for s, same_size in tables.records_with_memory(group, labels):
    shares = {}
    for name in ('saturated', 'empty', 'constant'):
      values = [record['health'].get(name) for record in same_size]
      numbers = [float(value) for value in values if value is not None]
      shares[f'memory/{name}'] = statistics.fmean(numbers) if numbers else 0.0
    tokens = statistics.median_high(record['tokens'] for record in same_size)
    sentences += [
      f'{labels[s]} at {tokens:,.0f}: {alarm}'
      for alarm in memory_health.alarms(shares)
    ]
  return sentences


def _failures(
  workdir: Path, folder: Path, all_records: Sequence[Mapping]
) -> str:
  """Wrong answers of every series, longest first, with links to their traces."""

  def series(record: Mapping) -> tuple[str, str, str]:
    return record['model'], record['method'], record['sampling']

  wrong = sorted(
    (record for record in all_records if record['score'] < 1),
    key=lambda record: (*series(record), -record['tokens'], record['id']),
  )
  parts = [
    f'<h2>Wrong answers</h2><p class="quiet">{len(wrong):,} of '
    f'{len(all_records):,} records; the {_SHOWN_FAILURES} longest of every series '
    'are shown.</p>'
  ]
  if not wrong:
    return parts[0]
  parts.append(
    '<div class="wide"><table class="text"><thead><tr><th>example</th><th>model</th>'
    '<th>method</th><th>tokens</th><th>answer</th><th>expected</th><th>finish</th>'
    '<th>sampling</th><th>trace</th></tr></thead><tbody>'
  )
  listed = [
    record
    for _, group in itertools.groupby(wrong, key=series)
    for record in itertools.islice(group, _SHOWN_FAILURES)
  ]
  for number, record in enumerate(listed):
    link = '-'
    if record['trace'] and (workdir / record['trace']).exists():
      target = f'memories_{number}.html'
      lines = jsonl.read(workdir / record['trace'])
      _memory_page(folder / target, record, lines)
      link = f'<a href="{target}">memories</a>'
    cells = [
      record['id'],
      record['model'],
      record['method'],
      f'{record["tokens"]:,}',
      _brief(record['error'] or record['answer'].strip() or '(empty)'),
      _brief(', '.join(record['answers'])),
      record['finish_reason'],
      record['sampling'],
    ]
    shown = ''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)
    parts.append(f'<tr>{shown}<td>{link}</td></tr>')
  parts.append('</tbody></table></div>')
  return '\n'.join(parts)


def _memory_page(path: Path, record: Mapping, lines: Iterator[dict]) -> None:
  """Writes a page with the changes of one memory, and the chunks behind them."""
  first = next(lines)
  header = {
    'document': record['id'].replace('/', ' '),
    'questions': [first['question']],
    'tokens_read': record['read_tokens'],
    'chunks_read': sum(record['turns'].values()),
    'config': first['caps'],
    'model': f'{record["model"]}, {record["method"]}; expected {record["answers"]}',
    'interrupted': False,
  }
  turns = ({'question_index': 0} | line for line in lines)
  trace.write_page(path, header, [{'answer': first['answer']}], turns)


def _brief(text: str) -> str:
  return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + ' ...'


def _write_points(path: Path, all_records: Sequence[Mapping]) -> None:
  _, *fields = (field.name for field in dataclasses.fields(Point))
  with path.open('w', encoding='utf-8', newline='') as file:
    out = csv.writer(file, lineterminator='\n')
    out.writerow(['sampling', 'model', 'method', *fields])
    for sampling, group in series_lib.by_sampling(all_records).items():
      for by_task in (False, True):
        for p in series_lib.points(group, by_task):
          values = [getattr(p, name) for name in fields]
          out.writerow([sampling, p.series.model, p.series.method, *values])


def _slug(name: str) -> str:
  return ''.join(c if c.isalnum() else '_' for c in name)


def _save(folder: Path, stem: str, figure: Any) -> str:
  """Writes a figure as PNG and SVG, and returns the SVG for the page."""
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
/* As wide as its table if the window is, over the margins of the text too. */
.wide { overflow-x: auto; position: relative; left: 50%; min-width: 100%;
  width: max-content; max-width: calc(100vw - 2.5rem); transform: translateX(-50%); }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: right; padding: .3rem .7rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); }
table.text th, table.text td { text-align: left; vertical-align: top; }
table.text td:nth-child(5), table.text td:nth-child(6) { white-space: normal;
  overflow-wrap: anywhere; min-width: 12rem; }
a { color: var(--link); }
</style></head><body><main>
<h1>@title@</h1>
"""
