"""Attention on TPUs, in Pallas: the splash kernel, and one for decode steps."""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
import jax.numpy as jnp

from memagent_jax.models.kernels.per_device import on_each_device

# Lanes of a TPU's vector registers: last axes of blocks are multiples of it.
_LANES = 128
_SPLASH_BLOCKS = (1024, 512, 256)
# Most padding that a larger block may add to a row, as a share of the row.
_SPLASH_PADDING = 1 / 8
# Cache slots that are fetched at once.
_SLOTS = 512
_HIDDEN = -1e30


def causal(
  q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """Causal attention by splash attention; with gradients.

  Args:
    q: [N, J, G, T, D], scaled.
    k: [N, J, D, T].
    v: [N, J, D, T].
    interpret: run the kernel's program step by step, on any platform.

  Returns:
    [N, J, G, T, D].
  """
  return on_each_device(
    functools.partial(_splash, interpret=interpret), q, k, v
  )


def _splash(
  q: jax.Array, k: jax.Array, v: jax.Array, *, interpret: bool
) -> jax.Array:
  n, j, g, t, d = q.shape
  # Slots past the row's end and dimensions of zeros change nothing.
  block = _splash_block(t)
  t_pad, d_pad = -t % block, -d % _LANES
  q = jnp.pad(q, ((0, 0), (0, 0), (0, 0), (0, t_pad), (0, d_pad)))
  k, v = (
    jnp.pad(x, ((0, 0), (0, 0), (0, d_pad), (0, t_pad))).swapaxes(2, 3)
    for x in (k, v)
  )
  t_all = t + t_pad
  kernel = splash.make_splash_mha(
    splash_mask.MultiHeadMask([splash_mask.CausalMask((t_all, t_all))] * j * g),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_kv_compute=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      use_fused_bwd_kernel=True,
    ),
    interpret=interpret,
  )
  out = jax.vmap(kernel)(q.reshape(n, j * g, t_all, d + d_pad), k, v)
  return out.reshape(n, j, g, t_all, -1)[..., :t, :d]


def _splash_block(tokens: int) -> int:
  """The largest block that pads a row of that many tokens only a little."""
  most = tokens * _SPLASH_PADDING
  return next((b for b in _SPLASH_BLOCKS if -tokens % b <= most), _LANES)


def live(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  length_N: jax.Array,
  *,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Attention of a decode step over the first slots of each row's cache.

  Blocks of slots past a row's length are neither fetched nor computed.

  Args:
    q: [N, J, G, D], scaled.
    k: [N, J, D, S].
    v: [N, J, D, S].
    length_N: int32, slots in use; a row without any gives zeros.
    interpret: as in `causal`.

  Returns:
    float32 sums of the values [N, J, G, D], and for each query the largest score
    and the sum of the weights relative to it, both [N, J, G, 1];
    `attention.merged` combines several such parts into one softmax.
  """
  return on_each_device(
    functools.partial(_live, interpret=interpret), q, k, v, length_N
  )


def _live(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  length_N: jax.Array,
  *,
  interpret: bool,
) -> jax.Array:
  n, j, g, d = q.shape
  slots = k.shape[3]
  size = min(_SLOTS, slots)

  def cache(n: Any, j: Any, block: Any, length_N: Any) -> tuple[Any, ...]:
    # Repeats the last block in use: a block already here is not fetched again.
    last = jnp.maximum(pl.cdiv(length_N[n], size) - 1, 0)
    return n, j, 0, jnp.minimum(block, last)

  def own(n: Any, j: Any, block: Any, length_N: Any) -> tuple[Any, ...]:
    del block, length_N
    return n, j, 0, 0

  def kernel(
    length_N: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    top_ref: Any,
    sum_ref: Any,
  ) -> None:
    block, length = pl.program_id(2), length_N[pl.program_id(0)]

    @pl.when(block == 0)
    def _() -> None:
      out_ref[...] = jnp.zeros_like(out_ref)
      top_ref[...] = jnp.full_like(top_ref, _HIDDEN)
      sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(block * size < length)
    def _() -> None:
      q, k, v = q_ref[0, 0], k_ref[0, 0], v_ref[0, 0]
      scores = jnp.dot(q, k, preferred_element_type=jnp.float32)
      # The last block may reach past the cache, where contents are arbitrary.
      slot = jax.lax.broadcasted_iota(jnp.int32, (1, size), 1) + block * size
      scores = jnp.where(slot < length, scores, _HIDDEN)
      v = jnp.where(slot < length, v, jnp.zeros_like(v))
      before = top_ref[0, 0]
      top = jnp.maximum(before, scores.max(axis=1, keepdims=True))
      weight = jnp.exp(scores - top)
      kept = jnp.exp(before - top)
      values = jax.lax.dot_general(
        weight.astype(v.dtype),
        v,
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
      out_ref[0, 0] = kept * out_ref[0, 0] + values
      sum_ref[0, 0] = kept * sum_ref[0, 0] + weight.sum(axis=1, keepdims=True)
      top_ref[0, 0] = top

  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(n, j, pl.cdiv(slots, size)),
      in_specs=[
        pl.BlockSpec((1, 1, g, d), own),
        pl.BlockSpec((1, 1, d, size), cache),
        pl.BlockSpec((1, 1, d, size), cache),
      ],
      out_specs=[
        pl.BlockSpec((1, 1, g, d), own),
        pl.BlockSpec((1, 1, g, 1), own),
        pl.BlockSpec((1, 1, g, 1), own),
      ],
    ),
    out_shape=[shape((n, j, g, d)), shape((n, j, g, 1)), shape((n, j, g, 1))],
    cost_estimate=_live_cost(n * j, g, d, slots, k.dtype.itemsize),
    interpret=interpret,
    name='live_attention',
  )(length_N, q, k, v)


def _live_cost(
  heads: int, group: int, dim: int, slots: int, itemsize: int
) -> pl.CostEstimate:
  """What `live` costs if every slot is in use."""
  return pl.CostEstimate(
    flops=4 * heads * group * dim * slots,
    transcendentals=heads * group * slots,
    bytes_accessed=2 * heads * dim * slots * itemsize,
  )
