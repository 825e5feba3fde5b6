"""Blockwise attention against a plain softmax written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models import attention
from memagent_jax.models.attention import Segment


def plain_attention(q_NxTxHxD, k_NxJxDxS, v_NxJxDxS, seen_NxTxS):
  """Float64 softmax attention, one row, head and query at a time."""
  n, t, h, d = q_NxTxHxD.shape
  group = h // k_NxJxDxS.shape[1]
  out = np.zeros((n, t, h, d))
  for row in range(n):
    for head in range(h):
      k_DxS = k_NxJxDxS[row, head // group].astype(np.float64)
      v_DxS = v_NxJxDxS[row, head // group].astype(np.float64)
      score_TxS = q_NxTxHxD[row, :, head].astype(np.float64) @ k_DxS
      score_TxS = np.where(seen_NxTxS[row], score_TxS / np.sqrt(d), -np.inf)
      weight_TxS = np.exp(score_TxS - score_TxS.max(axis=-1, keepdims=True))
      weight_TxS /= weight_TxS.sum(axis=-1, keepdims=True)
      out[row, :, head] = weight_TxS @ v_DxS.T
  return out


def draw(seed, rows, queries, slots, heads=6, kv_heads=2, dim=8):
  """q [N,T,H,D] and k, v [N,J,D,S]; keys large enough for a peaked softmax."""
  rng = np.random.default_rng(seed)
  q = rng.normal(size=(rows, queries, heads, dim))
  k = 2.0 * rng.normal(size=(rows, kv_heads, dim, slots))
  v = rng.normal(size=(rows, kv_heads, dim, slots))
  return [x.astype(np.float32) for x in (q, k, v)]


@jax.jit
def causal_attention(q, k, v):
  return attention.attention(q, [Segment(k, v)])


@jax.jit
def segment_attention(q, segments):
  return attention.attention(q, segments)


def causal(rows, length):
  return np.broadcast_to(
    np.tril(np.ones((length, length), bool)), (rows, length, length)
  )


# 1700 makes 14 blocks in 7 prefixes of 2, the last one ragged; 300 has a ragged
# block after whole ones; 128 and 129 are at the border of a block.
@pytest.mark.parametrize('length', [1, 5, 128, 129, 300, 1700])
def test_causal_equals_plain_softmax(length):
  q, k, v = draw(length, 2, length, length)
  got = causal_attention(q, k, v)
  want = plain_attention(q, k, v, causal(2, length))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_1700_tokens_have_several_blocks_on_one_prefix():
  blocks = -(-1700 // attention.BLOCK_QUERIES)
  assert blocks > attention.MAX_PREFIXES
  assert 1700 % attention.BLOCK_QUERIES


@pytest.mark.parametrize('heads,kv_heads', [(4, 4), (6, 2), (5, 1)])
def test_query_heads_share_kv_heads_in_order(heads, kv_heads):
  q, k, v = draw(0, 1, 17, 17, heads, kv_heads)
  got = causal_attention(q, k, v)
  want = plain_attention(q, k, v, causal(1, 17))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


# 6 query heads share 2 kv heads: 3 queries make 9 rows, computed as one matmul;
# 1 query makes 3 rows, computed one by one.
@pytest.mark.parametrize('queries', [1, 3])
def test_two_segments_of_ragged_rows_are_one_softmax(queries):
  q, prompt_k, prompt_v = draw(1, 3, queries, 20)
  _, response_k, response_v = draw(2, 3, queries, 9)
  prompt_length_N, written = np.array([20, 1, 7]), 4
  prompt_NxT = np.broadcast_to(prompt_length_N[:, None], (3, queries))
  response_NxT = np.broadcast_to(written + 1 + np.arange(queries), (3, queries))
  seen = np.concatenate(
    [
      np.arange(20) < prompt_NxT[:, :, None],
      np.arange(9) < response_NxT[:, :, None],
    ],
    axis=-1,
  )

  got = segment_attention(
    q,
    [
      Segment(prompt_k, prompt_v, prompt_NxT),
      Segment(response_k, response_v, response_NxT),
    ],
  )

  want = plain_attention(
    q,
    np.concatenate([prompt_k, response_k], axis=-1),
    np.concatenate([prompt_v, response_v], axis=-1),
    seen,
  )
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_hidden_slots_have_no_influence_at_all():
  q, k, v = draw(3, 2, 1, 12)
  visible = jnp.full((2, 1), 5)
  got = segment_attention(q, [Segment(k, v, visible)])
  k[..., 5:], v[..., 5:] = 1e4, -1e4
  changed = segment_attention(q, [Segment(k, v, visible)])
  np.testing.assert_array_equal(got, changed)


def test_scores_far_apart_do_not_overflow():
  q, k, v = draw(4, 1, 6, 6)
  k *= 1e3
  got = causal_attention(q, k, v)
  want = plain_attention(q, k, v, causal(1, 6))
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


# 200 is a whole and a ragged block; 1700 also loops over several blocks.
@pytest.mark.parametrize('length', [5, 200, 1700])
def test_gradient_equals_that_of_the_plain_softmax(length):
  q, k, v = [jnp.asarray(x) for x in draw(5, 1, length, length, 4, 2)]

  def plain(q, k, v):
    score = jnp.einsum('nthd,nhds->nhts', q, jnp.repeat(k, 2, axis=1))
    seen = jnp.tril(jnp.ones((length, length), bool))
    score = jnp.where(seen, score, -jnp.inf)
    weight = jax.nn.softmax(score * q.shape[-1] ** -0.5)
    return jnp.einsum('nhts,nhds->nthd', weight, jnp.repeat(v, 2, axis=1))

  def total(f):
    return jax.jit(
      jax.grad(lambda *x: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))
    )

  got = total(causal_attention)(q, k, v)
  for mine, theirs in zip(got, total(plain)(q, k, v), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)


def test_gradient_in_half_precision_is_near_that_in_single():
  exact = [jnp.asarray(x) for x in draw(6, 1, 200, 200)]
  gradient = jax.jit(
    jax.grad(
      lambda *x: causal_attention(*x).astype(jnp.float32).sum(),
      argnums=(0, 1, 2),
    )
  )
  halves = gradient(*[x.astype(jnp.bfloat16) for x in exact])
  for half, full in zip(halves, gradient(*exact), strict=True):
    assert half.dtype == jnp.bfloat16
    gap = jnp.linalg.norm(half.astype(jnp.float32) - full)
    # bfloat16 has 8 bits: 2**-8 = 0.4 % for every rounding on the way.
    assert gap < 0.03 * jnp.linalg.norm(full)


@pytest.mark.slow
def test_the_scores_of_a_layer_are_not_kept_for_its_gradient():
  """At 1024 tokens, the unmasked halves of 4 heads' scores are 8.4 MB a layer.

  With `jax.checkpoint` around a block, one more layer took 10 MB, now 0.8 MB.
  """
  length, heads, dim = 1024, 4, 8
  shape = jax.ShapeDtypeStruct((1, length, heads, dim), jnp.float32)

  def temporary_bytes(layers):
    def stack(x):
      for _ in range(layers):
        kv = x.transpose(0, 2, 3, 1)
        x = jnp.sin(attention.attention(x, [Segment(kv, kv)]))
      return x.sum()

    compiled = jax.jit(jax.grad(stack)).lower(shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  scores_bytes = heads * length**2 // 2 * 4
  a_layer_more = (temporary_bytes(4) - temporary_bytes(2)) / 2
  assert a_layer_more < scores_bytes / 4
