"""Progress of a running batch: saved for a restart, and reported to the caller.

state of a method -> Progress.update -> a file, now and then | on_progress
"""

from collections.abc import Callable
import os
from pathlib import Path
import time
from typing import Any

from memagent_jax.io import jsonl


class Progress:
  """The state from which a killed batch resumes, and the seconds it has taken."""

  def __init__(
    self,
    path: str | os.PathLike | None = None,
    on_progress: Callable[[float, float], None] | None = None,
    every_seconds: float = 30.0,
  ):
    """Starts a batch, or resumes it from its file; no path, no saves.

    At every save, `every_seconds` or more after the last, `on_progress` gets
    the share that is done and the seconds so far.
    """
    self._path = None if path is None else Path(path)
    self._on_progress, self._every_seconds = on_progress, every_seconds
    # The last saved state, JSON-able; None at the start of a batch.
    self.state: Any = None
    seconds_before = 0.0
    if self._path is not None and self._path.exists():
      (saved,) = jsonl.read(self._path)
      self.state, seconds_before = saved['state'], saved['seconds']
    self._saved_at = time.perf_counter()
    self._started_at = self._saved_at - seconds_before

  @property
  def seconds(self) -> float:
    """Wall seconds of the batch, including killed runs up to their last save."""
    return time.perf_counter() - self._started_at

  def update(self, share: float, state: Callable[[], Any]) -> None:
    """Saves what `state` gives, JSON-able, unless the last save is recent.

    `share` is the part of the batch that is done, in [0, 1].
    """
    now = time.perf_counter()
    if now - self._saved_at < self._every_seconds:
      return
    self._saved_at = now
    if self._path is not None:
      jsonl.rewrite(self._path, [{'seconds': self.seconds, 'state': state()}])
    if self._on_progress is not None:
      self._on_progress(share, self.seconds)

  def finish(self) -> None:
    """Removes the save: the batch is done."""
    if self._path is not None:
      self._path.unlink(missing_ok=True)
