"""Points, intervals and comparisons of records spelled out here."""

import pytest

from memagent_jax.evals.report import series
from memagent_jax.evals.report.series import ALL_TASKS, Series
from tests.evals.report.fake_records import record, records


def test_points_have_counts_means_and_wilson_intervals():
  points = series.points(
    [
      *records('before', 200, [1, 1, 1, 0]),
      *records('before', 100, [1, 0, 0, 0], task='other'),
      record('after', 100, 1, error='no server', score=0.0),
    ]
  )
  assert [(p.series.model, p.size) for p in points] == [
    *(('before', 100), ('before', 200), ('after', 100)),
  ]
  short, long, failed = points
  assert (long.count, long.score, long.task) == (4, 0.75, ALL_TASKS)
  # Medians of 200 ... 203, and of twice those numbers.
  assert (long.tokens, long.own_tokens, long.turns) == (201.5, 403.0, 3)
  # Wilson interval for 3 of 4, z = 1.96.
  assert (long.low, long.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
  assert (short.score, failed.score, failed.failed) == (0.25, 0.0, 1)


def test_points_by_task_part_the_records():
  points = series.points(
    [*records('a', 100, [1, 1]), *records('a', 100, [0], task='vt')],
    by_task=True,
  )
  assert {(p.task, p.count, p.score) for p in points} == {
    *(('niah', 2, 1.0), ('vt', 1, 0.0)),
  }


def test_greedy_and_sampled_records_are_never_together():
  mixed = [record('a', 100, 0), record('a', 100, 0, sampling='temperature 0.7')]
  groups = series.by_sampling(mixed)
  assert {name: len(group) for name, group in groups.items()} == {
    'greedy': 1,
    'temperature 0.7': 1,
  }


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ([('a', 'm'), ('b', 'm')], ['a', 'b']),
    ([('a', 'm'), ('a', 'n')], ['m', 'n']),
    ([('a', 'm'), ('b', 'n')], ['a, m', 'b, n']),
  ],
)
def test_labels_leave_out_what_all_share(given, expected):
  assert list(series.labels([Series(*s) for s in given]).values()) == expected


def test_a_length_is_described_by_a_series_with_turns():
  fewer = records('a', 100, [1, 1], method='no document', turns={'eos': 0})
  points = series.points(
    records('a', 200, [1]) + fewer + records('a', 100, [1] * 8)
  )
  described = series.lengths(points)
  assert list(described) == [100, 200]
  assert [point.series.method for point in described.values()] == [
    'MemAgent'
  ] * 2
  assert described[100].turns == 3


def test_a_drop_is_from_the_first_long_enough_to_the_last():
  given = [
    *records('a', 100, [1] * 8),
    *records('a', 200, [1] * 7 + [0]),
    *records('a', 400, [1] * 4 + [0] * 4),
  ]
  first, last, tasks, (middle, low, high) = series.drop(given, least_tokens=205)
  assert (first.size, last.size, middle) == (200, 400, -0.375)
  assert tasks == ('niah',) and low < -0.375 < high
  assert series.drop(given, least_tokens=300) is None


def test_a_drop_compares_the_same_tasks():
  given = [
    *records('a', 100, [1] * 8),
    *records('a', 100, [0] * 8, task='hard'),
    *records('a', 400, [1] * 7 + [0]),
  ]
  first, last, tasks, (middle, _, _) = series.drop(given)
  assert (first.score, last.score, middle) == (1.0, 0.875, -0.125)
  assert (first.count, tasks) == (8, ('niah',))


def test_pairs_are_records_of_the_same_example():
  one = records('a', 100, [1, 0, 1, 1])
  two = [record('a', 100, i, score=1.0) for i in (3, 1, 7)]
  ((first, second, count, (middle, _, _)),) = series.paired(one, two)
  assert first == second == Series('a', 'MemAgent')
  # Examples 3 and 1: 1 and 0 against 1 and 1.
  assert (count, middle) == (2, 0.5)
  # Without a common name, all are compared with all.
  other = [record('b', 100, 0, score=0.0)]
  ((first, second, count, difference),) = series.paired(one, other)
  assert (first.model, second.model, count) == ('a', 'b', 1)
  assert difference == (-1.0, -1.0, -1.0)
