"""The one attention of training, prefill and decode, on every platform.

A platform that has a kernel of its own uses it (see `kernels`); the others use
what follows, which defines what a kernel has to compute.

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

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax import sharding
from memagent_jax.models import kernels
from memagent_jax.models.kernels import recompute

# Queries per block. 128 rows of scores over 1K keys stay in a core's cache.
BLOCK_QUERIES = 128
# Most distinct key prefixes in one program; each of them is a shape to compile.
MAX_PREFIXES = 12
# Score of a hidden slot: exp() of it is exactly 0 next to any real score.
_HIDDEN = -1e30


class Segment(NamedTuple):
  """Keys and values, and how much of them each query sees.

  visible_NxT: query t of row n sees slots < visible_NxT[n, t]; None means
  causal: the segment holds the queries' own positions, and slots <= t are seen.
  first_NxT: slots before it are not seen; None means that all of them are.
  """

  k_NxJxDxS: jax.Array
  v_NxJxDxS: jax.Array
  visible_NxT: jax.Array | None = None
  first_NxT: jax.Array | None = None

  @property
  def end_NxT(self) -> jax.Array:
    """visible_NxT of a segment that is not causal."""
    assert self.visible_NxT is not None
    return self.visible_NxT


def attention(q_NxTxHxD: jax.Array, segments: Sequence[Segment]) -> jax.Array:
  """Softmax attention over the concatenated segments, [N, T, H, D].

  Query heads share kv heads in groups of H/J. Scores and softmax are float32.
  Padding at the end of a causal row needs no mask: no real query sees it.
  """
  q = grouped(q_NxTxHxD, segments[0].k_NxJxDxS.shape[1])
  platform = sharding.platform()
  if segments[0].visible_NxT is None:
    (segment,) = segments
    causal = kernels.CAUSAL.get(platform, _causal)
    out = causal(q, segment.k_NxJxDxS, segment.v_NxJxDxS)
  elif platform in kernels.LIVE and q.shape[3] == 1:
    out = _attend_live(q, segments, kernels.LIVE[platform])
  else:
    out, _ = attend([(q, segment) for segment in segments])
  return ungrouped(out)


def _attend_live(
  q: jax.Array, segments: Sequence[Segment], live: Callable
) -> jax.Array:
  """`attend` for one query per row, reading only the slots that it sees."""
  parts = [
    live(
      q[:, :, :, 0],
      segment.k_NxJxDxS,
      segment.v_NxJxDxS,
      segment.end_NxT[:, 0],
    )
    for segment in segments
  ]
  return merged(parts)[:, :, :, None].astype(q.dtype)


def merged(
  parts: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
) -> jax.Array:
  """One softmax over segments, float32 [N, J, G, D], from a kernel's parts.

  Args:
    parts: for each segment the weighted sum of the values [N, J, G, D], the largest
      score, and the sum of the weights relative to it, both [N, J, G, 1].
  """
  top = functools.reduce(jnp.maximum, (t for _, t, _ in parts))
  weight = [jnp.exp(t - top) for _, t, _ in parts]
  total: Any = sum(w * s for w, (_, _, s) in zip(weight, parts, strict=True))
  out: Any = sum(w * o for w, (o, _, _) in zip(weight, parts, strict=True))
  return out / total


def grouped(q_NxTxHxD: jax.Array, kv_heads: int) -> jax.Array:
  """Scaled queries, grouped by the kv head they share: [N, J, G, T, D]."""
  n, t, h, d = q_NxTxHxD.shape
  q = q_NxTxHxD * (d**-0.5)
  return q.reshape(n, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)


def ungrouped(out: jax.Array) -> jax.Array:
  """[N, J, G, T, D] as [N, T, H, D]."""
  n, j, g, t, d = out.shape
  return out.transpose(0, 3, 1, 2, 4).reshape(n, t, j * g, d)


@jax.custom_vjp
def _causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Causal attention by blocks of queries over their own prefix of the keys.

  Scores are recomputed for the gradients: saved, they would add up to all of
  T x T. With `jax.checkpoint`, XLA:CPU would still save them for rows of up to
  MAX_PREFIXES blocks (see `kernels.recompute`). The saved normaliser spares the
  second pass a maximum and a sum.
  """
  return _causal_forward(q, k, v)[0]


def _causal_forward(
  q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  outs, log_totals = [], []
  for first, last, size, end in pieces(q.shape[3]):
    k_prefix, v_prefix = k[..., :end], v[..., :end]

    def one(
      _: None,
      x: tuple[jax.Array, ...],
      k: jax.Array = k_prefix,
      v: jax.Array = v_prefix,
    ) -> tuple[None, tuple[jax.Array, jax.Array]]:
      start, q = x
      return None, attend([(q, _seen_from(start, q, k, v))])

    starts, q_blocks = split(first, last, size, q)
    _, (out, log_total) = lax.scan(
      one, None, (starts, q_blocks), unroll=len(starts) == 1
    )
    outs.append(join(out))
    log_totals.append(join(log_total))
  return jnp.concatenate(outs, axis=3), (
    q,
    k,
    v,
    jnp.concatenate(log_totals, axis=3),
  )


def _causal_backward(
  saved: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array, ...]:
  """Gradients; with p the probabilities, d_s = p (d_p - sum p d_p).

  Source: FlashAttention, arXiv 2205.14135, appendix B.2.
  """
  q, k, v, log_total = saved
  q = recompute.after(q, d_out)
  d_qs = []
  d_k, d_v = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for first, last, size, end in pieces(q.shape[3]):
    k_prefix, v_prefix = k[..., :end], v[..., :end]

    def one(
      total: tuple[jax.Array, ...],
      x: tuple[jax.Array, ...],
      k: jax.Array = k_prefix,
      v: jax.Array = v_prefix,
    ) -> tuple[Any, jax.Array]:
      start, q, log_total, d_out = x

      def rows(x: jax.Array) -> jax.Array:  # [N,J,G,T,X] -> [N,J,G*T,X]
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

      p = rows(jnp.exp(_scores(q, _seen_from(start, q, k, v)) - log_total))
      d_p = _rows_by_keys(rows(d_out), v)
      mean = (p * d_p).sum(axis=-1, keepdims=True)
      d_s = (p * (d_p - mean)).astype(q.dtype)
      d_k = _keys_by_rows(rows(q), d_s)
      d_v = _keys_by_rows(rows(d_out), p.astype(q.dtype))
      d_q = _rows_by_values(d_s, k).reshape(q.shape).astype(q.dtype)
      return jax.tree.map(jnp.add, total, (d_k, d_v)), d_q

    starts, *blocks = split(first, last, size, q, log_total, d_out)
    zeros = (jnp.zeros_like(d_k[..., :end]), jnp.zeros_like(d_v[..., :end]))
    (d_k_prefix, d_v_prefix), d_q = lax.scan(
      one, zeros, (starts, *blocks), unroll=len(starts) == 1
    )
    d_k = d_k.at[..., :end].add(d_k_prefix)
    d_v = d_v.at[..., :end].add(d_v_prefix)
    d_qs.append(join(d_q))
  return jnp.concatenate(d_qs, axis=3), d_k.astype(k.dtype), d_v.astype(v.dtype)


_causal.defvjp(_causal_forward, _causal_backward)


def pieces(t: int) -> list[tuple[int, int, int, int]]:
  """(first, last, block size, prefix) of runs of blocks that share a prefix.

  In a long row several blocks share a prefix: fewer shapes to compile, for at
  most T x T / (2 MAX_PREFIXES) more scores than needed. What is left after the
  last whole block of a row is a piece of its own.
  """
  blocks = -(-t // BLOCK_QUERIES)
  span = -(-blocks // MAX_PREFIXES) * BLOCK_QUERIES
  pieces = []
  for start in range(0, t, span):
    end = min(start + span, t)
    whole = end - (end - start) % BLOCK_QUERIES
    if start < whole:
      pieces.append((start, whole, BLOCK_QUERIES, end))
    if whole < end:
      pieces.append((whole, end, end - whole, end))
  return pieces


def split(
  first: int, last: int, size: int, *xs: jax.Array
) -> tuple[jax.Array, ...]:
  """First query of every block [B], and each x as blocks [B,N,J,G,size,D]."""
  blocks = (last - first) // size

  def split(x: jax.Array) -> jax.Array:
    n, j, g, _, d = x.shape
    x = x[:, :, :, first:last].reshape(n, j, g, blocks, size, d)
    return jnp.moveaxis(x, 3, 0)

  return first + size * jnp.arange(blocks), *map(split, xs)


def join(x: jax.Array) -> jax.Array:
  """Blocks [B,N,J,G,T,D] side by side, [N,J,G,B*T,D]."""
  x = jnp.moveaxis(x, 0, 3)
  return x.reshape(*x.shape[:3], -1, x.shape[-1])


def _seen_from(
  start: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array
) -> Segment:
  """Keys and values as seen by queries [N,J,G,T,D] from slot `start` on."""
  n, t = q.shape[0], q.shape[3]
  return Segment(k, v, jnp.broadcast_to(start + 1 + jnp.arange(t), (n, t)))


def attend(
  parts: Sequence[tuple[jax.Array, Segment]],
) -> tuple[jax.Array, jax.Array]:
  """Attention of queries over segments, with one softmax across them all.

  Args:
    parts: pairs of q [N,J,G,T,D], from `grouped`, and the segment it sees. The
      queries are the same in every part, but may be rotated differently.

  Returns:
    [N,J,G,T,D], and the log of the softmax's denominators, float32 [N,J,G,T,1].
  """
  n, j, g, t, d = parts[0][0].shape
  scores = [_scores(q, segment) for q, segment in parts]
  tops = [s.max(axis=-1, keepdims=True) for s in scores]
  top = lax.stop_gradient(functools.reduce(jnp.maximum, tops))
  weights = [jnp.exp(s - top) for s in scores]
  total = functools.reduce(
    jnp.add, [w.sum(axis=-1, keepdims=True) for w in weights]
  )
  out = functools.reduce(
    jnp.add,
    [
      _rows_by_values(
        w.reshape(n, j, g * t, -1).astype(s.v_NxJxDxS.dtype), s.v_NxJxDxS
      )
      for w, (_, s) in zip(weights, parts, strict=True)
    ],
  )
  out = (out.reshape(n, j, g, t, d) / total).astype(parts[0][0].dtype)
  return out, top + jnp.log(total)


def _scores(q: jax.Array, segment: Segment) -> jax.Array:
  """float32 scores [N,J,G,T,S] of q over a segment's slots."""
  n, j, g, t, d = q.shape
  s = _rows_by_keys(q.reshape(n, j, g * t, d), segment.k_NxJxDxS)
  s = s.reshape(n, j, g, t, -1)
  slot = jnp.arange(s.shape[-1])
  seen = slot < segment.end_NxT[:, None, None, :, None]
  if segment.first_NxT is not None:
    seen &= slot >= segment.first_NxT[:, None, None, :, None]
  return jnp.where(seen, s, _HIDDEN)


def _rows_by_keys(x_NxJxRxD: jax.Array, k_NxJxDxS: jax.Array) -> jax.Array:
  return kernels.matmul('njrd,njds->njrs', x_NxJxRxD, k_NxJxDxS)


def _rows_by_values(p_NxJxRxS: jax.Array, v_NxJxDxS: jax.Array) -> jax.Array:
  return kernels.matmul('njrs,njds->njrd', p_NxJxRxS, v_NxJxDxS)


def _keys_by_rows(x_NxJxRxD: jax.Array, w_NxJxRxS: jax.Array) -> jax.Array:
  return jnp.einsum(
    'njrd,njrs->njds', x_NxJxRxD, w_NxJxRxS, preferred_element_type=jnp.float32
  )
