"""Progress lines of a grid: how far it is, and how long the rest will take.

finished batches, and the share of the running one -> rates -> a line
"""

from collections.abc import Callable, Sequence
import time

from memagent_jax.evals.grid import GridBatch

# Least time between two lines about the same batch.
_LINE_EVERY_SECONDS = 60.0
_LINE_COLUMNS = 80

# FLOPs and seconds so far, by model and method.
_Rates = dict[tuple[str, str], tuple[float, float]]


class Eta:
  """Estimates the remaining time from the rates of all batches so far.

  Lines name the batch, the grid's position (such as `120/312`), and the time
  that the batch and the `remaining` ones after it will take. The seconds of a
  batch include runs that were killed.
  """

  def __init__(self, report: Callable[[str], None]):
    """Starts without any rate; `report` gets every line."""
    self._report = report
    self._rates: _Rates = {}
    self._reported_at = time.perf_counter()

  def on_progress(
    self,
    batch: GridBatch,
    remaining: Sequence[GridBatch],
    position: str,
    share: float,
    seconds: float,
  ) -> None:
    """Reports how much of a batch is done, unless a line is recent."""
    since_last = time.perf_counter() - self._reported_at
    if share and since_last > _LINE_EVERY_SECONDS:
      percent = f'{100 * share:.0f} %'
      self._write(batch, remaining, position, percent, share, seconds)

  def on_finished(
    self,
    batch: GridBatch,
    remaining: Sequence[GridBatch],
    position: str,
    outcome: str,
    seconds: float,
  ) -> None:
    """Reports a batch's outcome, such as `3/4 right`; records its rate."""
    self._write(batch, remaining, position, outcome, 1.0, seconds)
    self._rates = self._rates_with(batch, 1.0, seconds)

  def _write(
    self,
    batch: GridBatch,
    remaining: Sequence[GridBatch],
    position: str,
    status: str,
    share: float,
    seconds: float,
  ) -> None:
    cell, rates = batch.cell, self._rates_with(batch, share, seconds)
    alike = [
      other
      for other in remaining
      if (other.cell.model, other.cell.method, other.tokens)
      == (cell.model, cell.method, batch.tokens)
    ]
    rest = (1 / share - 1) * seconds
    self._reported_at = time.perf_counter()
    self._report(
      _line(
        f'{position} ',
        f'{cell.method} {cell.model}',
        f' {batch.tokens:,} tokens {status} | ',
        f'left {_clock(rest + _seconds(alike, rates))}, ',
        f'all {_clock(rest + _seconds(remaining, rates))}',
      )
    )

  def _rates_with(
    self, batch: GridBatch, share: float, seconds: float
  ) -> _Rates:
    """The rates including a share of one more batch."""
    key = (batch.cell.model, batch.cell.method)
    flops, spent = self._rates.get(key, (0.0, 0.0))
    return self._rates | {key: (flops + share * batch.flops, spent + seconds)}


def _seconds(batches: Sequence[GridBatch], rates: _Rates) -> float:
  """The seconds that batches will take; those without a rate, at the mean."""
  all_flops, all_spent = map(sum, zip(*rates.values(), strict=True))
  seconds = 0.0
  for batch in batches:
    key = (batch.cell.model, batch.cell.method)
    flops, spent = rates.get(key, (all_flops, all_spent))
    seconds += batch.flops * spent / flops
  return seconds


def _clock(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes}:{rest:02d}'
  return f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}'


def _line(start: str, name: str, middle: str, alike: str, end: str) -> str:
  """A line within the columns: without `alike`, and with the name cut, if need be."""
  line = start + name + middle + alike + end
  if len(line) <= _LINE_COLUMNS:
    return line
  room = _LINE_COLUMNS - len(start + middle + end)
  name = name if len(name) <= room else name[: max(room, 8) - 2] + '..'
  return start + name + middle + end
