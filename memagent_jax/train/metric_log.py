"""Metrics of a run: TensorBoard event files, JSONL, and lines on the terminal.

If there are several processes, only the first writes anything.
"""

from collections.abc import Callable, Mapping
import json
import math
import os
from pathlib import Path
import time

from memagent_jax import sharding
from memagent_jax.io import jsonl

# Columns of a line on the terminal.
_WIDTH = 79


class PacedLines:
  """Shows a line every few seconds, and the last one; omits the others."""

  def __init__(
    self,
    show: Callable[[str], None],
    every_seconds: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts with nothing shown.

    Args:
      show: function that prints a line.
      every_seconds: minimum time between two lines.
      clock: function that returns the time in seconds.
    """
    self._show, self._every_seconds, self._clock = show, every_seconds, clock
    self._shown_at = float('-inf')
    self._left_out: str | None = None

  def add(self, line: str) -> None:
    """Shows the line, or keeps it in case it is the last one."""
    now = self._clock()
    if now - self._shown_at < self._every_seconds:
      self._left_out = line
      return
    self._shown_at, self._left_out = now, None
    self._show(line)

  def finish(self) -> None:
    """Shows the last line, if it was left out."""
    if self._left_out is not None:
      self._show(self._left_out)
    self._left_out = None


class MetricLog:
  """Appends the metrics of every step; a resumed run drops steps it repeats.

  Files in the directory: `metrics.jsonl`, one object per step, and TensorBoard
  event files.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    first_step: int = 0,
    shown: tuple[str, ...] = (),
    shown_every_seconds: float = 5.0,
  ):
    """Opens the log to continue at `first_step`.

    Args:
      directory: directory of the files, created if necessary.
      first_step: first step to write; rows of it and later, left by a killed
        run, are dropped.
      shown: metrics to show on the terminal, in this order, where present; if
        empty, nothing is printed.
      shown_every_seconds: minimum time between two steps on the terminal; the
        last step is always shown.
    """
    import tensorboardX

    self._directory = Path(directory)
    self._main = sharding.is_main()
    if not self._main:
      return
    self._directory.mkdir(parents=True, exist_ok=True)
    path = self._directory / 'metrics.jsonl'
    kept = [row for row in read_metrics(path) if row['step'] < first_step]
    jsonl.rewrite(path, kept)
    self._lines = path.open('a', encoding='utf-8')
    self._events = tensorboardX.SummaryWriter(
      str(self._directory), purge_step=first_step
    )
    self._shown = shown
    self._terminal = PacedLines(
      lambda line: print(line, flush=True), shown_every_seconds
    )

  def __enter__(self) -> 'MetricLog':
    return self

  def __exit__(self, *details: object) -> None:
    if self._main:
      self._terminal.finish()
      self._lines.close()
      self._events.close()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends the metrics of one step; non-finite numbers become null."""
    if not self._main:
      return
    row = {
      name: value if math.isfinite(value) else None
      for name, value in metrics.items()
    }
    self._lines.write(json.dumps({'step': step, **row}) + '\n')
    self._lines.flush()
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)
    shown = [f'{k} {metrics[k]:.4g}' for k in self._shown if k in metrics]
    if shown:
      self._terminal.add(_wrapped(f'step {step}', shown))


def _wrapped(head: str, parts: list[str]) -> str:
  """The parts on lines that fit the terminal, indented after the first."""
  lines = [head]
  for part in parts:
    if len(lines[-1]) + 2 + len(part) > _WIDTH:
      lines.append(' ' * len(head))
    lines[-1] += f'  {part}'
  return '\n'.join(lines)


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """The rows of a `metrics.jsonl`; a half-written last line is left out."""
  return list(jsonl.read(path)) if Path(path).exists() else []
