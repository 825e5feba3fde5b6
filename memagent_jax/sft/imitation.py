"""What supervised learning minimises: the imitation of given responses.

(params, turns of a micro-batch) -> loss and metrics, as sums with weights
"""

import dataclasses

import jax.numpy as jnp

from memagent_jax.models.configs import ModelConfig
from memagent_jax.sampling.log_probs import response_log_probs
from memagent_jax.structs import WeightedMean
from memagent_jax.train.objective import LossAndMetrics
from memagent_jax.train.sequences import Sequences


@dataclasses.dataclass(frozen=True)
class Imitation:
  """Negative log-likelihood of the responses: advantage 1, no ratio."""

  model: ModelConfig
  # R, the longest response in tokens.
  response_tokens: int

  def __call__(self, params: dict, sequences: Sequences) -> LossAndMetrics:
    """The loss, which is also the metric `nll`."""
    logprob_NxR, _ = response_log_probs(
      self.model,
      params,
      sequences.ids_NxS,
      sequences.prompt_length_N,
      sequences.response_length_N,
      response_tokens=self.response_tokens,
      temperature=0.0,
    )
    tokens = sequences.response_length_N.sum().astype(jnp.float32)
    loss = WeightedMean(-logprob_NxR.sum(), tokens)
    return loss, {'nll': loss}
