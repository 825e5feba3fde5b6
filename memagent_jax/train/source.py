"""What a model learns from in a step, whatever its origin.

    `supervision.Demonstrations`, `rollouts.Rollouts` -> Experience -> trainer.py

A source is made for a model and asked once per step; its state is small.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol

import numpy as np

from memagent_jax.train import sequences
from memagent_jax.train.objective import Objective
from memagent_jax.train.sequences import MicroBatches


@dataclasses.dataclass(frozen=True)
class Experience:
  """One step's sequences: one optimizer step is taken for each mini-batch."""

  objective: Objective
  mini_batches: Sequence[tuple[MicroBatches, ...]]
  metrics: Mapping[str, float]
  # Wall seconds by phase.
  seconds: Mapping[str, float]
  # Prompt and response tokens of the trained sequences, equal turns merged.
  trained_tokens: int
  warnings: Sequence[str] = ()


class Source(Protocol):
  """Where experience comes from."""

  num_steps: int | None  # None: no end

  def next(self, step: int, params: dict) -> Experience:
    """The experience of a step, made with these params if it needs any."""

  def state(self) -> dict[str, Any]:
    """What `restore` needs to resume here; JSON-able."""

  def restore(self, state: Mapping[str, Any]) -> None:
    """Resumes where `state` was taken."""


def trained_tokens(
  turns: sequences.Sequences, counts_N: np.ndarray | bool = True
) -> int:
  """Prompt and response tokens of the sequences that count."""
  length_N = turns.prompt_length_N + turns.response_length_N
  return int((length_N * counts_N).sum())
