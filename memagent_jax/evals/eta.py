"""What a grid tells while it runs: how far it is, and how long it will take.

batches that are done, and the share of one in flight -> rates -> a line, with ETAs
"""

from collections.abc import Callable, Sequence
import time

from memagent_jax.evals.grid import Batch

# Between two lines about the same batch.
_TOLD_EVERY_SECONDS = 60.0

# FLOPs and seconds so far, by model and method.
_Rates = dict[tuple[str, str], tuple[float, float]]


class Pace:
  """The rates of all batches so far, and who is told."""

  def __init__(self, report: Callable[[str], None]):
    """Begins without any; `report` gets the lines."""
    self._report = report
    self._rates: _Rates = {}
    self._told_at = time.perf_counter()

  def meanwhile(
    self,
    batch: Batch,
    left: Sequence[Batch],
    done: str,
    share: float,
    seconds: float,
  ) -> None:
    """Reports a batch of which a share took so many seconds, not too often."""
    if share and time.perf_counter() - self._told_at > _TOLD_EVERY_SECONDS:
      self._tell(batch, left, done, f'{share:.1%} read', share, seconds)

  def finished(
    self,
    batch: Batch,
    left: Sequence[Batch],
    done: str,
    what: str,
    seconds: float,
  ) -> None:
    """Reports a batch that is done, and learns from it.

    Args:
      batch: took so many seconds.
      left: come after it.
      done: how far the grid is.
      what: became of the batch.
      seconds: of it, those of killed runs too.
    """
    self._tell(batch, left, done, f'{what}, {seconds:.0f} s', 1.0, seconds)
    self._rates = self._rates_with(batch, 1.0, seconds)

  def _tell(self, batch, left, done, what, share, seconds) -> None:
    cell, rates = batch.cell, self._rates_with(batch, share, seconds)
    same = [
      b
      for b in left
      if (b.cell.model, b.cell.method, b.tokens)
      == (cell.model, cell.method, batch.tokens)
    ]
    rest = (1 / share - 1) * seconds
    self._told_at = time.perf_counter()
    self._report(
      f'{done}  {cell.model}, {cell.method}, {batch.tokens:,} tokens: {what}; '
      f'left: {_clock(rest + _seconds(same, rates))} of this length, '
      f'{_clock(rest + _seconds(left, rates))} in all'
    )

  def _rates_with(self, batch: Batch, share: float, seconds: float) -> _Rates:
    """The rates with a share of one more batch."""
    key = (batch.cell.model, batch.cell.method)
    flops, spent = self._rates.get(key, (0.0, 0.0))
    return self._rates | {key: (flops + share * batch.flops, spent + seconds)}


def _seconds(batches: Sequence[Batch], rates: _Rates) -> float:
  """What batches will take."""
  flops, spent = map(sum, zip(*rates.values(), strict=True))
  seconds = 0.0
  for batch in batches:
    key = (batch.cell.model, batch.cell.method)
    known_flops, known_spent = rates.get(key, (flops, spent))
    seconds += batch.flops * known_spent / known_flops
  return seconds


def _clock(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  return f'{hours}:{rest // 60:02d}:{rest % 60:02d}'
