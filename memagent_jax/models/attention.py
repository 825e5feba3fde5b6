"""The one attention of training, prefill and decode.

A query sees one or more segments of keys. Training and prefill have one causal
segment (the row itself); decode has two, the prompt's cache and the response's.
Scores exist for one block of queries at a time, over the keys that block can
see, so memory is linear in the prompt and masked blocks cost nothing:

    queries  0..127    #.......        # computed, masked on its diagonal
           128..255    ##......        . never computed
           256..383    ###.....

Keys and values are heads-major with the slots last (NxJxDxS): both matmuls of a
block, and the matvecs of a decode step, then read them in memory order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

# Queries of one block. 128 rows of scores over 1K keys stay in a core's cache.
BLOCK_QUERIES = 128
# Distinct key prefixes of one program: each is a shape to compile.
MAX_PREFIXES = 12
# What a hidden slot scores: exp() of it is exactly 0 beside any real score.
_HIDDEN = -1e30


class Segment(NamedTuple):
  """Keys and values, and how much of them each query sees.

  visible_NxT: query t of row n sees slots < visible_NxT[n, t]; None means
  causal: the segment holds the queries' own positions, slots <= t are seen.
  """

  k_NxJxDxS: jax.Array
  v_NxJxDxS: jax.Array
  visible_NxT: jax.Array | None = None


def attention(q_NxTxHxD: jax.Array, segments: Sequence[Segment]) -> jax.Array:
  """Softmax attention over the concatenated segments, [N, T, H, D].

  Query heads share kv heads in groups of H/J. Scores and softmax are float32.
  Padding at the end of a causal row needs no mask: no real query sees it.
  """
  n, t, h, d = q_NxTxHxD.shape
  j = segments[0].k_NxJxDxS.shape[1]
  q = q_NxTxHxD * (d**-0.5)
  q = q.reshape(n, t, j, h // j, d).transpose(0, 2, 3, 1, 4)  # N J G T D
  if segments[0].visible_NxT is None:
    (segment,) = segments
    out = _causal(q, segment.k_NxJxDxS, segment.v_NxJxDxS)
  else:
    out = _attend(q, segments)
  return out.transpose(0, 3, 1, 2, 4).reshape(n, t, h, d)


def _causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Causal attention by blocks of queries over their own prefix of the keys."""
  n, j, g, t, d = q.shape
  # A prefix serves several blocks of a long row: fewer shapes to compile, for
  # scores that are at most 1/(2 MAX_PREFIXES) larger than needed.
  blocks = -(-t // BLOCK_QUERIES)
  span = -(-blocks // MAX_PREFIXES) * BLOCK_QUERIES

  # Recomputed in the backward pass: a saved block would add up to all of T x T.
  @jax.checkpoint
  def block(start, q_block, k_prefix, v_prefix):
    visible = jnp.broadcast_to(
      start + 1 + jnp.arange(q_block.shape[3]), (n, q_block.shape[3])
    )
    return _attend(q_block, [Segment(k_prefix, v_prefix, visible)])

  outs = []
  for start in range(0, t, span):
    end = min(start + span, t)
    k_prefix, v_prefix = k[..., :end], v[..., :end]
    whole = (end - start) // BLOCK_QUERIES
    if whole > 1:
      stop = start + whole * BLOCK_QUERIES
      q_blocks = q[:, :, :, start:stop].reshape(
        n, j, g, whole, BLOCK_QUERIES, d
      )
      out = lax.map(
        lambda x, k=k_prefix, v=v_prefix: block(x[0], x[1], k, v),
        (
          start + BLOCK_QUERIES * jnp.arange(whole),
          jnp.moveaxis(q_blocks, 3, 0),
        ),
      )
      outs.append(jnp.moveaxis(out, 0, 3).reshape(n, j, g, stop - start, d))
      start = stop
    if start < end:
      outs.append(block(start, q[:, :, :, start:end], k_prefix, v_prefix))
  return jnp.concatenate(outs, axis=3) if len(outs) > 1 else outs[0]


def _attend(q: jax.Array, segments: Sequence[Segment]) -> jax.Array:
  """Attention of q [N,J,G,T,D] over segments; one softmax across them all."""
  n, j, g, t, d = q.shape
  rows = q.reshape(n, j, g * t, d)
  scores = []
  for segment in segments:
    s = _rows_by_keys(rows, segment.k_NxJxDxS).reshape(n, j, g, t, -1)
    slot = jnp.arange(s.shape[-1])
    seen = slot < segment.visible_NxT[:, None, None, :, None]
    scores.append(jnp.where(seen, s, _HIDDEN))
  top = [s.max(axis=-1, keepdims=True) for s in scores]
  top = lax.stop_gradient(_reduce(jnp.maximum, top))
  weights = [jnp.exp(s - top) for s in scores]
  total = _reduce(jnp.add, [w.sum(axis=-1, keepdims=True) for w in weights])
  out = _reduce(
    jnp.add,
    [
      _rows_by_values(
        w.reshape(n, j, g * t, -1).astype(s.v_NxJxDxS.dtype), s.v_NxJxDxS
      )
      for w, s in zip(weights, segments, strict=True)
    ],
  )
  return (out.reshape(n, j, g, t, d) / total).astype(q.dtype)


def _reduce(combine, parts):
  total = parts[0]
  for part in parts[1:]:
    total = combine(total, part)
  return total


def _rows_by_keys(x_NxJxRxD, k_NxJxDxS):
  return _matmul('njrd,njds->njrs', 'njd,njds->njs', x_NxJxRxD, k_NxJxDxS)


def _rows_by_values(p_NxJxRxS, v_NxJxDxS):
  return _matmul('njrs,njds->njrd', 'njs,njds->njd', p_NxJxRxS, v_NxJxDxS)


def _matmul(matrix: str, vector: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum(matrix, x, y) in float32; on CPU a few rows go as matvecs.

  XLA:CPU packs both operands of a matmul, which for the 3 to 7 query rows that
  share a kv head in a decode step costs more than the product; its matvec reads
  the cache in place (1.6x faster per decode step at batch 8 and 1K of context).
  """

  def rows_at_once(x, y):
    return jnp.einsum(matrix, x, y, preferred_element_type=jnp.float32)

  def row_by_row(x, y):
    rows = [
      jnp.einsum(vector, x[:, :, r], y, preferred_element_type=jnp.float32)
      for r in range(x.shape[2])
    ]
    return jnp.stack(rows, axis=2)

  if x.shape[2] > 8:
    return rows_at_once(x, y)
  return lax.platform_dependent(x, y, cpu=row_by_row, default=rows_at_once)
