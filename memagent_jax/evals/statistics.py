"""Confidence intervals of shares, differences and slopes from few samples."""

from collections.abc import Sequence
import math

import numpy as np
import scipy.stats

# Quantile of the normal distribution for 95 %.
_Z = 1.959964


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
  """95 % interval of a share; also good near 0 and 1 and for small counts.

  Args:
    successes: their number, or the sum of scores in [0, 1].
    count: number of trials, at least 1.

  Returns:
    the lower and the upper end.

  Source: Wilson 1927, "Probable inference".
  """
  share = successes / count
  z2 = _Z * _Z / count
  centre = (share + z2 / 2) / (1 + z2)
  half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
  half /= 1 + z2
  return max(0.0, centre - half), min(1.0, centre + half)


def slope(values: Sequence[float]) -> tuple[float, float, float]:
  """Least-squares slope per step, and its 95 % interval (low, high).

  The interval assumes independent residuals. With fewer than 3 values all three
  numbers are nan.

  Args:
    values: one for every step.
  """
  n = len(values)
  if n < 3:
    return (math.nan,) * 3
  x = np.arange(n) - (n - 1) / 2
  y = np.asarray(values, float)
  b = float((x * y).sum() / (x * x).sum())
  residual = y - y.mean() - b * x
  error = math.sqrt(float((residual**2).sum()) / (n - 2) / float((x * x).sum()))
  half = _Z * error
  return b, b - half, b + half


def upper_bound(events: float, count: float) -> float:
  """Upper end of the one-sided exact 95 % interval of a rate.

  Without events it is about 3 / count.

  Args:
    events: their number, or the effective number of correlated events.
    count: number of trials, or the effective number of correlated ones.

  Source: Clopper and Pearson 1934.
  """
  if events >= count:
    return 1.0
  return float(scipy.stats.beta.ppf(0.95, events + 1, count - events))


def difference_interval(
  first: tuple[float, int], second: tuple[float, int]
) -> tuple[float, float, float]:
  """Difference of two shares, second - first, and its 95 % interval.

  Args:
    first: successes and count of the first share.
    second: successes and count of the second, on other examples.

  Returns:
    the difference, and the lower and the upper end.

  Source: Newcombe 1998, "Interval estimation for the difference between
  independent proportions", method 10.
  """
  (low1, high1), (low2, high2) = (
    wilson_interval(*first),
    wilson_interval(*second),
  )
  share1, share2 = first[0] / first[1], second[0] / second[1]
  difference = share2 - share1
  return (
    difference,
    difference - math.hypot(share2 - low2, high1 - share1),
    difference + math.hypot(high2 - share2, share1 - low1),
  )


def paired_bootstrap(
  first: Sequence[float] | np.ndarray,
  second: Sequence[float] | np.ndarray,
  *,
  draws: int = 10_000,
  seed: int = 0,
) -> tuple[float, float, float]:
  """Mean difference of paired scores, second - first, and its 95 % interval.

  The interval is the middle 95 % of the means of `draws` resamplings of the pairs.

  Args:
    first: scores of the first, example by example.
    second: scores of the second on the same examples.
    draws: number of resamplings.
    seed: seed of the resampling.

  Returns:
    the difference, and the lower and the upper end; nan without any pair.

  Source: Efron and Tibshirani 1993, percentile interval.
  """
  gaps = np.asarray(second, float) - np.asarray(first, float)
  if not len(gaps):
    return (math.nan,) * 3
  rng = np.random.default_rng(seed)
  means = np.empty(draws)
  for i in range(draws):
    means[i] = gaps[rng.integers(0, len(gaps), len(gaps))].mean()
  low, high = np.percentile(means, [2.5, 97.5])
  return float(gaps.mean()), float(low), float(high)
