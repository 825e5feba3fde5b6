"""Pictures of a grid, where there are many series and lengths far apart."""

import matplotlib.pyplot as plt
import pytest

from memagent_jax.report import figures
from memagent_jax.report import series as series_lib
from tests.report.rows import rows

_SIZES = (256, 8192, 524_288, 3_500_000)


@pytest.fixture
def many():
  """Points of a dozen models, each with its label."""
  found = series_lib.points(
    [
      row
      for number in range(12)
      for size in _SIZES
      for row in rows(f'model {number}', size, [1, 0])
    ]
  )
  labels = series_lib.labels(series_lib.all_series_of(found))
  yield found, labels
  plt.close('all')


def test_every_one_of_a_dozen_series_has_its_own_colour(many):
  found, labels = many
  figure = figures.accuracy(found, labels, title='')
  lines = figure.axes[0].get_lines()
  named = [line for line in lines if len(line.get_xdata()) == len(_SIZES)]
  curves = {line.get_color() for line in named if line.get_linestyle() == '-'}
  assert len(curves) == 12
  # No room for so many names inside the plot.
  assert figure.axes[0].get_legend() is None
  assert len(figure.legends[0].get_texts()) == 12


def test_the_longest_document_has_a_tick(many):
  found, labels = many
  axes = figures.accuracy_by_task(found, labels).axes[0]
  assert axes.get_xticklabels()[0].get_text() == '3.5M'


def test_flops_over_many_decades_have_ticks(many):
  found, labels = many
  series = next(iter(labels))
  figure = figures.cost(found, labels, {}, [(series, 3.5e6, 1e18)])
  axes = figure.axes[2]
  least, most = axes.get_ylim()
  assert most / least > 1e6
  assert sum(least < tick < most for tick in axes.get_yticks()) >= 2
