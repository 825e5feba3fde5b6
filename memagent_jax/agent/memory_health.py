"""How memories fare, and what is wrong with them: computed here for every method.

    turns of a trajectory -> MemoryHealth -> summary, for one record
    trajectories of a batch -> measure -> metrics `memory/...` -> alarms

A memory can grow to its cap and be cut there (saturation), stop changing or all
become the same text (collapse), or never take up the evidence, or lose it. A
memory that contains the text of an answer counts as having the evidence.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses

import jax
import numpy as np

from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import FINISH_REASONS, LENGTH, SKIPPED

_QUANTILES = (10, 50, 90)
# Shares above which an alarm is raised.
_SATURATED, _EMPTY, _CONSTANT = 0.5, 0.5, 0.9


@dataclasses.dataclass
class MemoryHealth:
  """How the memory of one trajectory fared; JSON-able, whatever its length."""

  # Number of turns by finish reason, and by the memory rule's outcome.
  turns: dict[str, int] = dataclasses.field(
    default_factory=lambda: dict.fromkeys(FINISH_REASONS[:2], 0)
  )
  outcomes: dict[str, int] = dataclasses.field(default_factory=dict)
  # Number of turns by the length of the memory they left, in tokens.
  lengths: dict[str, int] = dataclasses.field(default_factory=dict)
  # Number of turns that left the memory unchanged.
  unchanged: int = 0
  # Whether no turn after the first changed it.
  constant: bool = True
  # Turns, from 0, at which the evidence first entered the memory and left it.
  enters: int | None = None
  leaves: int | None = None
  # Whether the evidence is there now.
  kept: bool = False

  def add(
    self,
    *,
    length: int,
    finish: str,
    outcome: str,
    changed: bool,
    has_evidence: bool,
  ) -> None:
    """Takes one turn into account.

    Args:
      length: length of the memory that it left, in tokens.
      finish: a finish reason that is not `skipped`.
      outcome: the memory rule's outcome.
      changed: whether that memory differs from the one before.
      has_evidence: whether that memory contains an answer's text.
    """
    number = self.turn_count
    self.turns[finish] += 1
    self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
    self.lengths[str(length)] = self.lengths.get(str(length), 0) + 1
    self.unchanged += not changed
    self.constant &= number == 0 or not changed
    if has_evidence and self.enters is None:
      self.enters = number
    if self.kept and not has_evidence and self.leaves is None:
      self.leaves = number
    self.kept = has_evidence

  @property
  def turn_count(self) -> int:
    """The number of turns so far."""
    return sum(self.turns.values())

  def summary(
    self, outcomes: Sequence[str]
  ) -> dict[str, float | int | bool | None]:
    """Shares of turns, lengths in tokens and the evidence's turns, as a record.

    Args:
      outcomes: the memory rule's outcomes; the first one's share is left out.
    """
    turns = max(self.turn_count, 1)
    return {
      'saturated': self.turns[FINISH_REASONS[LENGTH]] / turns,
      'empty': self.lengths.get('0', 0) / turns,
      'unchanged': self.unchanged / turns,
      **{name: self.outcomes.get(name, 0) / turns for name in outcomes[1:]},
      'constant': self.constant if turns > 1 else None,
      **_length_quantiles([self]),
      'evidence_enters_turn': self.enters,
      'evidence_leaves_turn': self.leaves,
      'evidence_kept': self.kept,
    }


def measure(
  tokenizer: Tokenizer,
  agent: AgentConfig,
  answers: Sequence[Sequence[str]],
  trajectories: Trajectories,
) -> dict[str, float]:
  """Metrics of all memory turns of a batch.

  Args:
    tokenizer: the model's tokenizer.
    agent: the agent whose rule names the outcomes.
    answers: right answers of every document.
    trajectories: trajectories of these documents.

  Returns:
    `length_p10`, `length_p50` and `length_p90` (tokens), `saturated` (share of
    turns cut at the cap), `empty` and `unchanged` (shares of turns that left
    the memory so), the share of turns of every outcome but the rule's first,
    `constant` (of the trajectories with two turns or more, share whose memory
    never changed after the first), `evidence_found` (share of trajectories),
    `evidence_kept` (of those, share that have it at the end),
    `evidence_enters_turn` and `evidence_leaves_turn` (means, from 0, over those
    where it does); all under `memory/`.
  """
  healths = [
    of_trajectory(
      tokenizer, agent, answers[n // trajectories.rollouts], trajectories, n
    )
    for n in range(trajectories.turns.response.finish_N.shape[1])
  ]
  turns = max(sum(h.turn_count for h in healths), 1)
  metrics = _length_quantiles(healths) | {
    'saturated': _total(h.turns[FINISH_REASONS[LENGTH]] for h in healths)
    / turns,
    'empty': _total(h.lengths.get('0', 0) for h in healths) / turns,
    'unchanged': _total(h.unchanged for h in healths) / turns,
  }
  for outcome in agent.rule.outcomes[1:]:
    metrics[outcome] = (
      _total(h.outcomes.get(outcome, 0) for h in healths) / turns
    )
  several = [h.constant for h in healths if h.turn_count > 1]
  if several:
    metrics['constant'] = float(np.mean(several))
  found = [h for h in healths if h.enters is not None]
  metrics['evidence_found'] = len(found) / len(healths)
  if found:
    metrics['evidence_kept'] = float(np.mean([h.kept for h in found]))
    metrics['evidence_enters_turn'] = float(np.mean([h.enters for h in found]))
  lost = [h.leaves for h in found if h.leaves is not None]
  if lost:
    metrics['evidence_leaves_turn'] = float(np.mean(lost))
  return {f'memory/{name}': value for name, value in metrics.items()}


def of_trajectory(
  tokenizer: Tokenizer,
  agent: AgentConfig,
  answers: Sequence[str],
  trajectories: Trajectories,
  n: int,
) -> MemoryHealth:
  """The memory health of trajectory n, given its right answers."""
  first = jax.tree.map(lambda x: x[n], trajectories.first.memory)
  turns = jax.tree.map(lambda x: x[:, n], trajectories.turns)
  memory = turns.memory
  health = MemoryHealth()
  before = first.ids_NxW[: first.length_N].tolist()
  has_evidence = _has(tokenizer, before, answers)
  for c, finish in enumerate(turns.response.finish_N):
    if finish == SKIPPED:
      continue
    ids = memory.ids_NxW[c, : memory.length_N[c]].tolist()
    changed = ids != before
    if changed:
      has_evidence = _has(tokenizer, ids, answers)
    health.add(
      length=len(ids),
      finish=FINISH_REASONS[int(finish)],
      outcome=agent.rule.outcomes[int(turns.outcome_CxN[c])],
      changed=changed,
      has_evidence=has_evidence,
    )
    before = ids
  return health


def _has(
  tokenizer: Tokenizer, ids: Sequence[int], answers: Sequence[str]
) -> bool:
  memory = tokenizer.decode(ids)
  return any(answer in memory for answer in answers)


def alarms(metrics: Mapping[str, float]) -> list[str]:
  """A sentence for each thing wrong with the memories that `measure` saw."""
  sentences = []

  def share(name: str) -> float:
    return metrics.get(f'memory/{name}', 0.0)

  if share('saturated') > _SATURATED:
    sentences.append(
      f'{share("saturated"):.0%} of the memories were cut at their cap: what '
      'does not fit is lost. Raise memory_tokens or penalise length.'
    )
  if share('empty') > _EMPTY:
    sentences.append(f'{share("empty"):.0%} of the memories are empty.')
  if share('constant') > _CONSTANT:
    sentences.append(
      f'{share("constant"):.0%} of the trajectories never change their memory '
      'after the first chunk.'
    )
  return sentences


def _length_quantiles(healths: Sequence[MemoryHealth]) -> dict[str, float]:
  """`length_p10`, `length_p50` and `length_p90` of all memories; tokens."""
  lengths = np.concatenate(
    [
      np.repeat([int(length) for length in h.lengths], list(h.lengths.values()))
      for h in healths
      if h.lengths
    ]
    or [np.zeros(0)]
  )
  if not len(lengths):
    return {}
  return {f'length_p{q}': float(np.percentile(lengths, q)) for q in _QUANTILES}


def _total(counts: Iterable[float]) -> float:
  return float(sum(counts))
