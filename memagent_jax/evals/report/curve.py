"""A training run's log in short: one record for many steps, and a picture.

WORKDIR/metrics.jsonl -> averages, with hours -> curve.jsonl, curve.png
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

# Prefixes of the metrics that are drawn: measured now and then, and every step.
_MEASURED = ('accuracy/', 'validation/reward', 'validation/metric')
_EVERY_STEP = ('reward/mean', 'nll')
_SECONDS = ('seconds/step', 'seconds/evaluate')


def write(
  workdir: str | os.PathLike, out: str | os.PathLike, every: int
) -> None:
  """Writes `curve.jsonl` and `curve.png` of a run's workdir into a folder.

  The folder need not exist; one record stands for `every` steps.

  Raises:
    ValueError: a workdir without metrics, or `every` below 1.
  """
  metrics = metric_log.read_metrics(Path(workdir) / 'metrics.jsonl')
  if not metrics:
    raise ValueError(f'{workdir}: no metrics.jsonl; expected that of a run.')
  records = thin(metrics, every)
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  jsonl.rewrite(out / 'curve.jsonl', records)
  figure = draw(records)
  figure.savefig(out / 'curve.png', dpi=130)
  plt.close(figure)


def thin(metrics: Sequence[dict], every: int) -> list[dict]:
  """One record for every few steps, with the `hours` of work up to its end.

  Metrics of every step are means over the steps. A step that measures now and
  then ends a record, so that its measurements are never averaged. A record has
  `every` lines of `metrics.jsonl` at most.
  """
  if every < 1:
    raise ValueError(f'every is {every}; expected 1 or more.')
  records: list[dict] = []
  seconds, steps = 0.0, []
  for number, step in enumerate(metrics):
    seconds += sum(step.get(name) or 0.0 for name in _SECONDS)
    steps.append(step)
    measured = any(name.startswith(_MEASURED) for name in step)
    if measured or len(steps) == every or number == len(metrics) - 1:
      hours = round(seconds / 3600, 4)
      records.append({'step': step['step'], 'hours': hours} | _means(steps))
      steps = []
  return records


def draw(records: Sequence[dict]) -> Figure:
  """Draws the measurements and every step's metrics of `thin` against hours."""
  measured = _names(records, _MEASURED)
  every_step = _names(records, _EVERY_STEP)
  figure, panels = plt.subplots(
    2, figsize=(8, 5.2), sharex=True, height_ratios=(3, 2), layout='constrained'
  )
  for axes, names, scale in zip(
    panels, (measured, every_step), (100, 1), strict=True
  ):
    for name in names:
      line = [(r['hours'], r[name]) for r in records if r.get(name) is not None]
      axes.plot(
        [hours for hours, _ in line],
        [scale * value for _, value in line],
        marker='o' if scale == 100 else '',
        markersize=3,
        linewidth=1.2,
        label=name.removeprefix('accuracy/'),
      )
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    if names:
      axes.legend(frameon=False, fontsize=9)
  panels[0].set_ylabel('%')
  panels[0].set_ylim(0, 102)
  if 'nll' in every_step:
    panels[1].set_yscale('log')
  panels[1].set_xlabel('hours')
  return figure


def _names(records: Sequence[dict], prefixes: tuple[str, ...]) -> list[str]:
  names = dict.fromkeys(name for record in records for name in record)
  return [name for name in names if name.startswith(prefixes)]


def _means(steps: Sequence[dict]) -> dict[str, float]:
  names = dict.fromkeys(name for step in steps for name in step)
  means = {}
  for name in names:
    values = [step[name] for step in steps if step.get(name) is not None]
    if values and name != 'step' and not name.startswith('seconds/'):
      means[name] = float(f'{statistics.fmean(values):.5g}')
  return means
