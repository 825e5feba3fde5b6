"""Attention variants that stretch a model beyond its window, without training.

Each is a set of views: a view rotates the queries to positions of its own and
sees one range of the keys; one softmax spans all views of a query.

    dual chunk    own chunk | previous chunk | all earlier ones
    sinks         first keys | latest keys

    positions -> queries of every view -> blocks of queries over their ranges

As long as the text fits the window, every view has the plain distances, and the
variant is plain attention. Sources: DCA, arXiv 2402.17463; StreamingLLM, arXiv
2309.17453.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax.models import attention
from memagent_jax.models.attention import Segment
from memagent_jax.models.configs import (
  DualChunkAttention,
  ModelConfig,
  SinkAttention,
)


class View(NamedTuple):
  """The rotary position of each query, and the range of the keys it sees."""

  query_NxT: jax.Array  # rotary position
  first_NxT: jax.Array  # position of the first key seen
  end_NxT: jax.Array  # position after the last key seen


def key_positions(config: ModelConfig, position_NxT: jax.Array) -> jax.Array:
  """Rotary positions of keys at the given positions of the text."""
  if isinstance(config.long_attention, DualChunkAttention):
    return position_NxT % config.long_attention.chunk_tokens
  return position_NxT


def views(config: ModelConfig, position_NxT: jax.Array) -> tuple[View, ...]:
  """The views of queries at the given positions of the text."""
  variant, window = config.long_attention, config.max_positions
  at, end_NxT = position_NxT, position_NxT + 1
  if isinstance(variant, SinkAttention):
    recent = window - variant.sinks
    return (
      View(
        jnp.minimum(at, window - 1),
        jnp.zeros_like(at),
        jnp.minimum(end_NxT, variant.sinks),
      ),
      View(at, jnp.maximum(end_NxT - recent, variant.sinks), end_NxT),
    )
  assert isinstance(variant, DualChunkAttention)
  size = variant.chunk_tokens
  within, own_NxT = at % size, at - at % size
  before_NxT = jnp.maximum(own_NxT - size, 0)
  return (
    View(jnp.full_like(at, window - 1), jnp.zeros_like(at), before_NxT),
    View(jnp.minimum(size + within, window - 1), before_NxT, own_NxT),
    View(within, own_NxT, end_NxT),
  )


def prefill(
  config: ModelConfig,
  q_views: Sequence[jax.Array],
  k_NxJxDxS: jax.Array,
  v_NxJxDxS: jax.Array,
) -> jax.Array:
  """Attention of a text over itself, [N, T, H, D].

  Args:
    config: its `long_attention` is not None.
    q_views: q_NxTxHxD of every view, rotated.
    k_NxJxDxS: keys of the same tokens, rotated to `key_positions`.
    v_NxJxDxS: their values.
  """
  n, t = q_views[0].shape[:2]
  grouped = [attention.grouped(q, k_NxJxDxS.shape[1]) for q in q_views]
  outs = []
  for first, last, size, end in attention.pieces(t):

    def one(
      _: None, x: tuple[jax.Array, ...], end: int = end
    ) -> tuple[None, jax.Array]:
      start, *q_blocks = x
      at_NxT = jnp.broadcast_to(
        start + jnp.arange(q_blocks[0].shape[3]), (n, q_blocks[0].shape[3])
      )
      parts = []
      for q, view, (origin, width) in zip(
        q_blocks,
        views(config, at_NxT),
        _ranges(config, start, at_NxT.shape[1], end),
        strict=True,
      ):
        if not width:
          continue
        k, v = (
          lax.dynamic_slice_in_dim(x, origin, width, axis=3)
          for x in (k_NxJxDxS, v_NxJxDxS)
        )
        seen = Segment(k, v, view.end_NxT - origin, view.first_NxT - origin)
        parts.append((q, seen))
      return None, attention.attend(parts)[0]

    starts, *blocks = attention.split(first, last, size, *grouped)
    _, out = lax.scan(one, None, (starts, *blocks), unroll=len(starts) == 1)
    outs.append(attention.join(out))
  return attention.ungrouped(jnp.concatenate(outs, axis=3))


def decode(
  config: ModelConfig,
  q_views: Sequence[jax.Array],
  segments: Sequence[Segment],
  position_NxT: jax.Array,
  origins_N: Sequence[jax.Array],
) -> jax.Array:
  """Attention of single steps over cached segments, [N, T, H, D].

  Args:
    config: its `long_attention` is not None.
    q_views: q_NxTxHxD of every view, rotated.
    segments: the segments that plain attention would see.
    position_NxT: positions of the queries in the text.
    origins_N: for each segment, the position of its first slot in every row.
  """
  parts = []
  for q, view in zip(q_views, views(config, position_NxT), strict=True):
    q = attention.grouped(q, segments[0].k_NxJxDxS.shape[1])
    for segment, origin_N in zip(segments, origins_N, strict=True):
      end_NxT = view.end_NxT - origin_N[:, None]
      seen = segment._replace(
        visible_NxT=jnp.minimum(end_NxT, segment.end_NxT),
        first_NxT=view.first_NxT - origin_N[:, None],
      )
      parts.append((q, seen))
  return attention.ungrouped(attention.attend(parts)[0])


def _ranges(
  config: ModelConfig, start: jax.Array, queries: int, end: int
) -> list[tuple[jax.Array | int, int]]:
  """For each view, (first slot, number of slots) of all that a block sees.

  The number is 0 if no block up to `end` sees anything in the view.

  Args:
    config: its `long_attention` is not None.
    start: first query of the block.
    queries: size of the block.
    end: number of slots.
  """
  variant = config.long_attention
  if isinstance(variant, SinkAttention):
    recent = config.max_positions - variant.sinks
    width = min(recent + queries, end)
    return [
      (0, min(variant.sinks, end)),
      (jnp.clip(start + 1 - recent, 0, end - width), width),
    ]
  assert isinstance(variant, DualChunkAttention)
  size = variant.chunk_tokens
  # Where the chunks of the block's first query and of the last slot begin.
  own, last_own = start - start % size, (end - 1) // size * size
  # Whether a block lies within one chunk; else it may end in a later one.
  whole = size % attention.BLOCK_QUERIES == 0
  own_width = min(size if whole else size + queries, end)
  before_width = min(size if whole else 2 * size + queries, last_own)
  return [
    (0, max(last_own - size, 0)),
    (jnp.clip(own - size, 0, last_own - before_width), before_width),
    (jnp.clip(own, 0, end - own_width), own_width),
  ]
