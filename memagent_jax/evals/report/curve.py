"""The log of a training run, made short: a row for many steps, and a picture.

WORKDIR/metrics.jsonl -> rows of averages, with hours -> curve.jsonl, curve.png
"""

from collections.abc import Sequence
import os
from pathlib import Path
import statistics

import matplotlib

matplotlib.use('Agg')
from matplotlib.figure import Figure
import matplotlib.pyplot as plt

from memagent_jax.io import jsonl
from memagent_jax.train import metric_log

# What is drawn where the log has it: measured now and then, and at every step.
_MEASURED = ('accuracy/', 'validation/reward', 'validation/metric')
_EVERY_STEP = ('reward/mean', 'nll')
_SECONDS = ('seconds/step', 'seconds/evaluate')


def write(workdir: str | os.PathLike, out: str | os.PathLike, every: int):
  """Writes `curve.jsonl` and `curve.png` of a run into a folder.

  Args:
    workdir: of a run.
    out: made if need be.
    every: steps that one row stands for.

  Raises:
    ValueError: a workdir without metrics, or `every` below 1.
  """
  rows = metric_log.read_metrics(Path(workdir) / 'metrics.jsonl')
  if not rows:
    raise ValueError(f'{workdir}: no metrics.jsonl; expected that of a run.')
  found = thin(rows, every)
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  jsonl.rewrite(out / 'curve.jsonl', found)
  figure = draw(found)
  figure.savefig(out / 'curve.png', dpi=130)
  plt.close(figure)


def thin(rows: Sequence[dict], every: int) -> list[dict]:
  """A row for every so many steps, with `hours` of work when they were done.

  Metrics of each step are means over the steps; those that are measured now and
  then are where they were measured, and never averaged.

  Args:
    rows: of `metrics.jsonl`.
    every: steps a row.
  """
  if every < 1:
    raise ValueError(f'every is {every}; expected 1 or more.')
  found: list[dict] = []
  seconds, part = 0.0, []
  for number, row in enumerate(rows):
    seconds += sum(row.get(name) or 0.0 for name in _SECONDS)
    part.append(row)
    rare = any(name.startswith(_MEASURED) for name in row)
    if rare or len(part) == every or number == len(rows) - 1:
      place = {'step': row['step'], 'hours': round(seconds / 3600, 4)}
      found.append(place | _means(part))
      part = []
  return found


def draw(found: Sequence[dict]) -> Figure:
  """What was measured, and what every step had, against hours.

  Args:
    found: rows of `thin`.
  """
  measured = _names(found, _MEASURED)
  steps = _names(found, _EVERY_STEP)
  figure, panels = plt.subplots(
    2,
    figsize=(8, 5.2),
    sharex=True,
    height_ratios=(3, 2),
    layout='constrained',
  )
  for axes, names, scale in ((panels[0], measured, 100), (panels[1], steps, 1)):
    for name in names:
      line = [(r['hours'], r[name]) for r in found if r.get(name) is not None]
      axes.plot(
        [hours for hours, _ in line],
        [scale * value for _, value in line],
        marker='o' if scale == 100 else '',
        markersize=3,
        linewidth=1.2,
        label=name.removeprefix('accuracy/'),
      )
    axes.grid(alpha=0.25)
    for side in ('top', 'right'):
      axes.spines[side].set_visible(False)
    if names:
      axes.legend(frameon=False, fontsize=9)
  panels[0].set_ylabel('%')
  panels[0].set_ylim(0, 102)
  if 'nll' in steps:
    panels[1].set_yscale('log')
  panels[1].set_xlabel('hours')
  return figure


def _names(found: Sequence[dict], wanted: tuple[str, ...]) -> list[str]:
  names = dict.fromkeys(name for row in found for name in row)
  return [name for name in names if name.startswith(wanted)]


def _means(part: Sequence[dict]) -> dict[str, float]:
  names = dict.fromkeys(name for row in part for name in row)
  means = {}
  for name in names:
    values = [row[name] for row in part if row.get(name) is not None]
    if values and name != 'step' and not name.startswith('seconds/'):
      means[name] = float(f'{statistics.fmean(values):.5g}')
  return means
