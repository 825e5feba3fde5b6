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

import jinja2

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
_TEMPLATE = Path(__file__).with_name('report.html.jinja')


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
  groups, marked = [], []
  for sampling, group in series_lib.by_sampling(all_records).items():
    marked.append(f'## {sampling.capitalize()}\n')
    parts = []
    for stem, heading, note, content in _sections(
      group, timings, not_run, axis, trained_tokens, least_tokens, title, scorer
    ):
      if isinstance(content, list):
        marked.append(f'### {heading}\n\n{tables.markdown(content)}')
      else:
        stem += '' if sampling == 'greedy' else f'_{_slug(sampling)}'
        content = _save(folder, stem, content)
      parts.append((heading, note, content))
    groups.append((sampling.capitalize(), parts))
  closing = list(_closing_tables(workdir, all_records, compared, scorer))
  for heading, _, table in closing:
    marked.append(f'## {heading}\n\n{tables.markdown(table)}')
  wrong = _wrong(all_records)
  page = _template().render(
    title=title,
    groups=groups,
    closing=closing,
    counts=(len(wrong), len(all_records), _SHOWN_FAILURES),
    wrong=list(_wrong_cells(workdir, folder, wrong)),
  )
  (folder / 'tables.md').write_text('\n'.join(marked), encoding='utf-8')
  _write_points(folder / 'points.csv', all_records)
  path = folder / 'report.html'
  path.write_text(page, encoding='utf-8')
  return path


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
  )
  # Quotes as the standard library escapes them.
  environment.filters['e'] = html.escape
  return environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))


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
) -> Iterator[tuple[str, str, str, Any]]:
  """Yields (file name, heading, note, table or figure) of one sampling."""
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
  yield 'accuracy', 'Accuracy against length', note, plot
  table = tables.accuracy_table(points, axis)
  yield '', f'Accuracy, {ALL_TASKS}', _LINEAR_ATTENTION_NOTE, table
  drops = tables.drop_table(group, labels, least_tokens)
  if len(drops) > 1:
    yield '', 'From short to long', tables.DROP_NOTE, drops
  if len(tasks) > 1:
    figure = figures.accuracy_by_task(by_task, labels)
    yield 'accuracy_by_task', 'By task', '', figure
    for task in tasks:
      own_points = [p for p in by_task if p.task == task]
      table = tables.accuracy_table(own_points, axis)
      yield '', f'Accuracy, {task}', '', table
  for number, (s, label) in enumerate(labels.items()):
    depths = figures.depth_by_length(group, s, label)
    if depths is not None:
      yield f'depth_{number}', f'Depth of the evidence: {label}', '', depths
  seconds = tables.document_seconds(timings)
  figure = figures.cost(points, labels, seconds, priced)
  yield 'cost', 'What a document costs', '', figure
  yield '', 'Cost', '', tables.cost_table(points, labels, seconds, priced, axis)
  chunks = figures.chunk_cost(timings, labels)
  if chunks is not None:
    yield 'chunk_cost', 'Cost of a chunk, and memory', _CHUNK_COST_NOTE, chunks
  health = tables.health_table(group, labels, axis)
  if len(health) > 1:
    note = ' '.join([tables.HEALTH_NOTE, *_health_alarms(group, labels)])
    yield '', 'Memory health', note, health


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


def _series(record: Mapping) -> tuple[str, str, str]:
  return record['model'], record['method'], record['sampling']


def _wrong(all_records: Sequence[Mapping]) -> list[Mapping]:
  """The records of wrong answers, series by series, longest first."""
  return sorted(
    (record for record in all_records if record['score'] < 1),
    key=lambda record: (*_series(record), -record['tokens'], record['id']),
  )


def _wrong_cells(
  workdir: Path, folder: Path, wrong: Sequence[Mapping]
) -> Iterator[tuple[list[str], str]]:
  """The first wrong answers of every series, and pages of their memories."""
  listed = (
    record
    for _, group in itertools.groupby(wrong, key=_series)
    for record in itertools.islice(group, _SHOWN_FAILURES)
  )
  for number, record in enumerate(listed):
    memories = ''
    if record['trace'] and (workdir / record['trace']).exists():
      memories = f'memories_{number}.html'
      lines = jsonl.read(workdir / record['trace'])
      _memory_page(folder / memories, record, lines)
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
    yield cells, memories


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
