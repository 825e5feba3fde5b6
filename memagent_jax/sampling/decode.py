"""Prefill, decode step and `generate`; knows nothing of chunks or templates.

Rows of one batch have prompts of different lengths. Prompts start at slot 0 of
one cache block, right-padded; responses go to a second block at a slot that all
rows share, so a step is one in-place slice update:

    row 0   p p p p p .  |  r r r . .
    row 1   p p p . . .  |  r r r . .        next write: slot 3 of the response

The loop stops when every row has sampled a control id or reached its cap.
"""

import dataclasses
import hashlib
import math
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax.models import rope, transformer
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.transformer import LayerKV, Past
from memagent_jax.sharding import (
  constrain,
  num_shards,
  put_rows,
  split_by_shard,
  take_rows,
)
from memagent_jax.structs import EOS, LENGTH, SKIPPED, Params, Response, Tokens


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How tokens are drawn, and the maximum number of them."""

  # Cap on sampled tokens, including the ending control id.
  max_tokens: int
  # Divisor of the logits; 0 is greedy.
  temperature: float = 0.0
  # Number of most likely tokens to keep; 0 keeps all.
  top_k: int = 0
  # Total probability of the most likely tokens to keep; 1 keeps all.
  top_p: float = 1.0

  def __post_init__(self) -> None:
    if self.max_tokens < 1:
      raise ValueError(f'max_tokens is {self.max_tokens}; expected at least 1.')
    if not (self.temperature >= 0.0 and math.isfinite(self.temperature)):
      raise ValueError(
        f'temperature is {self.temperature}; expected a number >= 0.'
      )
    if self.top_k < 0:
      raise ValueError(f'top_k is {self.top_k}; expected 0 (off) or more.')
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(f'top_p is {self.top_p}; expected 0 < top_p <= 1.')


class Prefilled(struct.PyTreeNode):
  """What `prefill` keeps of a batch of prompts: all that decoding needs."""

  kv: tuple[LayerKV, ...]  # per layer, P slots
  length_N: jax.Array  # int32, prompt tokens
  frequency_NxD2: jax.Array  # float32; set by the prompt's length
  logits_NxV: jax.Array  # float32; for the first response token


def prefill(
  config: ModelConfig,
  params: Params,
  prompt: Tokens,
  prefill_prompts: int = 0,
) -> Prefilled:
  """Runs the decoder over right-padded prompts of at least one token each.

  In blocks, equal prompts are read once: the rollouts of a document have the same
  turn as long as their memories agree.

  Args:
    config: the model; static.
    params: its params.
    prompt: N prompts.
    prefill_prompts: maximum number of prompts read at once, 0 for all; static.
      The activations of a layer are many times what stays in the cache.
  """
  n, shards = prompt.length_N.shape[0], num_shards('rows')
  size = _block_prompts(n, prefill_prompts)
  if size == n:
    return _prefill(config, params, prompt)
  # A block has rows from every device, so that no row has to move.
  per_shard = size // shards
  by_shard = split_by_shard(prompt)
  order_SxN, first_SxN, different_S = jax.vmap(_read_once)(by_shard)

  def rows_of(block: jax.Array | int) -> jax.Array:
    start = block * per_shard
    return lax.dynamic_slice_in_dim(order_SxN, start, per_shard, axis=1)

  def run(rows_SxB: jax.Array) -> Any:
    prompts = jax.tree.map(
      lambda x: x.reshape(size, *x.shape[2:]), take_rows(by_shard, rows_SxB)
    )
    read = _prefill(config, params, prompts)
    return split_by_shard((read.kv, read.logits_NxV))

  def read(block: jax.Array, results: Any) -> Any:
    rows_SxB = rows_of(block)
    return put_rows(results, rows_SxB, run(rows_SxB))

  def copy(block: jax.Array, results: Any) -> Any:
    rows_SxB = rows_of(block)
    same_SxB = take_rows(first_SxN, rows_SxB)
    return put_rows(results, rows_SxB, take_rows(results, same_SxB))

  axes = {3: ('vocab',), 5: ('kv_heads', 'head_dim', 'slots')}
  results = jax.tree.map(
    lambda x: constrain(
      jnp.zeros((shards, n // shards, *x.shape[2:]), x.dtype),
      *('rows', 'tokens', *axes[x.ndim]),
    ),
    jax.eval_shape(run, rows_of(0)),
  )
  blocks = -(-jnp.max(different_S) // per_shard)
  results = lax.fori_loop(0, blocks, read, results)
  results = lax.fori_loop(blocks, n // size, copy, results)
  kv, logits_NxV = jax.tree.map(lambda x: x.reshape(n, *x.shape[2:]), results)
  frequency_NxD2 = rope.frequencies(config, prompt.length_N)
  return Prefilled(kv, prompt.length_N, frequency_NxD2, logits_NxV)


def _block_prompts(prompts: int, most: int) -> int:
  """Prompts per block: the largest divisor up to `most`, or the smallest."""
  shards = num_shards('rows')
  sizes = [s for s in range(shards, prompts + 1, shards) if prompts % s == 0]
  if most < 1 or not sizes:
    return prompts
  return max([s for s in sizes if s <= most], default=min(sizes))


def _read_once(prompt: Tokens) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The order in which prompts are read, so that equal ones are read once.

  Returns:
    the numbers of the prompts, first occurrences first; for every prompt, the
    number of its first occurrence; and the number of different prompts.
  """
  n, w = prompt.ids_NxW.shape
  used_NxW = jnp.arange(w) < prompt.length_N[:, None]
  ids_NxW = jnp.where(used_NxW, prompt.ids_NxW, -1)
  # Randomly weighted sums almost always differ where ids do; the ids decide.
  factor_W = jax.random.bits(jax.random.key(0), (w,), jnp.uint32)
  sum_N = (ids_NxW.astype(jnp.uint32) * factor_W).sum(axis=1)
  first_N = jnp.argmax(sum_N[:, None] == sum_N, axis=1)
  same_N = jnp.all(ids_NxW == ids_NxW[first_N], axis=1)
  first_N = jnp.where(same_N, first_N, jnp.arange(n))
  is_first_N = first_N == jnp.arange(n)
  return jnp.argsort(~is_first_N, stable=True), first_N, is_first_N.sum()


def _prefill(config: ModelConfig, params: Params, prompt: Tokens) -> Prefilled:
  n, p = prompt.ids_NxW.shape
  frequency_NxD2 = rope.frequencies(config, prompt.length_N)
  position_NxT = jnp.broadcast_to(jnp.arange(p), (n, p))
  hidden_NxPxE, kv = transformer.hidden_states(
    config, params, prompt.ids_NxW, position_NxT, frequency_NxD2
  )
  last_N = jnp.maximum(prompt.length_N - 1, 0)
  hidden_NxE = jnp.take_along_axis(hidden_NxPxE, last_N[:, None, None], axis=1)[
    :, 0
  ]
  logits_NxV = transformer.logits(config, params, hidden_NxE)
  return Prefilled(kv, prompt.length_N, frequency_NxD2, logits_NxV)


def step(
  config: ModelConfig,
  params: Params,
  token_N: jax.Array,
  prefilled: Prefilled,
  response_kv: tuple[LayerKV, ...],
  slot: jax.Array,
) -> tuple[jax.Array, tuple[LayerKV, ...]]:
  """Logits after `token_N`, the response token at `slot`, and the new cache."""
  past = Past(prefilled.kv, response_kv, prefilled.length_N, slot)
  hidden_Nx1xE, response_kv = transformer.hidden_states(
    config,
    params,
    token_N[:, None],
    (prefilled.length_N + slot)[:, None],
    prefilled.frequency_NxD2,
    past,
  )
  logits_NxV = transformer.logits(config, params, hidden_Nx1xE[:, 0])
  return logits_NxV, response_kv


def empty_response_kv(
  config: ModelConfig, rows: int, slots: int
) -> tuple[LayerKV, ...]:
  """A zeroed response cache: per layer, keys and values of `slots` slots."""
  shape = (rows, config.num_kv_heads, config.head_dim, slots)
  zeros = jnp.zeros(shape, config.dtype)
  zeros = constrain(zeros, 'rows', 'kv_heads', 'head_dim', 'slots')
  return tuple((zeros, zeros) for _ in range(config.num_layers))


def log_probabilities(
  logits_NxV: jax.Array, sampling: SamplingConfig
) -> jax.Array:
  """float32 log-probs of the distribution that `sampling` draws from.

  Greedy decoding has no density of its own; it gets the untempered model's.
  Tokens that top-k or top-p exclude are at -inf.
  """
  logits_NxV = logits_NxV.astype(jnp.float32)
  if sampling.temperature == 0.0:
    return jax.nn.log_softmax(logits_NxV)
  logits_NxV = logits_NxV / sampling.temperature
  if sampling.top_k:
    k = min(sampling.top_k, logits_NxV.shape[-1])
    least_Nx1 = lax.top_k(logits_NxV, k)[0][:, -1:]
    logits_NxV = jnp.where(logits_NxV >= least_Nx1, logits_NxV, -jnp.inf)
  if sampling.top_p < 1.0:
    sorted_NxV = -jnp.sort(-logits_NxV, axis=-1)
    probability_NxV = jax.nn.softmax(sorted_NxV)
    # A token stays if those before it hold less than top_p: the first always.
    before_NxV = jnp.cumsum(probability_NxV, axis=-1) - probability_NxV
    kept_N = (before_NxV < sampling.top_p).sum(axis=-1)
    least_Nx1 = jnp.take_along_axis(sorted_NxV, kept_N[:, None] - 1, axis=-1)
    logits_NxV = jnp.where(logits_NxV >= least_Nx1, logits_NxV, -jnp.inf)
  return jax.nn.log_softmax(logits_NxV)


def example_number(name: str) -> int:
  """An example's name as the 32 bits that its rows' keys start from."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')


def row_keys(
  seed: int, example_N: jax.Array, rollout_N: jax.Array
) -> jax.Array:
  """One typed PRNG key per row: fold_in(fold_in(seed, example), rollout).

  The agent folds in the turn and `generate` the position, so neither batch
  order nor slots, shards or a resume change what a row samples.
  """

  def one(example: jax.Array, rollout: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), example)
    return jax.random.fold_in(key, rollout)

  return jax.vmap(one)(example_N, rollout_N)


def _draw(
  logits_NxV: jax.Array,
  sampling: SamplingConfig,
  key_N: jax.Array,
  position: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """One token per row and its log-prob; keys are the rows' for this turn."""
  logprob_NxV = log_probabilities(logits_NxV, sampling)
  if sampling.temperature == 0.0:
    token_N = jnp.argmax(logits_NxV, axis=-1)
  else:
    token_N = jax.vmap(
      lambda key, row: jax.random.categorical(
        jax.random.fold_in(key, position), row
      )
    )(key_N, logprob_NxV)
  logprob_N = jnp.take_along_axis(logprob_NxV, token_N[:, None], axis=-1)[:, 0]
  return token_N.astype(jnp.int32), logprob_N


class _Loop(struct.PyTreeNode):
  """State between two decode steps: `step` tokens are in `response`."""

  step: jax.Array
  token_N: jax.Array
  done_N: jax.Array
  response: Response
  kv: tuple[LayerKV, ...]


def generate(
  config: ModelConfig,
  params: Params,
  prompt: Tokens,
  sampling: SamplingConfig,
  control_ids: tuple[int, ...],
  key_N: jax.Array,
  active_N: jax.Array | None = None,
  prefill_prompts: int = 0,
) -> Response:
  """Samples a response to every prompt: `prefill`, then `respond`."""
  prefilled = prefill(config, params, prompt, prefill_prompts)
  return respond(
    config, params, prefilled, sampling, control_ids, key_N, active_N
  )


# `generate` as a program of its own, for callers outside jit.
generate_jitted = jax.jit(generate, static_argnums=(0, 3, 4, 7))


def respond(
  config: ModelConfig,
  params: Params,
  prefilled: Prefilled,
  sampling: SamplingConfig,
  control_ids: tuple[int, ...],
  key_N: jax.Array,
  active_N: jax.Array | None = None,
) -> Response:
  """Samples a response to every prompt of a prefilled batch.

  Control ids are sampled like any other token (nothing is masked, so log-probs
  are the model's), and end their row.

  Args:
    config: the model; static.
    params: its params.
    prefilled: the prompts, from `prefill`.
    sampling: how to draw, and the cap R; static.
    control_ids: the ids that end a row; static.
    key_N: typed keys, one per row and turn; unused when greedy.
    active_N: bool; rows that are False sample nothing and finish as SKIPPED.

  Returns:
    the Response, R = sampling.max_tokens wide.
  """
  n, r = prefilled.length_N.shape[0], sampling.max_tokens
  controls = jnp.asarray(control_ids, jnp.int32)
  if active_N is None:
    active_N = jnp.ones((n,), bool)

  def record(loop: _Loop, logits_NxV: jax.Array, position: jax.Array) -> _Loop:
    """Draws the token of slot `position` for the rows that are not done."""
    token_N, logprob_N = _draw(logits_NxV, sampling, key_N, position)
    live_N = ~loop.done_N
    token_N = jnp.where(live_N, token_N, 0)
    logprob_N = jnp.where(live_N, logprob_N, 0.0)
    ended_N = live_N & jnp.isin(token_N, controls)
    old = loop.response
    at = (0, position)
    response = Response(
      ids_NxR=lax.dynamic_update_slice(old.ids_NxR, token_N[:, None], at),
      logprob_NxR=lax.dynamic_update_slice(
        old.logprob_NxR, logprob_N[:, None], at
      ),
      length_N=old.length_N + live_N,
      finish_N=jnp.where(ended_N, EOS, old.finish_N),
    )
    return loop.replace(
      step=position + 1,
      token_N=token_N,
      done_N=loop.done_N | ended_N,
      response=response,
    )

  def body(loop: _Loop) -> _Loop:
    logits_NxV, kv = step(
      config, params, loop.token_N, prefilled, loop.kv, loop.step - 1
    )
    return record(loop.replace(kv=kv), logits_NxV, loop.step)

  start = _Loop(
    step=jnp.int32(0),
    token_N=jnp.zeros((n,), jnp.int32),
    done_N=~active_N,
    response=Response(
      ids_NxR=jnp.zeros((n, r), jnp.int32),
      logprob_NxR=jnp.zeros((n, r), jnp.float32),
      length_N=jnp.zeros((n,), jnp.int32),
      finish_N=jnp.where(active_N, LENGTH, SKIPPED).astype(jnp.int32),
    ),
    kv=empty_response_kv(config, n, r),
  )
  start = record(start, prefilled.logits_NxV, jnp.int32(0))
  end = lax.while_loop(
    lambda loop: (loop.step < r) & ~jnp.all(loop.done_N), body, start
  )
  return end.response
