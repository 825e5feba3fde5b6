"""A model's own rollouts as experience: the learning half of the method.

documents -> engine -> reward -> advantages -> sequences by width -> Experience
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import rewards
from memagent_jax.agent import memory_health, memory_rules
from memagent_jax.agent import trajectories as trajectories_lib
from memagent_jax.agent.config import AgentConfig, ReadingConfig, make_agent
from memagent_jax.agent.engine import Engine, Lockstep
from memagent_jax.agent.trajectories import Trajectories, Verdicts
from memagent_jax.data.batch import Batch
from memagent_jax.data.batches import BatchIterator
from memagent_jax.models import lora
from memagent_jax.models.model import Model
from memagent_jax.rewards import Reward
from memagent_jax.rl import (
  distractor_memories,
  grpo,
  scoring,
)
from memagent_jax.rl import (
  stages as stages_lib,
)
from memagent_jax.rl import (
  turns as turns_lib,
)
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.policy import Policy
from memagent_jax.rl.stages import Documents, Stage
from memagent_jax.train import sequences as sequences_lib
from memagent_jax.train import source
from memagent_jax.train import update as update_lib
from memagent_jax.train.sequences import MicroBatches, PolicySequences
from memagent_jax.train.source import Experience

# Metrics that are summed over the batches of a step, not averaged.
_COUNTS = ('sequences/generated', 'sampled_tokens')


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How many rollouts a step has, and how they become training sequences."""

  # B: documents per step.
  documents_per_step: int = 16
  # G: trajectories per document, whose rewards are compared.
  rollouts: int = 16
  # Optimizer steps per batch of documents; groups are never split.
  mini_batches: int = 1
  # Token slots of a micro-batch: micro_tokens // width sequences of that width.
  micro_tokens: int = 8192
  # Widths that sequences are sorted into, as shares of the widest.
  width_shares: tuple[float, ...] = (0.5, 1.0)
  # False: only the answer turn gets an advantage (a control, not the method).
  learn_memory_turns: bool = True

  def __post_init__(self) -> None:
    object.__setattr__(self, 'width_shares', tuple(self.width_shares))
    if self.rollouts < 2:
      raise ValueError(
        f'rollouts is {self.rollouts}; a group needs 2 or more: one trajectory '
        'alone has no baseline.'
      )
    for name in ('documents_per_step', 'mini_batches', 'micro_tokens'):
      if getattr(self, name) < 1:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected 1 or more.'
        )
    if self.documents_per_step % self.mini_batches:
      raise ValueError(
        f'{self.documents_per_step} documents do not divide into '
        f'{self.mini_batches} mini-batches.'
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


@dataclasses.dataclass(frozen=True)
class _Phase:
  """How the steps of one stage are sampled and trained on."""

  agent: AgentConfig
  objective: Policy
  batches: BatchIterator
  distractor_memory_share: float


class Rollouts:
  """The model's own trajectories, judged, with their advantages.

  Attributes:
    config: documents and rollouts of a step.
    objective: settings of the policy loss.
  """

  num_steps = None

  def __init__(
    self,
    model: Model,
    *,
    documents: Documents,
    reading: ReadingConfig,
    config: RolloutConfig,
    objective: GrpoConfig,
    stages: Sequence[Stage] = (Stage(),),
    engine: Engine | None = None,
    reward: Reward = rewards.data_reward,
  ):
    """Makes a source.

    Args:
      model: model that samples and learns; its initial params are the KL
        reference.
      documents: function that makes the seqio task or mixture, see
        `stages.Documents`.
      reading: caps, sampling, wording and memory rule; holds the seed of all
        sampling.
      config: number of rollouts, and how they become sequences.
      objective: settings of the policy loss.
      stages: parts of the run, one after another.
      engine: engine that samples; None: `Lockstep()`.
      reward: function that says what a trajectory is worth.

    Raises:
      ValueError: greedy or truncated sampling, caps beyond the window, an
        overlong buffer beyond its cap, or stages that do not follow one another.
    """
    stages_lib.check(stages)
    grpo.check_caps(
      objective,
      memory_tokens=reading.memory_tokens,
      answer_tokens=reading.answer_tokens,
    )
    self.config, self.objective = config, objective
    self._tokenizer, self._seed = model.tokenizer, reading.seed
    self._engine = Lockstep() if engine is None else engine
    self._reward, self._stages = reward, tuple(stages)

    sizes = trajectories_lib.batch_config(
      reading, config.documents_per_step, reading.seed
    )

    def batches(make: Documents) -> BatchIterator:
      tokenizer = model.tokenizer
      return BatchIterator(make(tokenizer, sizes), tokenizer, sizes)

    shared = batches(documents)
    self._phases = [
      _phase(
        model,
        reading,
        objective,
        stage,
        shared if stage.documents is None else batches(stage.documents),
      )
      for stage in stages
    ]
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
    return self._phases[0].agent

  def state(self) -> dict[str, Any]:
    """The states of the data iterators, stage by stage."""
    return {'batches': [phase.batches.state() for phase in self._phases]}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Continues with the documents that follow those of `state`."""
    for phase, saved in zip(self._phases, state['batches'], strict=True):
      phase.batches.restore(saved)

  def sample(self, params: dict, step: int = 0) -> tuple[Batch, Trajectories]:
    """The next documents, and trajectories sampled as in a training step."""
    phase = self._phase(step)
    batch = next(phase.batches)
    first = distractor_memories.replace_some(
      self._tokenizer,
      memory_rules.empty_memory(phase.agent, len(batch.ids)),
      batch,
      phase.distractor_memory_share,
      self._seed,
    )
    trajectories = self._engine.sample(
      phase.agent,
      params,
      batch,
      rollouts=self.config.rollouts,
      seed=self._seed,
      first_memory=first,
    )
    return batch, trajectories

  def judge(self, batch: Batch, trajectories: Trajectories) -> Verdicts:
    """The verdicts of the run's reward and of the documents' metrics."""
    return trajectories_lib.judge(
      self._tokenizer, batch, trajectories, self._reward
    )

  def scores(
    self, trajectories: Trajectories, verdicts: Verdicts
  ) -> np.ndarray:
    """float32 [B, G]: the rewards minus penalties for overlong responses."""
    return scoring.scores(self.agent, self.objective, trajectories, verdicts)

  def sequences(
    self, trajectories: Trajectories, score_BxG: np.ndarray
  ) -> PolicySequences:
    """All turns with advantage and weight, turn by turn."""
    return turns_lib.policy_sequences(
      self.agent,
      self.objective,
      trajectories,
      score_BxG,
      learn_memory_turns=self.config.learn_memory_turns,
    )

  def next(self, step: int, params: dict) -> Experience:
    """Samples, judges and weights a batch; refills it within its budget."""
    phase, documents = self._phase(step), self.config.documents_per_step
    groups: list[PolicySequences] = []
    measured: list[dict[str, float]] = []
    seconds = {'rollout': 0.0, 'verify': 0.0}
    for _ in range(1 + self.objective.max_refills):
      # --- rollout ----------------------------------------------------------
      begun = time.perf_counter()
      batch, trajectories = self.sample(params, step)
      sampled = time.perf_counter()
      seconds['rollout'] += sampled - begun

      # --- verify -----------------------------------------------------------
      verdicts = self.judge(batch, trajectories)
      score_BxG = self.scores(trajectories, verdicts)
      degenerate_B = scoring.degenerate_groups(
        self.objective, score_BxG, verdicts.reward_BxG
      )
      measured.append(
        scoring.measure(
          self._tokenizer,
          phase.agent,
          batch,
          trajectories,
          verdicts,
          degenerate_B,
        )
      )
      seconds['verify'] += time.perf_counter() - sampled

      # --- advantages -------------------------------------------------------
      by_group = turns_lib.by_group(
        self.sequences(trajectories, score_BxG),
        documents,
        self.config.rollouts,
      )
      # For a mini-batch that is left without groups: it changes nothing.
      weightless = by_group[0].replace(
        weight_N=np.zeros_like(by_group[0].weight_N)
      )
      if self.objective.dynamic_sampling:
        by_group = [
          group
          for group, degenerate in zip(by_group, degenerate_B, strict=True)
          if not degenerate
        ]
      groups += by_group
      if len(groups) >= documents:
        break
    surplus = len(groups) - documents
    groups = groups[:documents]

    # --- sequences ----------------------------------------------------------
    begun = time.perf_counter()
    mini_batches, distinct, tokens = self._mini_batches(
      phase, groups, weightless, params
    )
    seconds['sequences'] = time.perf_counter() - begun
    metrics = {
      name: float(np.mean([m[name] for m in measured if name in m]))
      for name in dict.fromkeys(name for m in measured for name in m)
    }
    metrics |= {name: sum(m[name] for m in measured) for name in _COUNTS}
    metrics |= {
      'temperature': phase.objective.temperature,
      'groups/trained': len(groups),
      'groups/surplus': max(surplus, 0),
      'groups/missing': max(-surplus, 0),
      'groups/refills': len(measured) - 1,
      'sequences/trained': sum(int((g.weight_N > 0).sum()) for g in groups),
      'sequences/distinct': distinct,
    }
    return Experience(
      objective=phase.objective,
      mini_batches=mini_batches,
      metrics=metrics,
      seconds=seconds,
      trained_tokens=tokens,
      warnings=memory_health.alarms(metrics),
    )

  def _phase(self, step: int) -> _Phase:
    return self._phases[stages_lib.stage_at(self._stages, step)]

  def _mini_batches(
    self,
    phase: _Phase,
    groups: list[PolicySequences],
    weightless: PolicySequences,
    params: dict,
  ) -> tuple[list[tuple[MicroBatches, ...]], int, int]:
    """Deals groups out to the configured number of mini-batches.

    Returns:
      the mini-batches, the number of their sequences with equal ones merged,
      and the number of tokens of those with a weight.
    """
    c = self.config
    distinct, tokens, result = 0, 0, []
    for m in range(c.mini_batches):
      dealt = groups[m :: c.mini_batches] or [weightless]
      merged = turns_lib.merge_equal(
        jax.tree.map(lambda *x: np.concatenate(x), *dealt)
      )
      distinct += len(merged.weight_N)
      tokens += source.trained_tokens(merged.turns, merged.weight_N > 0)
      # Capacity for a full mini-batch, even where groups are missing.
      largest = max(len(group.weight_N) for group in dealt)
      batches = sequences_lib.micro_batches(
        merged,
        widths=turns_lib.widths(merged.turns.ids_NxS.shape[1], c.width_shares),
        micro_tokens=c.micro_tokens,
        capacity=largest * (c.documents_per_step // c.mini_batches),
      )
      result.append(
        tuple(self._with_log_probs(phase, batch, params) for batch in batches)
      )
    return result, distinct, tokens

  def _with_log_probs(
    self, phase: _Phase, batch: MicroBatches, params: dict
  ) -> MicroBatches:
    """Adds the log-probs that the objective needs and the sampler lacks."""
    sequences = batch.sequences
    model, temperature = phase.agent.model, phase.objective.temperature
    if self._reference is not None:
      sequences = sequences.replace(
        reference_logprob_NxR=update_lib.log_probs(
          model, temperature, self._reference(params), batch
        )
      )
    if self.objective.old_log_probs == 'trainer':
      sequences = sequences.replace(
        old_logprob_NxR=update_lib.log_probs(model, temperature, params, batch)
      )
    return batch.replace(sequences=sequences)


def _phase(
  model: Model,
  reading: ReadingConfig,
  objective: GrpoConfig,
  stage: Stage,
  batches: BatchIterator,
) -> _Phase:
  """The phase of a stage, for this model.

  Raises:
    ValueError: sampling whose recorded log-probs would not be the policy's.
  """
  if stage.temperature is not None:
    reading = dataclasses.replace(reading, temperature=stage.temperature)
  if reading.temperature <= 0 or reading.top_p < 1:
    raise ValueError(
      f'training rollouts have temperature {reading.temperature} and top_p '
      f'{reading.top_p}; expected a temperature above 0 and top_p 1: else '
      'the recorded log-probs are not those of the policy that is trained.'
    )
  return _Phase(
    make_agent(model, reading),
    Policy(model.config, objective, reading.temperature),
    batches,
    stage.distractor_memory_share,
  )
