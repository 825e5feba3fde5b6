"""Intervals for shares and slopes: what a number from few samples can claim."""

from collections.abc import Sequence
import math

import numpy as np
import scipy.stats

# Of the normal distribution, for 95 %.
_Z = 1.959964


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
  """95 % interval of a share; fits 0 and 1 and small counts.

  Args:
    successes: a number, or a sum of scores in 0 ... 1.
    count: at least 1.

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

  The interval takes the residuals as independent. Fewer than 3 values have no
  interval: all three are nan.
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

  Both may be effective numbers, of events that are alike. Without events it is
  about 3 / count.

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
    first: successes and count of the one.
    second: of the other, from other examples.

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
  first: Sequence[float],
  second: Sequence[float],
  *,
  draws: int = 10_000,
  seed: int = 0,
) -> tuple[float, float, float]:
  """Mean difference of paired scores, second - first, and its 95 % interval.

  The interval holds the middle of the means of `draws` resamplings of the pairs.

  Args:
    first: scores of the one, example by example.
    second: scores of the other on the same examples.
    draws: resamplings.
    seed: of the resampling.

  Source: Efron and Tibshirani 1993, percentile interval.
  """
  gap = np.asarray(second, float) - np.asarray(first, float)
  if not len(gap):
    return (math.nan,) * 3
  rng = np.random.default_rng(seed)
  means = np.empty(draws)
  for i in range(draws):
    means[i] = gap[rng.integers(0, len(gap), len(gap))].mean()
  low, high = np.percentile(means, [2.5, 97.5])
  return float(gap.mean()), float(low), float(high)
