"""Pictures of a grid with many series and widely spaced lengths."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from memagent_jax.evals.report import figures
from memagent_jax.evals.report import series as series_lib
from tests.evals.report.fake_records import records, timing

_SIZES = (256, 8192, 524_288, 3_500_000)


@pytest.fixture
def many():
  """Points of a dozen models, each with its label."""
  points = series_lib.points(
    [
      record
      for number in range(12)
      for size in _SIZES
      for record in records(f'model {number}', size, [1, 0])
    ]
  )
  labels = series_lib.labels(series_lib.all_series_of(points))
  yield points, labels
  plt.close('all')


def test_every_one_of_a_dozen_series_has_its_own_colour(many):
  points, labels = many
  figure = figures.accuracy(points, labels, title='')
  lines = figure.axes[0].get_lines()
  named = [line for line in lines if len(line.get_xdata()) == len(_SIZES)]
  curves = {line.get_color() for line in named if line.get_linestyle() == '-'}
  assert len(curves) == 12
  # The plot has no room inside for so many names.
  assert figure.axes[0].get_legend() is None
  assert len(figure.legends[0].get_texts()) == 12


def test_the_longest_document_has_a_tick(many):
  points, labels = many
  axes = figures.accuracy_by_task(points, labels).axes[0]
  assert axes.get_xticklabels()[0].get_text() == '3.5M'


def test_a_legend_of_long_names_is_not_wider_than_its_figure(many):
  points, labels = many
  long = {s: f'{name} that reads with a memory' for s, name in labels.items()}
  timings = [timing(s.model, 100) for s in labels]
  for figure in (
    figures.accuracy_by_task(points, long),
    figures.chunk_cost(timings, long),
    figures.cost(points, long, {}, []),
  ):
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 12
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.x1


def test_curves_that_end_together_have_one_label(many):
  points, labels = many
  not_run = {s: [7_000_000.0] for s in labels}
  figure = figures.accuracy(points, labels, title='', not_run=not_run)
  (text,) = figure.axes[0].texts
  assert text.get_text() == '12 not run beyond'


def test_a_heat_map_has_depth_downwards_and_length_to_the_right():
  given = [
    *records('a', 100, [1, 0], depth=0.05),
    *records('a', 100, [1], depth=0.95),
    *records('a', 400, [0], depth=0.95),
  ]
  figure = figures.depth_by_length(
    given, series_lib.Series('a', 'MemAgent'), 'a'
  )
  axes = figure.axes[0]
  (image,) = axes.get_images()
  shown = np.ma.filled(image.get_array(), -1.0)
  assert shown.shape == (10, 2)
  assert (shown[0, 0], shown[9, 0], shown[9, 1]) == (50, 100, 0)
  # Shallow evidence is on top.
  assert image.origin == 'upper'
  assert [t.get_text() for t in axes.get_yticklabels()][::9] == [
    '0-10',
    '90-100',
  ]
  texts = {t.get_position(): t.get_text() for t in axes.texts}
  assert texts == {(0, 0): '50', (0, 9): '100', (1, 9): '0'}
  plt.close('all')


def test_memory_is_drawn_where_chunks_were_not_timed():
  timings = [
    timing('a', 100, chunk_seconds=None, chunked=False),
    timing('a', 400, chunk_seconds=None, chunked=False),
    timing('a', 400, peak_host_bytes=2**30, chunked=False),
  ]
  labels = {series_lib.Series('a', 'MemAgent'): 'a'}
  (axes,) = figures.chunk_cost(timings, labels).axes
  (line,) = axes.get_lines()
  assert list(line.get_xdata()) == [100, 400]
  # The highest value at each length.
  assert list(line.get_ydata()) == [500, 1024]
  timings[0] |= {'chunked': True, 'chunk_seconds': 0.2}
  timings[1] |= {'peak_device_bytes': 2**20}
  assert len(figures.chunk_cost(timings, labels).axes) == 3
  assert figures.chunk_cost([], labels) is None
  plt.close('all')


def test_flops_over_many_decades_have_ticks(many):
  points, labels = many
  series = next(iter(labels))
  figure = figures.cost(points, labels, {}, [(series, 3.5e6, 1e18)])
  axes = figure.axes[2]
  least, most = axes.get_ylim()
  assert most / least > 1e6
  assert sum(least < tick < most for tick in axes.get_yticks()) >= 2
