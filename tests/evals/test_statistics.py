"""Intervals against published values and closed forms."""

import math

import numpy as np
import pytest

from memagent_jax.evals.statistics import (
  difference_interval,
  paired_bootstrap,
  slope,
  upper_bound,
  wilson_interval,
)


def test_wilson_interval_equals_published_values():
  # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  for successes, count, low, high in (
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ):
    found = wilson_interval(successes, count)
    np.testing.assert_allclose(found, (low, high), atol=5e-5)


def test_difference_interval_equals_published_values():
  # Newcombe 1998, table II, method 10: 56 of 70 minus 48 of 80; 9 of 10 minus 3.
  for first, second, low, high in (
    ((48, 80), (56, 70), 0.0524, 0.3339),
    ((3, 10), (9, 10), 0.1705, 0.8090),
    ((0, 10), (10, 10), 0.6075, 1.0),
  ):
    middle, *found = difference_interval(first, second)
    assert middle == pytest.approx(second[0] / second[1] - first[0] / first[1])
    np.testing.assert_allclose(found, (low, high), atol=5e-5)


def test_paired_bootstrap_is_the_normal_interval_of_many_pairs():
  rng = np.random.default_rng(0)
  first = rng.integers(0, 2, 4000)
  second = np.where(rng.random(4000) < 0.3, 1 - first, first)
  middle, low, high = paired_bootstrap(first, second)
  gap = second - first
  half = 1.96 * gap.std() / math.sqrt(len(gap))
  assert middle == gap.mean()
  np.testing.assert_allclose(
    (low - middle, high - middle), (-half, half), rtol=0.05
  )


def test_slope_of_a_line_is_exact_and_noise_widens_it():
  middle, low, high = slope([0.1, 0.2, 0.3, 0.4])
  assert middle == pytest.approx(0.1) == pytest.approx(low)
  assert high == pytest.approx(0.1)
  noise = np.random.default_rng(0).normal(size=400)
  middle, low, high = slope(noise)
  assert low < 0.0 < high
  # Standard error of the slope: sigma / sqrt(sum of squared x).
  assert high - low == pytest.approx(2 * 1.96 * math.sqrt(12 / 400**3), rel=0.1)


def test_two_values_have_no_interval():
  assert all(math.isnan(x) for x in slope([1.0, 2.0]))


def test_upper_bound_of_a_rate():
  # Without events: 1 - 0.05^(1/n), about 3 / n.
  assert upper_bound(0, 200_000) == pytest.approx(
    1 - 0.05 ** (1 / 200_000), rel=1e-6
  )
  # One-sided Clopper-Pearson: 3 of 100 gives 0.0757.
  assert upper_bound(3, 100) == pytest.approx(0.0757, abs=1e-4)
  assert upper_bound(5, 5) == pytest.approx(1.0)
