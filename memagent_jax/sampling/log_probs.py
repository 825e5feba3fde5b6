"""Log-probs of given responses: one forward pass, the head on responses only.

What `decode.generate` recorded token by token is computed here at once, with
gradients, between rollout and `grpo.policy_loss`. A row is a prompt and its
response without a gap:

    ids       p p p p r r r . .       prompt_length 4, response_length 3
    predicts        r r r             hidden states 3, 4, 5
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax import tokens as tokens_lib
from memagent_jax.models import rope, transformer
from memagent_jax.models.configs import ModelConfig
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.sharding import constrain
from memagent_jax.structs import Params, Tokens


def response_log_probs(
  config: ModelConfig,
  params: Params,
  ids_NxS: jax.Array,
  prompt_length_N: jax.Array,
  response_length_N: jax.Array,
  *,
  response_tokens: int,
  temperature: float,
  block_tokens: int = 128,
  with_entropy: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
  """float32 log-prob of every response token, and the entropy at its position.

  Both are of the distribution that `decode` samples from at this temperature
  with top_k and top_p off; at temperature 0 they are the untempered model's.

  The head runs over `block_tokens` positions of every row at a time and again
  in the backward pass, so N * block_tokens * V float32 logits exist, never
  N * R * V. The N rows stay an axis: a mesh may split them.

  Args:
    config: the model; static.
    params: its params.
    ids_NxS: int32; prompt, response, then anything.
    prompt_length_N: int32, at least 1 in a row with a response.
    response_length_N: int32, at most R; 0 makes a dummy row. The sum of both
      lengths is at most S.
    response_tokens: R, the width of the result; static.
    temperature: temperature at which the responses were sampled; static.
    block_tokens: positions of each row that the head sees at once; static.
    with_entropy: whether to compute the entropy; static.

  Returns:
    logprob_NxR and entropy_NxR (None if not asked for), 0 after a response.

  Raises:
    ValueError: response_tokens or block_tokens below 1, or a bad temperature.
  """
  if block_tokens < 1:
    raise ValueError(f'block_tokens is {block_tokens}; expected at least 1.')
  sampling = SamplingConfig(response_tokens, temperature)
  n, s = ids_NxS.shape
  hidden_NxSxE, _ = transformer.hidden_states(
    config,
    params,
    ids_NxS,
    jnp.broadcast_to(jnp.arange(s), (n, s)),
    # By the prompt's length, as in `decode.prefill`: dynamic NTK depends on it.
    rope.frequencies(config, prompt_length_N),
  )

  block_tokens = min(block_tokens, response_tokens)
  num_blocks = -(-response_tokens // block_tokens)
  slot_1xR = jnp.arange(num_blocks * block_tokens)[None]
  position_NxR = prompt_length_N[:, None] + slot_1xR
  hidden_NxRxE = jnp.take_along_axis(
    hidden_NxSxE, jnp.clip(position_NxR - 1, 0, s - 1)[..., None], axis=1
  )
  token_NxR = jnp.take_along_axis(
    ids_NxS, jnp.clip(position_NxR, 0, s - 1), axis=1
  )

  def split(x_NxRx: jax.Array) -> jax.Array:
    x = x_NxRx.reshape(n, num_blocks, block_tokens, *x_NxRx.shape[2:])
    return x.swapaxes(0, 1)

  def join(x_blocks: jax.Array) -> jax.Array:
    x_NxR = x_blocks.swapaxes(0, 1).reshape(n, -1)
    x_NxR = jnp.where(slot_1xR < response_length_N[:, None], x_NxR, 0.0)
    return x_NxR[:, :response_tokens]

  # Gathered over the mesh here; otherwise every block would repeat it.
  name = 'embedding' if config.tie_embeddings else 'head'
  whole = params | {name: constrain(params[name], 'vocab', 'embed')}
  # The scan keeps the two passes over a block apart by itself.
  head = jax.checkpoint(
    functools.partial(_head, config, whole, sampling, with_entropy),
    prevent_cse=False,
  )
  with jax.named_scope('head'):
    blocks = lax.map(head, (split(hidden_NxRxE), split(token_NxR)))
  return jax.tree.map(join, blocks)


def log_probs_after(
  config: ModelConfig,
  params: Params,
  prompt: Tokens,
  response: Tokens,
  *,
  temperature: float,
) -> jax.Array:
  """`response_log_probs` for responses given as rows of their own, R wide.

  Returns:
    float32 [N, R]; 0 after a response.
  """
  row = tokens_lib.concatenate([prompt, response])
  logprob_NxR, _ = response_log_probs(
    config,
    params,
    row.ids_NxW,
    prompt.length_N,
    response.length_N,
    response_tokens=response.ids_NxW.shape[1],
    temperature=temperature,
  )
  return logprob_NxR


def _head(
  config: ModelConfig,
  params: Params,
  sampling: SamplingConfig,
  with_entropy: bool,
  block: Any,
) -> tuple[jax.Array, jax.Array | None]:
  """Log-prob of each token after its hidden state, and the entropy or None."""
  hidden_NxRxE, token_NxR = block
  logits_NxRxV = transformer.logits(config, params, hidden_NxRxE)
  logprob_NxRxV = decode.log_probabilities(logits_NxRxV, sampling)
  logprob_NxR = jnp.take_along_axis(
    logprob_NxRxV, token_NxR[..., None], axis=-1
  )[..., 0]
  entropy_NxR = None
  if with_entropy:
    entropy_NxR = -(jnp.exp(logprob_NxRxV) * logprob_NxRxV).sum(axis=-1)
  return logprob_NxR, entropy_NxR
