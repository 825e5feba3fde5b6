"""One latched answer to "shall this run stop?", in one process or many.

    SIGTERM -> Preemption.reached(step) -> the train loop saves and returns

With one process, a Python handler sets the latch. With several, JAX's
coordination service handles SIGTERM and gives all of them the same step to stop
at; its answer is True for that step only, so it is latched here.
"""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
  """A context manager; outside it, SIGTERM has its previous handler."""

  def __init__(self) -> None:
    self._latched = False
    self._before: Any = None  # the previous handler of SIGTERM

  def __enter__(self) -> 'Preemption':
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._latch)
    return self

  def __exit__(self, *details: object) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def reached(self, step: int) -> bool:
    """Whether to save and stop after this step; the same on all processes."""
    if jax.process_count() > 1:
      now = multihost_utils.reached_preemption_sync_point(step)
      self._latched = self._latched or now
    return self._latched

  def _latch(self, *unused: object) -> None:
    self._latched = True
