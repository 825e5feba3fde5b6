"""Stages of a reinforcement run: what rollouts read, and how they are sampled.

(Stage, Stage, ...) -> stage_at(step) -> documents, temperature, first memories
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from memagent_jax.data.batch import BatchConfig
from memagent_jax.models.tokenizer import Tokenizer

# Makes a run's seqio task or mixture for a tokenizer and the sizes of a batch.
Documents = Callable[[Tokenizer, BatchConfig], Any]


@dataclasses.dataclass(frozen=True)
class Stage:
  """How the steps of one part of a run are sampled."""

  # First step after this stage; None: it lasts to the end of the run.
  until_step: int | None = None
  # Documents of this stage alone, read from their start; None: the run's, which
  # each such stage continues to read where the last one stopped.
  documents: Documents | None = None
  # Sampling temperature; None: that of the run's reading. A higher one brings
  # back errors that have become rare.
  temperature: float | None = None
  # Share of documents whose trajectories begin with a useless memory, see
  # `distractor_memories`.
  distractor_memory_share: float = 0.0

  def __post_init__(self) -> None:
    if self.temperature is not None and self.temperature <= 0:
      raise ValueError(
        f'a stage has temperature {self.temperature}; expected a number above 0: '
        'greedy rollouts of a document are all alike.'
      )
    if not 0 <= self.distractor_memory_share <= 1:
      raise ValueError(
        f'distractor_memory_share is {self.distractor_memory_share}; expected 0 '
        'to 1.'
      )


def check(stages: Sequence[Stage]) -> None:
  """Refuses stages that do not follow one another to the end.

  Raises:
    ValueError: no stages, ends that do not rise, or a last stage that ends.
  """
  ends = [stage.until_step for stage in stages]
  inner = ends[:-1]
  if (
    not ends
    or ends[-1] is not None
    or inner != sorted({end for end in inner if end is not None and end > 0})
  ):
    raise ValueError(
      f'stages end at steps {ends}; expected rising ones above 0, and None for '
      'the last.'
    )


def stage_at(stages: Sequence[Stage], step: int) -> int:
  """The number of the stage that a step belongs to."""
  return next(
    number
    for number, stage in enumerate(stages)
    if stage.until_step is None or step < stage.until_step
  )
