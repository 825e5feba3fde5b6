"""Metrics of a run: TensorBoard event files, JSONL, and a line on the terminal.

Of several processes only the first writes anything.
"""

from collections.abc import Mapping
import json
import math
import os
from pathlib import Path

from memagent_jax import sharding
from memagent_jax.io import jsonl


class MetricLog:
  """Appends the metrics of every step; a resumed run drops steps it repeats.

  Files in the directory: `metrics.jsonl`, one object a step, and TensorBoard
  event files.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    first_step: int = 0,
    shown: tuple[str, ...] = (),
  ):
    """Opens the log to go on at `first_step`.

    Args:
      directory: made if need be.
      first_step: rows of it and later, left by a run that was killed, go.
      shown: metrics of the terminal line, in this order, where present; none: no
        line is printed.
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

  def __enter__(self) -> 'MetricLog':
    return self

  def __exit__(self, *details) -> None:
    if self._main:
      self._lines.close()
      self._events.close()

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Appends the metrics of one step; numbers that are not finite as null."""
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
    line = '  '.join(
      f'{name} {metrics[name]:.4g}' for name in self._shown if name in metrics
    )
    if line:
      print(f'step {step}  {line}', flush=True)


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """The rows of a `metrics.jsonl`; a half-written last line is left out."""
  return list(jsonl.read(path)) if Path(path).exists() else []
