"""How far a batch is: for a killed run that goes on, and for who waits.

state of a method -> Progress.update -> a file, now and then | share -> told
"""

from collections.abc import Callable
import os
from pathlib import Path
import time
from typing import Any

from memagent_jax.io import jsonl


class Progress:
  """What a killed batch goes on from, and the seconds it has taken."""

  def __init__(
    self,
    path: str | os.PathLike | None = None,
    told: Callable[[float, float], None] | None = None,
    every_seconds: float = 30.0,
  ):
    """Begins a batch, or goes on with it.

    Args:
      path: file of the batch; None keeps nothing.
      told: gets the share that is done and the seconds so far at every save.
      every_seconds: least time between two saves.
    """
    self._path = None if path is None else Path(path)
    self._told, self._every_seconds = told, every_seconds
    # As it was last saved, JSON-able; None at the start of a batch.
    self.state: Any = None
    before = 0.0
    if self._path is not None and self._path.exists():
      (saved,) = jsonl.read(self._path)
      self.state, before = saved['state'], saved['seconds']
    self._saved_at = time.perf_counter()
    self._begun = self._saved_at - before

  @property
  def seconds(self) -> float:
    """Wall seconds of the batch, with those of killed runs up to their save."""
    return time.perf_counter() - self._begun

  def update(self, share: float, state: Callable[[], Any]) -> None:
    """Saves and tells where the batch is, if it is time to.

    Args:
      share: of the batch that is done, in [0, 1].
      state: gives what is saved, JSON-able.
    """
    now = time.perf_counter()
    if now - self._saved_at < self._every_seconds:
      return
    self._saved_at = now
    if self._path is not None:
      jsonl.rewrite(self._path, [{'seconds': self.seconds, 'state': state()}])
    if self._told is not None:
      self._told(share, self.seconds)

  def finish(self) -> None:
    """Forgets what was saved: the batch is done."""
    if self._path is not None:
      self._path.unlink(missing_ok=True)
