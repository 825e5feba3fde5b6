"""Confidence intervals of shares, differences and slopes from few samples."""

from collections.abc import Sequence
import math

import numpy as np
import scipy.stats

# Quantile of the normal distribution for 95 %.
_Z = 1.959964


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
  """95 % interval (low, high) of a share, good near 0 and 1 and for few trials.

  Successes may be a sum of scores in [0, 1]; there is at least 1 trial.

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

  The interval assumes independent residuals. With fewer than 3 values, one for
  every step, all three numbers are nan.
  """
  if len(values) < 3:
    return (math.nan,) * 3
  (b, _), covariance = np.polyfit(range(len(values)), values, 1, cov=True)
  half = _Z * math.sqrt(covariance[0, 0])
  return float(b), float(b - half), float(b + half)


def upper_bound(events: float, count: float) -> float:
  """Upper end of the one-sided exact 95 % interval of a rate.

  Without events it is about 3 / count. For correlated trials, pass effective
  numbers of events and trials.

  Source: Clopper and Pearson 1934.
  """
  if events >= count:
    return 1.0
  return float(scipy.stats.beta.ppf(0.95, events + 1, count - events))


def difference_interval(
  first: tuple[float, int], second: tuple[float, int]
) -> tuple[float, float, float]:
  """Difference of two shares, second - first, with its 95 % interval.

  Each share is (successes, count); the examples of the two differ.

  Source: Newcombe 1998, "Interval estimation for the difference between
  independent proportions", method 10.
  """
  low1, high1 = wilson_interval(*first)
  low2, high2 = wilson_interval(*second)
  share1, share2 = first[0] / first[1], second[0] / second[1]
  difference = share2 - share1
  return (
    difference,
    difference - math.hypot(share2 - low2, high1 - share1),
    difference + math.hypot(high2 - share2, share1 - low1),
  )


def paired_bootstrap(
  first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> tuple[float, float, float]:
  """Mean difference of paired scores, second - first, and its 95 % interval.

  The interval is the middle 95 % of the means of 10,000 resamplings of pairs.
  All three numbers are nan without any pair.

  Source: Efron and Tibshirani 1993, percentile interval.
  """
  gaps = np.asarray(second, float) - np.asarray(first, float)
  if not len(gaps):
    return (math.nan,) * 3
  rng = np.random.default_rng(0)
  means = np.empty(10_000)
  for i in range(len(means)):
    means[i] = gaps[rng.integers(0, len(gaps), len(gaps))].mean()
  low, high = np.percentile(means, [2.5, 97.5])
  return float(gaps.mean()), float(low), float(high)
