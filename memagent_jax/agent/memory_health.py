"""How memories fare over the turns of a batch, and what is wrong with them.

    Trajectories -> measure -> metrics `memory/...` -> alarms

A memory can grow to its cap and be cut there (saturation), stop changing or all
become the same text (collapse), or never take up the evidence, or lose it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from memagent_jax.agent import trajectories as trajectories_lib
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.structs import LENGTH, SKIPPED, Tokens

_QUANTILES = (10, 50, 90)
# Shares above which a batch is in trouble.
_SATURATED, _EMPTY, _CONSTANT = 0.5, 0.5, 0.9


def measure(
  tokenizer,
  answers: Sequence[Sequence[str]],
  trajectories: Trajectories,
) -> dict[str, float]:
  """Metrics of all memory turns of a batch.

  Args:
    tokenizer: of the model.
    answers: right answers of every document. An answer's text in a memory is
      taken for its evidence.
    trajectories: of these documents.

  Returns:
    `length_p10` and on (tokens), `saturated` (share of turns that were cut at
    the cap), `empty`, `unchanged` (share of turns that left the memory as it was),
    `constant` (share of trajectories whose memory never changed after its first
    turn, of those with two or more), `evidence_found` (share of trajectories),
    `evidence_kept` (of those, share that have it at the end),
    `evidence_enters_turn` and `evidence_leaves_turn` (means, from 0, over those
    where it does); all under `memory/`.
  """
  turns = trajectories.turns
  read_CxN = turns.response.finish_N != SKIPPED
  length_CxN = turns.memory.length_N
  lengths = length_CxN[read_CxN]
  unchanged_CxN = _unchanged(trajectories)
  metrics = length_quantiles(lengths) | {
    'saturated': float(np.mean(turns.response.finish_N[read_CxN] == LENGTH)),
    'empty': float(np.mean(lengths == 0)),
    'unchanged': float(np.mean(unchanged_CxN[read_CxN])),
  }
  later_CxN = read_CxN & (np.cumsum(read_CxN, axis=0) > 1)
  several_N = later_CxN.any(axis=0)
  if several_N.any():
    still_N = (unchanged_CxN | ~later_CxN).all(axis=0)
    metrics['constant'] = float(np.mean(still_N[several_N]))
  metrics |= _evidence(tokenizer, answers, trajectories, read_CxN)
  return {f'memory/{name}': value for name, value in metrics.items()}


def length_quantiles(lengths: np.ndarray) -> dict[str, float]:
  """`length_p10`, `length_p50` and `length_p90` of memories; none of none."""
  if not len(lengths):
    return {}
  return {f'length_p{q}': float(np.percentile(lengths, q)) for q in _QUANTILES}


def alarms(metrics: Mapping[str, float]) -> list[str]:
  """What is wrong with the memories that `measure` saw, a sentence each."""
  found = []

  def share(name):
    return metrics.get(f'memory/{name}', 0.0)

  if share('saturated') > _SATURATED:
    found.append(
      f'{share("saturated"):.0%} of the memories were cut at their cap: what '
      'does not fit is lost. Raise memory_tokens or penalise length.'
    )
  if share('empty') > _EMPTY:
    found.append(f'{share("empty"):.0%} of the memories are empty.')
  if share('constant') > _CONSTANT:
    found.append(
      f'{share("constant"):.0%} of the trajectories never change their memory '
      'after the first chunk.'
    )
  return found


def _unchanged(trajectories: Trajectories) -> np.ndarray:
  """bool [C, N]: the turn left the memory as it found it."""
  memory, first = trajectories.turns.memory, trajectories.first_memory
  ids = np.concatenate([first.ids_NxW[None], memory.ids_NxW])
  length = np.concatenate([first.length_N[None], memory.length_N])
  real = np.arange(ids.shape[-1]) < length[1:, :, None]
  same = (ids[1:] == ids[:-1]) | ~real
  return same.all(axis=-1) & (length[1:] == length[:-1])


def _evidence(tokenizer, answers, trajectories, read_CxN) -> dict[str, float]:
  memory = trajectories.turns.memory
  has_CxN = np.asarray(
    [
      [
        any(answer in text for answer in answers[n // trajectories.rollouts])
        for n, text in enumerate(
          trajectories_lib.texts(tokenizer, Tokens(ids, length))
        )
      ]
      for ids, length in zip(memory.ids_NxW, memory.length_N, strict=True)
    ]
  )
  has_CxN = has_CxN & read_CxN
  found_N = has_CxN.any(axis=0)
  result = {'evidence_found': float(found_N.mean())}
  if not found_N.any():
    return result
  enters_N = has_CxN.argmax(axis=0)
  turn_C = np.arange(len(has_CxN))[:, None]
  lost_CxN = read_CxN & ~has_CxN & (turn_C > enters_N)
  leaves_N = lost_CxN.any(axis=0) & found_N
  last_N = len(read_CxN) - 1 - read_CxN[::-1].argmax(axis=0)
  kept_N = has_CxN[last_N, np.arange(has_CxN.shape[1])]
  result['evidence_kept'] = float(kept_N[found_N].mean())
  result['evidence_enters_turn'] = float(enters_N[found_N].mean())
  if leaves_N.any():
    result['evidence_leaves_turn'] = float(
      lost_CxN.argmax(axis=0)[leaves_N].mean()
    )
  return result
