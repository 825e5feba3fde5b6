"""A batch of documents and its settings, in a module that is light to import.

BatchIterator(BatchConfig) -> Batch -> engine -> trajectories
"""

import dataclasses

from memagent_jax.structs import Documents


@dataclasses.dataclass(frozen=True)
class BatchConfig:
  """Shapes of a batch, and the order of the examples."""

  # Documents per batch.
  batch_size: int
  # Budget of a chunk and width of its slot, in tokens.
  chunk_tokens: int
  # Width of a question in tokens; a longer question is an error.
  question_tokens: int
  # Where chunks end: one of `chunks.CUTS`.
  chunk_cut: str = 'sentence'
  # Seed of the examples' order.
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ('batch_size', 'chunk_tokens', 'question_tokens'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected 1 or more.'
        )


@dataclasses.dataclass(frozen=True)
class Batch:
  """Documents for the device, and what the host scores them with."""

  documents: Documents
  ids: tuple[str, ...]
  tasks: tuple[str, ...]
  answers: tuple[tuple[str, ...], ...]
  rewards: tuple[str, ...]
  metrics: tuple[str, ...]
  # Which reading of each document this is, from 0: every one samples afresh.
  readings: tuple[int, ...]
