"""A turn as text: the one record of it that everything shows and stores.

Turns of a slot, on the host -> turn_record -> Turn -> page, JSON, traces
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from memagent_jax.agent.config import AgentConfig
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import EOS, FINISH_REASONS, Response, Tokens, Turns


@dataclasses.dataclass(frozen=True)
class Turn:
  """One memory turn of one question, as text and ids."""

  question_index: int
  chunk_index: int
  chunk: str
  chunk_tokens: int
  memory: str
  memory_ids: list[int]
  response_tokens: int
  # Tokens of `<think>` spans, which were kept out of the memory.
  thought_tokens: int
  # `eos`, or `length`: the memory was cut at the cap.
  finish_reason: str
  # The memory rule's outcome, one of its `outcomes`.
  outcome: str
  # Wall seconds of the batch of turns that this one was part of; 0 if not
  # measured.
  seconds: float = 0.0


def turn_record(
  tokenizer: Tokenizer,
  agent: AgentConfig,
  turns: Turns,
  n: int,
  *,
  chunk_index: int,
  chunk: Sequence[int],
  question_index: int = 0,
  seconds: float = 0.0,
) -> Turn:
  """One row of one slot's turns as text.

  Args:
    tokenizer: the model's tokenizer.
    agent: the agent whose rule names the outcome.
    turns: turns of one chunk slot, without axis C, on the host.
    n: the row.
    chunk_index: number of the chunk in its document.
    chunk: ids of the chunk.
    question_index: number of the question among those of one reading.
    seconds: wall time of the slot.
  """
  ids = turns.memory.ids_NxW[n, : turns.memory.length_N[n]].tolist()
  return Turn(
    question_index=question_index,
    chunk_index=chunk_index,
    chunk=tokenizer.decode(chunk),
    chunk_tokens=len(chunk),
    memory=tokenizer.decode(ids),
    memory_ids=ids,
    response_tokens=int(turns.response.length_N[n]),
    thought_tokens=int(turns.thought_CxN[n]),
    finish_reason=FINISH_REASONS[int(turns.response.finish_N[n])],
    outcome=agent.rule.outcomes[int(turns.outcome_CxN[n])],
    seconds=seconds,
  )


def without_control_id(response: Response) -> Tokens:
  """The tokens of the responses, without the control id that ended them."""
  ended_N = response.finish_N == EOS
  return Tokens(response.ids_NxR, response.length_N - ended_N)


def texts(tokenizer: Tokenizer, tokens: Tokens) -> list[str]:
  """The text of every row."""
  return [
    tokenizer.decode(row[:length])
    for row, length in zip(
      np.asarray(tokens.ids_NxW), np.asarray(tokens.length_N), strict=True
    )
  ]
