"""One optimizer step over sequences, in micro-batches whose split changes nothing.

MicroBatches -> sums of loss and gradient -> one division -> optimizer
  -> TrainState
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax.models import lora
from memagent_jax.models.configs import ModelConfig
from memagent_jax.sampling.log_probs import response_log_probs
from memagent_jax.structs import Params, WeightedMean
from memagent_jax.train import train_state
from memagent_jax.train.objective import Objective
from memagent_jax.train.sequences import MicroBatches
from memagent_jax.train.train_state import OptimizerConfig, TrainState


def make_update(shardings: TrainState | None = None) -> Callable:
  """`_update` under jit, with the same arguments and results.

  Args:
    shardings: shardings of the state, from `train_state.state_shardings`; None:
      those that it has.
  """
  return jax.jit(
    _update,
    static_argnums=(0, 1),
    donate_argnums=2,
    out_shardings=None if shardings is None else (shardings, None),
  )


def _update(
  objective: Objective,
  optimizer: OptimizerConfig,
  state: TrainState,
  batches: tuple[MicroBatches, ...],
) -> tuple[TrainState, dict[str, WeightedMean]]:
  """One step on the mean loss of all sequences.

  Args:
    objective: a hashable value, such as `Policy` or `Imitation`; static.
    optimizer: static.
    state: donated.
    batches: sequences by width, from `sequences.micro_batches`.

  Returns:
    the new state, and metrics with `loss` and `grad_norm` among them. Where no
    row has any weight, parameters and optimizer stay as they are.
  """
  gradients, loss, metrics = gradient_sums(
    objective, state.params, batches, state.frozen
  )
  weight = jnp.where(loss.weight > 0.0, loss.weight, 1.0)
  gradients = jax.tree.map(lambda g: g / weight, gradients)
  state, norm = train_state.apply_gradients(
    optimizer, state, gradients, anything=loss.weight > 0.0
  )
  metrics = metrics | {
    'loss': loss,
    'grad_norm': WeightedMean(norm, jnp.float32(1)),
  }
  return state, metrics


update = make_update()


def gradient_sums(
  objective: Objective,
  params: dict,
  batches: tuple[MicroBatches, ...],
  frozen: Params | None = None,
) -> tuple[dict, WeightedMean, dict[str, WeightedMean]]:
  """Gradient of the summed loss, loss and metrics, added over micro-batches.

  Args:
    objective: as in `_update`.
    params: params to differentiate with respect to.
    batches: as in `_update`.
    frozen: the model's other params, if there are any.
  """

  frozen = {} if frozen is None else frozen

  def one(total: Any, sequences: Any) -> Any:
    def loss_sum(params: Params) -> tuple[jax.Array, Any]:
      loss, metrics = objective(lora.join(params, frozen), sequences)
      return loss.sum, (loss, metrics)

    (_, found), gradients = jax.value_and_grad(loss_sum, has_aux=True)(params)
    return jax.tree.map(jnp.add, total, (gradients, *found))

  total = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(
      lambda: (
        params,
        *objective(lora.join(params, frozen), _at(batches[0].sequences, 0)),
      )
    ),
  )
  for batch in batches:
    total = lax.fori_loop(
      0,
      batch.count,
      lambda i, total, sequences=batch.sequences: one(total, _at(sequences, i)),
      total,
    )
  return total


@functools.partial(jax.jit, static_argnums=(0, 1))
def log_probs(
  model: ModelConfig, temperature: float, params: dict, batch: MicroBatches
) -> jax.Array:
  """float32 log-probs of the responses of PolicySequences, [micro-batch, row, R]."""

  def one(i: jax.Array, logprobs: jax.Array) -> jax.Array:
    turns = _at(batch.sequences.turns, i)
    logprob_NxR, _ = response_log_probs(
      model,
      params,
      turns.ids_NxS,
      turns.prompt_length_N,
      turns.response_length_N,
      response_tokens=logprobs.shape[-1],
      temperature=temperature,
    )
    return lax.dynamic_update_index_in_dim(logprobs, logprob_NxR, i, 0)

  zeros = jnp.zeros_like(batch.sequences.old_logprob_NxR)
  return lax.fori_loop(0, batch.count, one, zeros)


def _at(sequences: Any, i: jax.Array | int) -> Any:
  return jax.tree.map(
    lambda x: lax.dynamic_index_in_dim(x, i, 0, keepdims=False), sequences
  )
