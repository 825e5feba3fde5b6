"""A model's own rollouts as experience: the learning half of the method.

documents -> rollout -> verify -> advantages -> rows by width -> Experience
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax.agent import memory_health, rollout
from memagent_jax.agent import trajectories as trajectories_lib
from memagent_jax.agent.prompts import Template
from memagent_jax.agent.rollout import AgentConfig, ReadingConfig
from memagent_jax.agent.trajectories import Trajectories, Verdicts
from memagent_jax.data.batches import Batch, BatchIterator
from memagent_jax.models import lora
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.rewards import OUTCOMES
from memagent_jax.rl import first_memories, grpo
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.policy import Policy
from memagent_jax.structs import LENGTH, SKIPPED
from memagent_jax.train import sequences, source
from memagent_jax.train import update as update_lib
from memagent_jax.train.sequences import MicroBatches, PolicyRows
from memagent_jax.train.source import Experience

OLD_LOG_PROBS = ('sampler', 'trainer')
# Metrics that are added up over the batches of a step, not averaged.
_COUNTS = ('rows/generated', 'sampled_tokens')


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How rollouts become rows."""

  # G: trajectories of one document, whose rewards are compared.
  rollouts: int = 16
  # At most so many trajectories' caches exist side by side; 0: all of them.
  rows_at_once: int = 0
  # Optimizer steps of one batch of documents; groups are never split.
  mini_batches: int = 1
  # Slots of one micro-batch: micro_tokens // width rows of that width.
  micro_tokens: int = 8192
  # Widths that rows are sorted into, as shares of the widest row.
  width_shares: tuple[float, ...] = (0.5, 1.0)
  # What the ratio is relative to: log-probs as the sampler recorded them, or
  # computed again by the trainer before the first update.
  old_log_probs: str = 'sampler'
  # False: only the answer turn gets an advantage (a control, not the method).
  learn_memory_turns: bool = True
  # (step, share), rising steps: from that step on, so many of the documents have
  # trajectories that begin with a memory of no use, see `first_memories`.
  foreign_shares: tuple[tuple[int, float], ...] = ()
  # Entropy of the policy at every token, as a metric.
  with_entropy: bool = True
  # (step, temperature), rising steps: from that step on it takes the place of the
  # reading's. A higher one brings errors back that have become rare.
  later_temperatures: tuple[tuple[int, float], ...] = ()

  def __post_init__(self):
    object.__setattr__(self, 'width_shares', tuple(self.width_shares))
    for name, first in (('foreign_shares', 0), ('later_temperatures', 1)):
      object.__setattr__(self, name, tuple(map(tuple, getattr(self, name))))
      _check_begins(name, getattr(self, name), first)
    if self.rollouts < 2:
      raise ValueError(
        f'rollouts is {self.rollouts}; a group needs 2 or more: one trajectory '
        'alone has no baseline.'
      )
    if self.old_log_probs not in OLD_LOG_PROBS:
      raise ValueError(
        f'old_log_probs is {self.old_log_probs!r}; choose from '
        f'{", ".join(OLD_LOG_PROBS)}.'
      )
    if self.mini_batches < 1 or self.micro_tokens < 1 or self.rows_at_once < 0:
      raise ValueError(
        f'mini_batches is {self.mini_batches}, micro_tokens is '
        f'{self.micro_tokens} and rows_at_once is {self.rows_at_once}; expected 1 '
        'or more, 0 of rows_at_once too.'
      )
    for _, share in self.foreign_shares:
      if not 0 <= share <= 1:
        raise ValueError(
          f'foreign_shares has a share of {share}; expected 0 to 1.'
        )
    shares = self.width_shares
    if (
      not shares
      or list(shares) != sorted(set(shares))
      or (shares[0] <= 0 or shares[-1] != 1)
    ):
      raise ValueError(
        f'width_shares are {shares}; expected rising ones above 0 up to 1.'
      )


def _check_begins(
  name: str, values: Sequence[tuple[int, Any]], first: int
) -> None:
  begins = [step for step, _ in values]
  if begins != sorted({step for step in begins if step >= first}):
    raise ValueError(
      f'{name} begin at steps {begins}; expected rising ones from {first} on.'
    )


def _at(values: Sequence[tuple[int, Any]], step: int) -> Any:
  """The value whose step has come last; the first one begins at 0."""
  return [value for begin, value in values if begin <= step][-1]


@dataclasses.dataclass(frozen=True)
class _Phase:
  """How steps of one temperature are sampled, and trained on."""

  agent: AgentConfig
  objective: Policy


class Rollouts:
  """The model's own trajectories, judged, with their advantages."""

  num_steps = None

  def __init__(
    self,
    model: Model,
    *,
    documents: Callable[[Tokenizer], Any],
    documents_per_step: int,
    template: Template,
    reading: ReadingConfig,
    config: RolloutConfig,
    objective: GrpoConfig,
    later_documents: Sequence[tuple[int, Callable[[Tokenizer], Any]]] = (),
  ):
    """Makes a source.

    Args:
      model: samples and learns; its params now are the KL reference.
      documents: makes the seqio task or mixture for a tokenizer.
      documents_per_step: B.
      template: wording of the turns.
      reading: caps and sampling; its seed is that of all samples.
      config: how rollouts become rows.
      objective: what is learned from them.
      later_documents: (step, documents), rising steps from 1 on: from that step on
        they take the place of `documents`, from their own start.

    Raises:
      ValueError: greedy or truncated sampling, caps beyond the window, an
        importance cap without the trainer's own log-probs, an entropy bonus
        without entropy, an overlong buffer beyond the answer's cap, later
        documents that do not rise, documents that the mini-batches do not divide,
        or trajectories that `rows_at_once` does not divide.
    """
    trajectories_lib.part_rows(
      documents_per_step * config.rollouts, config.rows_at_once
    )
    if grpo.needs_entropy(objective) and not config.with_entropy:
      raise ValueError(
        f'entropy_coefficient is {objective.entropy_coefficient} and with_entropy '
        'is False; set with_entropy to True.'
      )
    _check_begins('later_documents', later_documents, 1)
    temperatures = ((0, reading.temperature), *config.later_temperatures)
    for _, temperature in temperatures:
      if temperature <= 0 or reading.top_p < 1:
        raise ValueError(
          f'training rollouts have temperature {temperature} and top_p '
          f'{reading.top_p}; expected a temperature above 0 and top_p 1: else '
          'the recorded log-probs are not those of the policy that is trained.'
        )
    if documents_per_step % config.mini_batches:
      raise ValueError(
        f'{documents_per_step} documents do not divide into {config.mini_batches} '
        'mini-batches.'
      )
    if objective.importance_cap and config.old_log_probs != 'trainer':
      raise ValueError(
        f'importance_cap is {objective.importance_cap} and old_log_probs is '
        f'{config.old_log_probs!r}: the weights would all be 1. Set '
        "old_log_probs to 'trainer', or importance_cap to 0."
      )
    for name, cap in (
      ('overlong_buffer_tokens', 'answer_tokens'),
      ('overlong_memory_buffer_tokens', 'memory_tokens'),
    ):
      if getattr(objective, name) > getattr(reading, cap):
        raise ValueError(
          f'{name} is {getattr(objective, name)}; expected at most {cap}, '
          f'{getattr(reading, cap)}.'
        )
    self._phases = [
      (
        step,
        _Phase(
          rollout.make_agent(
            model,
            template,
            dataclasses.replace(reading, temperature=temperature),
          ),
          Policy(model.config, objective, temperature, config.with_entropy),
        ),
      )
      for step, temperature in temperatures
    ]
    self._tokenizer, self._documents = model.tokenizer, documents_per_step
    batches = trajectories_lib.batch_config(
      reading, documents_per_step, reading.seed
    )
    self._batches = [
      (step, BatchIterator(make(model.tokenizer), model.tokenizer, batches))
      for step, make in ((0, documents), *later_documents)
    ]
    self._config, self._grpo, self._seed = config, objective, reading.seed
    self._reference: Callable[[dict], dict] | None = None
    if grpo.needs_reference(objective):
      if model.config.lora is not None:
        self._reference = lora.unadapted
      else:
        # A copy: the trainer donates its own params.
        copy = jax.tree.map(jnp.copy, model.params)
        self._reference = lambda params: copy

  @property
  def agent(self) -> AgentConfig:
    """Static configuration of the first step's rollouts."""
    return _at(self._phases, 0).agent

  @property
  def batch_shape(self) -> tuple[int, int]:
    """Documents of a batch, and rollouts of each."""
    return self._documents, self._config.rollouts

  def state(self) -> dict[str, Any]:
    """The data iterators', of all documents in their order."""
    return {'batches': [batches.state() for _, batches in self._batches]}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes on with the documents after those of `state`."""
    for (_, batches), own in zip(self._batches, state['batches'], strict=True):
      batches.restore(own)

  def sample(self, params: dict, step: int = 0) -> tuple[Batch, Trajectories]:
    """The next documents, and trajectories as those of a step are sampled."""
    batch = next(_at(self._batches, step))
    agent = _at(self._phases, step).agent
    first = first_memories.put_in(
      self._tokenizer,
      rollout.first_memory(agent, len(batch.ids)),
      batch,
      _at(((0, 0.0), *self._config.foreign_shares), step),
      self._seed,
    )
    found = trajectories_lib.sample(
      agent,
      params,
      batch,
      rollouts=self._config.rollouts,
      seed=self._seed,
      rows_at_once=self._config.rows_at_once,
      first_memory=first,
    )
    return batch, found

  def next(self, step: int, params: dict) -> Experience:
    """Samples, judges and weighs a batch; refills it within its budget."""
    phase = _at(self._phases, step)
    taken: list[PolicyRows] = []
    measured: list[dict[str, float]] = []
    seconds = {'rollout': 0.0, 'verify': 0.0}
    for _ in range(1 + self._grpo.max_refills):
      # --- rollout ----------------------------------------------------------
      begun = time.perf_counter()
      batch, found = self.sample(params, step)
      sampled = time.perf_counter()
      seconds['rollout'] += sampled - begun

      # --- verify -----------------------------------------------------------
      verdicts = trajectories_lib.judge(self._tokenizer, batch, found)
      dull_B = self._dull(found, verdicts)
      measured.append(self._measure(batch, found, verdicts, dull_B))
      seconds['verify'] += time.perf_counter() - sampled

      # --- advantages -------------------------------------------------------
      groups, spare = self._groups(found, verdicts, dull_B)
      taken += groups
      if len(taken) >= self._documents:
        break
    surplus = len(taken) - self._documents
    taken = taken[: self._documents]
    begun = time.perf_counter()
    mini_batches, distinct, tokens = self._mini_batches(
      phase, taken, spare, params
    )
    seconds['rows'] = time.perf_counter() - begun
    metrics = {
      name: float(np.mean([m[name] for m in measured if name in m]))
      for name in dict.fromkeys(name for m in measured for name in m)
    }
    metrics |= {name: sum(m[name] for m in measured) for name in _COUNTS}
    metrics |= {
      'temperature': phase.objective.temperature,
      'groups/trained': len(taken),
      'groups/surplus': max(surplus, 0),
      'groups/missing': max(-surplus, 0),
      'groups/refills': len(measured) - 1,
      'rows/trained': sum(int((rows.weight_N > 0).sum()) for rows in taken),
      'rows/distinct': distinct,
    }
    return Experience(
      objective=phase.objective,
      mini_batches=mini_batches,
      metrics=metrics,
      seconds=seconds,
      trained_tokens=tokens,
      warnings=memory_health.alarms(metrics),
    )

  def _dull(self, found: Trajectories, verdicts: Verdicts) -> np.ndarray:
    """bool [B]: groups that teach nothing."""
    dull_B = np.asarray(grpo.degenerate_groups(self.scores(found, verdicts)))
    if self._grpo.dynamic_sampling:
      # Groups that are apart by the length of their responses alone go as well.
      dull_B = dull_B | np.asarray(grpo.degenerate_groups(verdicts.reward_BxG))
    return dull_B

  def _measure(
    self,
    batch: Batch,
    found: Trajectories,
    verdicts: Verdicts,
    dull_B: np.ndarray,
  ) -> dict[str, float]:
    reward_BxG = verdicts.reward_BxG
    memory_finish = found.turns.response.finish_N
    read = memory_finish != SKIPPED
    rows = int(read.sum()) + len(found.answer.finish_N)
    return {
      'reward/mean': float(reward_BxG.mean()),
      'reward/metric': float(verdicts.metric_BxG.mean()),
      'groups/degenerate': float(dull_B.mean()),
      'groups/pass_rate_p10': float(np.percentile(reward_BxG.mean(1), 10)),
      'groups/pass_rate_p90': float(np.percentile(reward_BxG.mean(1), 90)),
      'truncated/memory': float(np.mean(memory_finish[read] == LENGTH)),
      'truncated/answer': float(np.mean(found.answer.finish_N == LENGTH)),
      'rows/generated': rows,
      'sampled_tokens': float(
        found.turns.response.length_N.sum() + found.answer.length_N.sum()
      ),
      **{
        f'outcome/{name}': verdicts.outcomes.get(name, 0) / reward_BxG.size
        for name in OUTCOMES
      },
      **memory_health.measure(self._tokenizer, batch.answers, found),
    }

  def scores(self, found: Trajectories, verdicts: Verdicts) -> np.ndarray:
    """float32 [B, G]: the rewards, less what overlong responses lose."""
    score_BxG = verdicts.reward_BxG
    for length_N, cap_tokens, buffer_tokens in (
      (
        found.answer.length_N,
        self.agent.answer.max_tokens,
        self._grpo.overlong_buffer_tokens,
      ),
      (
        # Skipped turns have no tokens.
        found.turns.response.length_N.max(axis=0),
        self.agent.memory.max_tokens,
        self._grpo.overlong_memory_buffer_tokens,
      ),
    ):
      if buffer_tokens:
        penalty_N = grpo.soft_overlong_penalty(
          length_N, cap_tokens, buffer_tokens
        )
        score_BxG = score_BxG + np.asarray(penalty_N).reshape(score_BxG.shape)
    return score_BxG

  def rows(self, found: Trajectories, verdicts: Verdicts) -> PolicyRows:
    """All turns with advantage and weight: T * B * G rows, turn by turn."""
    finish_TxN = np.concatenate(
      [found.turns.response.finish_N, found.answer.finish_N[None]]
    )
    kept_N = grpo.kept_trajectories(self._grpo, finish_TxN[:-1], finish_TxN[-1])
    advantage_TxN, weight_TxN = grpo.turn_advantages(
      grpo.advantages(self.scores(found, verdicts), self._grpo),
      finish_TxN,
      kept_N,
    )
    weight_TxN = np.array(weight_TxN)
    if not self._config.learn_memory_turns:
      weight_TxN[:-1] = 0.0
    turns, logprob_NxR = sequences.trajectory_rows(
      self.agent,
      found.documents,
      found.first_memory,
      found.turns,
      found.answer,
    )
    return PolicyRows(
      turns=jax.device_get(turns),
      sampler_logprob_NxR=np.asarray(logprob_NxR),
      old_logprob_NxR=np.asarray(logprob_NxR),
      reference_logprob_NxR=None
      if self._reference is None
      else np.zeros_like(logprob_NxR),
      advantage_N=np.asarray(advantage_TxN).reshape(-1),
      weight_N=weight_TxN.reshape(-1),
    )

  def _groups(
    self, found: Trajectories, verdicts: Verdicts, dull_B: np.ndarray
  ) -> tuple[list[PolicyRows], PolicyRows]:
    """Rows of every group that may teach; and rows of no weight."""
    rows = self.rows(found, verdicts)
    documents, g = verdicts.reward_BxG.shape
    by_group = jax.tree.map(
      lambda x: x.reshape(-1, documents, g, *x.shape[1:]), rows
    )
    groups = [
      jax.tree.map(lambda x, b=b: x[:, b].reshape(-1, *x.shape[3:]), by_group)
      for b in range(documents)
    ]
    spare = groups[0].replace(weight_N=np.zeros_like(groups[0].weight_N))
    if self._grpo.dynamic_sampling:
      groups = [g for g, dull in zip(groups, dull_B, strict=True) if not dull]
    return groups, spare

  def _mini_batches(
    self,
    phase: _Phase,
    groups: list[PolicyRows],
    spare: PolicyRows,
    params: dict,
  ) -> tuple[list[tuple[MicroBatches, ...]], int, int]:
    """Groups dealt out to the mini-batches, which are as many as configured.

    Returns:
      the mini-batches; their rows once equal ones are one, and tokens of those
      that have a weight.
    """
    count = self._config.mini_batches
    distinct, tokens, result = 0, 0, []
    for m in range(count):
      # Where groups are missing a mini-batch has none, and changes nothing.
      mine = groups[m::count] or [spare]
      rows = sequences.merge_equal(
        jax.tree.map(lambda *x: np.concatenate(x), *mine)
      )
      distinct += len(rows.weight_N)
      tokens += source.trained_tokens(rows.turns, rows.weight_N > 0)
      batches = sequences.micro_batches(
        rows,
        widths=self._widths(rows),
        micro_tokens=self._config.micro_tokens,
        capacity=self._capacity(mine),
      )
      result.append(
        tuple(self._with_log_probs(phase, b, params) for b in batches)
      )
    return result, distinct, tokens

  def _widths(self, rows: PolicyRows) -> list[int]:
    full = rows.turns.ids_NxS.shape[1]
    shares = self._config.width_shares
    return sorted({math.ceil(share * full) for share in shares})

  def _capacity(self, groups: list[PolicyRows]) -> int:
    """Rows that a mini-batch of as many turns may have, full or not."""
    most = max(len(rows.weight_N) for rows in groups)
    return most * (self._documents // self._config.mini_batches)

  def _with_log_probs(
    self, phase: _Phase, batch: MicroBatches, params: dict
  ) -> MicroBatches:
    rows = batch.rows
    model, temperature = phase.agent.model, phase.objective.temperature
    if self._reference is not None:
      rows = rows.replace(
        reference_logprob_NxR=update_lib.log_probs(
          model, temperature, self._reference(params), batch
        )
      )
    if self._config.old_log_probs == 'trainer':
      rows = rows.replace(
        old_logprob_NxR=update_lib.log_probs(model, temperature, params, batch)
      )
    return batch.replace(rows=rows)
