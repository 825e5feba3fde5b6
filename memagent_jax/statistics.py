"""Intervals for shares and slopes: what a number from few samples can claim."""

from collections.abc import Sequence
import math

import numpy as np

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


def upper_bound(events: int, count: int) -> float:
  """Upper end of the one-sided exact 95 % interval of a rate.

  Source: Clopper and Pearson 1934; without events it is about 3 / count.
  """
  low, high = events / count, 1.0
  for _ in range(60):
    middle = (low + high) / 2
    if _at_most(events, count, middle) > 0.05:
      low = middle
    else:
      high = middle
  return high


def _at_most(events: int, count: int, rate: float) -> float:
  """P(X <= events) of a binomial."""
  if rate in (0.0, 1.0):
    return float(rate == 0.0 or events >= count)
  total = 0.0
  for k in range(events + 1):
    log = math.lgamma(count + 1) - math.lgamma(k + 1)
    log -= math.lgamma(count - k + 1)
    total += math.exp(
      log + k * math.log(rate) + (count - k) * math.log1p(-rate)
    )
  return total
