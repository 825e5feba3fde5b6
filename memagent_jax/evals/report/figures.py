"""The report's pictures as matplotlib figures.

    points, records, timings -> Figure

Lengths are tokens of the axis' tokenizer, on a logarithmic axis. `labels` names
the series, and records are those of one sampling.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator
import numpy as np

from memagent_jax.evals.report import series as series_lib
from memagent_jax.evals.report.series import Labels, Point, Series

# The first eight are safe for colour-blind eyes (Okabe and Ito 2008).
_COLOURS = (
  '#0072b2 #d55e00 #009e73 #cc79a7 #56b4e9 #e69f00 #555555 '
  '#000000 #7a5195 #8c510a #a6761d #66a61e #e7298a'
).split()
# Twelve marks for thirteen colours: a pair of both repeats after 156 series.
_MARKS = 'os^DvP*Xhdp<'
_DEPTHS = 10
# Distance between the first and the last series at one length, as a share of
# the axis: intervals that stand apart stay legible.
_SPREAD = 0.02
_NOT_RUN_NOTE = 'hollow: not run, by arithmetic'


def accuracy(
  points: Sequence[Point],
  labels: Labels,
  *,
  title: str,
  trained_tokens: int | None = None,
  not_run: Mapping[Series, Sequence[float]] | None = None,
) -> Figure:
  """Draws the percentage of right answers against length, a line a series.

  At each length the series stand a little apart.

  Args:
    points: points of one task, or over all tasks.
    labels: names of the series.
    title: title of the plot.
    trained_tokens: longest document of training; lengths up to it are shaded.
    not_run: lengths at which a series was not run.
  """
  figure, axes = plt.subplots(figsize=(8, 4.4), layout='constrained')
  _accuracy(axes, points, labels, not_run or {})
  if trained_tokens is not None and points:
    least, _ = axes.get_xlim()
    if trained_tokens > least:
      axes.axvspan(
        least,
        trained_tokens,
        color='#888888',
        alpha=0.13,
        linewidth=0,
        label='lengths trained on',
      )
      axes.set_xlim(left=least)
  axes.set_xlabel('document, tokens')
  axes.set_ylabel('right answers, %')
  axes.set_title(title, loc='left', fontsize=11)
  figure.set_figwidth(figure.get_figwidth() + _entry_inches(labels.values()))
  figure.legend(frameon=False, fontsize=9, loc='outside right upper')
  return figure


def accuracy_by_task(points: Sequence[Point], labels: Labels) -> Figure:
  """Draws the percentage of right answers in a small plot for every task."""
  tasks = list(dict.fromkeys(point.task for point in points))
  columns = 2 if len(tasks) == 4 else min(len(tasks), 3)
  lines = -(-len(tasks) // columns)
  figure, grid = plt.subplots(
    lines,
    columns,
    figsize=(3.1 * columns + 0.6, 2.5 * lines + 0.5),
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  for axes in grid.flat[len(tasks) :]:
    axes.set_visible(False)
  for axes, task in zip(grid.flat, tasks, strict=False):
    _accuracy(
      axes, [p for p in points if p.task == task], labels, {}, small=True
    )
    axes.set_title(task, loc='left', fontsize=9)
    axes.tick_params(labelsize=8)
  for axes in grid[:, 0]:
    axes.set_ylabel('right answers, %', fontsize=8)
  names: dict[str, Any] = {}
  for axes in grid.flat[: len(tasks)]:
    for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
      names.setdefault(name, handle)
  _legend_below(figure, names)
  return figure


def _accuracy(
  axes: Axes,
  points: Sequence[Point],
  labels: Labels,
  not_run: Mapping[Series, Sequence[float]],
  small: bool = False,
) -> None:
  series = series_lib.all_series_of(points)
  order = list(labels)
  ends: list[tuple[float, float]] = []
  lengths = [p.tokens for p in points]
  spread = 0.0
  if len(series) > 1:
    spread = _SPREAD * np.log2(max(lengths) / min(lengths))
  offsets = np.linspace(-0.5, 0.5, len(series))
  for s, offset in zip(series, offsets, strict=True):
    own_points = _by_length(points, s)
    score = [100 * p.score for p in own_points]
    tokens = [p.tokens for p in own_points]
    style = _style(order.index(s))
    axes.errorbar(
      [t * 2 ** (spread * offset) for t in tokens],
      score,
      yerr=[
        # Rounding can take a score of 0 or 1 outside its interval.
        [100 * max(0.0, p.score - p.low) for p in own_points],
        [100 * max(0.0, p.high - p.score) for p in own_points],
      ],
      **style,
      markersize=3.5 if small else 5,
      linewidth=1.8,
      elinewidth=0.8,
      capsize=2,
      label=labels[s],
      # The first series is drawn above the others.
      zorder=3 - order.index(s) / len(order),
    )
    if any(t > tokens[-1] for t in not_run.get(s, ())):
      ends.append((tokens[-1], score[-1]))
  while ends:
    # Curves that end at one length have one label, above the highest.
    last = max(t for t, _ in ends)
    together = [end for end in ends if end[0] > last / 1.2]
    ends = [end for end in ends if end not in together]
    count = f'{len(together)} ' if len(together) > 1 else ''
    axes.annotate(
      f'{count}not run beyond',
      (last, max(score for _, score in together)),
      xytext=(8, 6),
      textcoords='offset points',
      fontsize=8,
      color='#444444',
    )
  _length_axis(axes, lengths, most=7 if small else 14)
  axes.set_ylim(-2, 103)


def _by_length(points: Iterable[Point], series: Series) -> list[Point]:
  """The points of one series, shortest first."""
  return sorted(
    (p for p in points if p.series == series), key=lambda p: p.tokens
  )


def depth_by_length(
  records: Iterable[Mapping], series: Series, label: str
) -> Figure | None:
  """Draws a series' right answers by depth of the evidence and document length.

  Returns None if no record has a depth.
  """
  with_depth = [
    record
    for record in records
    if series_lib.series_of(record) == series and record['depth'] is not None
  ]
  sizes = sorted({record['size'] for record in with_depth})
  if not sizes:
    return None
  total = np.zeros((_DEPTHS, len(sizes)))
  right = np.zeros_like(total)
  tokens: dict[int, list[int]] = {size: [] for size in sizes}
  for record in with_depth:
    row = min(int(record['depth'] * _DEPTHS), _DEPTHS - 1)
    column = sizes.index(record['size'])
    total[row, column] += 1
    right[row, column] += record['score']
    tokens[record['size']].append(record['tokens'])
  share = np.where(total > 0, right / np.maximum(total, 1), np.nan)
  figure, axes = plt.subplots(
    figsize=(1.6 + 0.62 * len(sizes), 3.4), layout='constrained'
  )
  colours = plt.get_cmap('RdYlBu').with_extremes(bad='#eeeeee')
  image = axes.imshow(
    100 * share, cmap=colours, vmin=0, vmax=100, aspect='auto'
  )
  for (row, column), count in np.ndenumerate(total):
    if count:
      value = share[row, column]
      axes.text(
        column,
        row,
        f'{100 * value:.0f}',
        ha='center',
        va='center',
        fontsize=7.5,
        color='#ffffff' if value > 0.85 or value < 0.12 else '#222222',
      )
  axes.set_xticks(
    range(len(sizes)),
    [_short(float(np.median(tokens[size]))) for size in sizes],
    fontsize=8,
  )
  axes.set_yticks(
    range(_DEPTHS),
    [
      f'{100 * d // _DEPTHS}-{100 * (d + 1) // _DEPTHS}' for d in range(_DEPTHS)
    ],
    fontsize=8,
  )
  axes.set_xlabel('document, tokens', fontsize=9)
  axes.set_ylabel('depth of the evidence, %', fontsize=9)
  axes.set_title(label, loc='left', fontsize=10)
  figure.colorbar(image, label='right answers, %', shrink=0.85)
  return figure


def cost(
  points: Sequence[Point],
  labels: Labels,
  seconds: Mapping[tuple[Series, int], float],
  not_run: Iterable[tuple[Series, float, float]],
) -> Figure:
  """Draws seconds, tokens and FLOPs of a document against its length.

  The points are those over all tasks; `seconds` and `not_run` are as in
  `tables.cost_table`.
  """
  figure, grid = plt.subplots(1, 3, figsize=(10.5, 3.6), layout='constrained')
  order, priced = list(labels), list(not_run)
  for s in series_lib.all_series_of(points):
    own_points = _by_length(points, s)
    style = _style(order.index(s)) | {'markersize': 4, 'linewidth': 1.6}
    timed = [p for p in own_points if (s, p.size) in seconds]
    grid[0].plot(
      [p.tokens for p in timed],
      [seconds[s, p.size] for p in timed],
      **style,
      label=labels[s],
    )
    tokens = [p.tokens for p in own_points]
    shown_tokens = [max(p.read_tokens, 1) for p in own_points]
    grid[1].plot(tokens, shown_tokens, **style)
    grid[2].plot(tokens, [p.flops for p in own_points], **style)
    beyond = sorted((t, f) for other, t, f in priced if other == s)
    if beyond:
      grid[2].plot(
        *zip(*beyond, strict=True),
        **style | {'linestyle': ':', 'markerfacecolor': 'white'},
      )
  titles = (
    ('seconds a document', '{:g}'.format),
    ('document tokens the model sees', _short),
    ('FLOPs a document', '{:.0e}'.format),
  )
  for axes, (name, shown) in zip(grid, titles, strict=True):
    axes.set_yscale('log')
    least, most = axes.get_ylim()
    # Over many decades a locator with threes sets no ticks at all.
    subs = (1.0, 3.0) if most / least < 1e6 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _, shown=shown: shown(value))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.set_title(name, loc='left', fontsize=10)
    axes.set_xlabel('document, tokens', fontsize=9)
    lengths = [p.tokens for p in points]
    if axes is grid[2]:
      lengths += [t for _, t, _ in priced]
      if priced:
        axes.text(
          0.02,
          0.97,
          _NOT_RUN_NOTE,
          fontsize=8,
          transform=axes.transAxes,
          va='top',
        )
    _length_axis(axes, lengths, most=5)
  handles, names = grid[0].get_legend_handles_labels()
  _legend_below(figure, dict(zip(names, handles, strict=True)))
  return figure


def chunk_cost(timings: Sequence[Mapping], labels: Labels) -> Figure | None:
  """Draws seconds of a chunk and peak memory against length.

  A device's peak is that of the whole process up to then. Timings of series
  that `labels` lacks are left out; returns None without any timing.
  """
  panels: dict[str, tuple[Callable, Callable]] = {
    'milliseconds a chunk and document': (_chunk_milliseconds, np.median),
    'peak memory of the process, MB': (
      lambda line: line['peak_host_bytes'] / 2**20,
      max,
    ),
    'peak memory of a device so far, MB': (
      lambda line: (
        line['peak_device_bytes'] and line['peak_device_bytes'] / 2**20
      ),
      max,
    ),
  }
  measured: dict[str, dict[Series, dict[int, float]]] = {}
  for name, (value, reduce) in panels.items():
    values: dict[Series, dict[int, list[float]]] = {}
    for line in sorted(timings, key=lambda line: line['tokens']):
      s = series_lib.series_of(line)
      if s in labels and (measure := value(line)) is not None:
        by_length = values.setdefault(s, {})
        by_length.setdefault(line['tokens'], []).append(measure)
    if values:
      measured[name] = {
        s: {t: float(reduce(same)) for t, same in by_length.items()}
        for s, by_length in values.items()
      }
  if not measured:
    return None
  figure, grid = plt.subplots(
    1,
    len(measured),
    figsize=(0.6 + 3.7 * len(measured), 3.4),
    squeeze=False,
    layout='constrained',
  )
  order, names = list(labels), {}
  for axes, (name, panel) in zip(grid.flat, measured.items(), strict=True):
    for s, curve in panel.items():
      style = _style(order.index(s)) | {'markersize': 4, 'linewidth': 1.6}
      (names[labels[s]],) = axes.plot(
        list(curve), list(curve.values()), **style
      )
    axes.set_ylim(bottom=0)
    axes.set_title(name, loc='left', fontsize=10)
    axes.set_xlabel('document, tokens', fontsize=9)
    lengths = [t for curve in panel.values() for t in curve]
    _length_axis(axes, lengths, most=6)
  _legend_below(figure, names)
  return figure


def _legend_below(figure: Figure, handles: Mapping[str, Any]) -> None:
  """Adds one legend for all plots, from a handle for every name."""
  columns = int(figure.get_figwidth() / _entry_inches(handles))
  columns = max(min(len(handles), columns), 1)
  # The plots keep their height.
  more_lines = -(-len(handles) // columns) - 1
  figure.set_figheight(figure.get_figheight() + 0.19 * more_lines)
  figure.legend(
    handles.values(),
    handles.keys(),
    frameon=False,
    fontsize=9,
    loc='outside lower center',
    ncols=columns,
  )


def _entry_inches(names: Iterable[str]) -> float:
  """Width of a column of the legend: a handle and the longest name."""
  return 0.6 + 0.07 * max(map(len, names))


def _chunk_milliseconds(line: Mapping) -> float | None:
  if not line['chunked'] or line['chunk_seconds'] is None:
    return None
  return 1000 * line['chunk_seconds'] / line['batch_size']


def _style(number: int) -> dict:
  return {
    'color': _COLOURS[number % len(_COLOURS)],
    'marker': _MARKS[number % len(_MARKS)],
  }


def _length_axis(axes: Axes, tokens: Sequence[float], most: int) -> None:
  """Makes the axis logarithmic, with ticks at no more than `most` lengths."""
  axes.set_xscale('log', base=2)
  ticks: list[float] = []
  for t in sorted(set(tokens)):
    # Documents of one size differ a little from task to task.
    if not ticks or t > 1.35 * ticks[-1]:
      ticks.append(t)
  if ticks:
    # The longest always has a tick.
    ticks = ticks[::-1][:: -(-len(ticks) // most)]
  axes.set_xticks(ticks, [_short(t) for t in ticks])
  axes.minorticks_off()
  axes.grid(axis='y', color='#dddddd', linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


def _short(tokens: float) -> str:
  if tokens >= 950_000:
    return f'{tokens / 1e6:.1f}M'
  if tokens >= 9500:
    return f'{tokens / 1000:.0f}K'
  return f'{tokens / 1000:.1f}K' if tokens >= 950 else f'{tokens:.0f}'
