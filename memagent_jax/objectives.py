"""What one update minimises: imitation of given responses, or the policy loss.

    (params, rows of a micro-batch) -> loss and metrics, as sums with weights

Objectives are frozen and hashable, so that they are static arguments of `update`.
"""

import dataclasses

import jax.numpy as jnp

from memagent_jax import grpo
from memagent_jax.grpo import GrpoConfig
from memagent_jax.log_probs import response_log_probs
from memagent_jax.models.configs import ModelConfig
from memagent_jax.structs import WeightedMean
from memagent_jax.turn_rows import PolicyRows, TurnRows, response_mask

LossAndMetrics = tuple[WeightedMean, dict[str, WeightedMean]]


@dataclasses.dataclass(frozen=True)
class Imitation:
  """Negative log-likelihood of the responses: advantage 1, no ratio."""

  model: ModelConfig
  # R, the widest response.
  response_tokens: int

  def __call__(self, params: dict, rows: TurnRows) -> LossAndMetrics:
    """The loss, and the same as `nll`."""
    logprob_NxR, _ = response_log_probs(
      self.model,
      params,
      rows.ids_NxS,
      rows.prompt_length_N,
      rows.response_length_N,
      response_tokens=self.response_tokens,
      temperature=0.0,
    )
    tokens = rows.response_length_N.sum().astype(jnp.float32)
    loss = WeightedMean(-logprob_NxR.sum(), tokens)
    return loss, {'nll': loss}


@dataclasses.dataclass(frozen=True)
class Policy:
  """The policy loss of turns, as `grpo` says."""

  model: ModelConfig
  grpo: GrpoConfig
  # Temperature that the responses were sampled at.
  temperature: float
  # Entropies are a second use of the logits; the loss may need none.
  with_entropy: bool = True

  def __call__(self, params: dict, rows: PolicyRows) -> LossAndMetrics:
    """The loss, and the metrics of `grpo.policy_loss`."""
    turns = rows.turns
    response_tokens = rows.old_logprob_NxR.shape[1]
    logprob_NxR, entropy_NxR = response_log_probs(
      self.model,
      params,
      turns.ids_NxS,
      turns.prompt_length_N,
      turns.response_length_N,
      response_tokens=response_tokens,
      temperature=self.temperature,
      with_entropy=self.with_entropy,
    )
    return grpo.policy_loss(
      self.grpo,
      logprob_NxR=logprob_NxR,
      old_logprob_NxR=rows.old_logprob_NxR,
      advantage_N=rows.advantage_N,
      mask_NxR=response_mask(turns, response_tokens),
      entropy_NxR=entropy_NxR,
      reference_logprob_NxR=rows.reference_logprob_NxR,
      sampler_logprob_NxR=rows.sampler_logprob_NxR,
      row_weight_N=rows.weight_N,
    )
