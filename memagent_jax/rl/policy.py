"""What reinforcement learning minimises: the policy loss of turns.

(params, turns of a micro-batch) -> loss and metrics, as sums with weights
"""

import dataclasses

from memagent_jax.models.configs import ModelConfig
from memagent_jax.rl import grpo
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.sampling.log_probs import response_log_probs
from memagent_jax.train.objective import LossAndMetrics
from memagent_jax.train.sequences import PolicySequences, response_mask


@dataclasses.dataclass(frozen=True)
class Policy:
  """The policy loss of turns, configured by `grpo`."""

  model: ModelConfig
  grpo: GrpoConfig
  # Temperature at which the responses were sampled.
  temperature: float

  def __call__(
    self, params: dict, sequences: PolicySequences
  ) -> LossAndMetrics:
    """The loss, and the metrics of `grpo.policy_loss`."""
    turns = sequences.turns
    response_tokens = sequences.old_logprob_NxR.shape[1]
    logprob_NxR, entropy_NxR = response_log_probs(
      self.model,
      params,
      turns.ids_NxS,
      turns.prompt_length_N,
      turns.response_length_N,
      response_tokens=response_tokens,
      temperature=self.temperature,
      with_entropy=self.grpo.log_entropy,
    )
    return grpo.policy_loss(
      self.grpo,
      logprob_NxR=logprob_NxR,
      old_logprob_NxR=sequences.old_logprob_NxR,
      advantage_N=sequences.advantage_N,
      mask_NxR=response_mask(turns, response_tokens),
      entropy_NxR=entropy_NxR,
      reference_logprob_NxR=sequences.reference_logprob_NxR,
      sampler_logprob_NxR=sequences.sampler_logprob_NxR,
      row_weight_N=sequences.weight_N,
    )
