"""Attention variants against a NumPy reference that only knows distances."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models import long_attention, rope
from memagent_jax.models.attention import BLOCK_QUERIES
from memagent_jax.models.configs import (
  DualChunkAttention,
  ModelConfig,
  RopeConfig,
  SinkAttention,
)
from memagent_jax.models.transformer import Decoder, init_params
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.tokens import pad_rows

WINDOW = 48
PLAIN = ModelConfig(
  architecture='llama',
  vocab_size=61,
  embed_dim=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=32,
  max_positions=WINDOW,
  norm_epsilon=1e-5,
  rope=RopeConfig(rope_theta=100.0),
)
VARIANTS = {
  'dual chunk': DualChunkAttention(chunk_tokens=36),
  'dual chunk of half': DualChunkAttention(chunk_tokens=24),
  'sinks': SinkAttention(sinks=4),
}


def config(name):
  return dataclasses.replace(PLAIN, long_attention=VARIANTS[name])


def distance(config, i, j):
  """Distance of key j as query i sees it, by the papers; None: not seen."""
  variant, window = config.long_attention, config.max_positions
  if isinstance(variant, SinkAttention):
    # The cache holds the sinks and the latest tokens, numbered by their slots.
    held = [*range(variant.sinks)]
    held += range(max(variant.sinks, i + 1 - (window - variant.sinks)), i + 1)
    held = sorted({k for k in held if k <= i})
    return len(held) - 1 - held.index(j) if j in held else None
  if j > i:
    return None
  size, local = variant.chunk_tokens, window - variant.chunk_tokens
  apart = i // size - j // size
  key = j % size
  if apart == 0:
    return i % size - key
  if apart == 1 and i % size < local:
    return size + i % size - key
  return window - 1 - key


def reference(config, q_TxHxD, k_TxJxD, v_TxJxD, queries):
  """float64, one head and one query at a time; queries turn, keys stay."""
  t, heads, dim = q_TxHxD.shape
  group = heads // k_TxJxD.shape[1]
  exponent = np.arange(0, dim, 2) / dim
  speed = PLAIN.rope.rope_theta**-exponent

  def turned(x, d):
    first, second = np.split(x, 2)
    cos, sin = np.cos(d * speed), np.sin(d * speed)
    return np.concatenate(
      [first * cos - second * sin, second * cos + first * sin]
    )

  out = np.zeros((len(queries), heads, dim))
  for row, i in enumerate(queries):
    seen = [(j, distance(config, i, j)) for j in range(t)]
    seen = [(j, d) for j, d in seen if d is not None]
    for h in range(heads):
      score = np.array(
        [turned(q_TxHxD[i, h], d) @ k_TxJxD[j, h // group] for j, d in seen]
      )
      weight = np.exp(score / np.sqrt(dim))
      weight /= weight.sum()
      out[row, h] = sum(
        w * v_TxJxD[j, h // group]
        for w, (j, _) in zip(weight, seen, strict=True)
      )
  return out


def check_prefill(variant, length, queries):
  """Compares these queries of a random text with the reference."""
  rng = np.random.default_rng(length)
  q = rng.normal(size=(1, length, 4, 8))
  k, v = rng.normal(size=(2, 1, length, 2, 8))
  at = jnp.arange(length)[None]
  frequency = rope.frequencies(variant, jnp.array([length]))

  def turned(x, position):
    return rope.rotate(
      jnp.asarray(x, jnp.float32), *rope.tables(variant, frequency, position)
    )

  got = long_attention.prefill(
    variant,
    [turned(q, view.query_NxT) for view in long_attention.views(variant, at)],
    turned(k, long_attention.key_positions(variant, at)).transpose(0, 2, 3, 1),
    jnp.asarray(v, jnp.float32).transpose(0, 2, 3, 1),
  )

  want = reference(variant, q[0], k[0], v[0], queries)
  np.testing.assert_allclose(got[0, queries], want, rtol=0, atol=1e-5)


# 150 and 300 tokens are three and six windows; 300 is also several blocks.
@pytest.mark.parametrize(
  'length', [1, WINDOW, 150, pytest.param(300, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('name', VARIANTS)
def test_prefill_equals_the_reference(name, length):
  check_prefill(config(name), length, np.arange(length))


def test_blocks_within_one_chunk_see_all_earlier_ones():
  variant = dataclasses.replace(
    PLAIN, max_positions=192, long_attention=DualChunkAttention(BLOCK_QUERIES)
  )
  borders = [0, 127, 128, 129, 255, 256, 300, 383, 384, 511, 512, 550]
  check_prefill(variant, 551, np.array(borders))


@functools.partial(jax.jit, static_argnums=0)
def hidden(variant, params, ids_NxT):
  lengths = jnp.full((ids_NxT.shape[0],), ids_NxT.shape[1])
  return Decoder(variant).apply(
    {'params': params},
    ids_NxT,
    jnp.broadcast_to(jnp.arange(ids_NxT.shape[1]), ids_NxT.shape),
    rope.frequencies(variant, lengths),
  )[0]


@pytest.fixture(scope='module')
def params():
  # Large enough that attention is peaked, so that what a query sees matters.
  return jax.tree.map(lambda x: 1.5 * x, init_params(PLAIN, jax.random.key(0)))


@pytest.mark.parametrize('name', VARIANTS)
def test_a_text_within_the_window_is_read_as_by_plain_attention(name, params):
  ids = jax.random.randint(jax.random.key(1), (2, WINDOW), 0, 61)
  got, plain = hidden(config(name), params, ids), hidden(PLAIN, params, ids)
  # Rounding, relative to the largest state: views are summed separately.
  assert np.abs(got - plain).max() < 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize('name', ['dual chunk', 'sinks'])
def test_one_token_beyond_the_window_it_is_not(name, params):
  ids = jax.random.randint(jax.random.key(1), (2, WINDOW + 1), 0, 61)
  got = hidden(config(name), params, ids)
  plain = hidden(PLAIN, params, ids)
  within = np.abs(got[:, :WINDOW] - plain[:, :WINDOW]).max()
  assert within < 1e-5 * np.abs(plain).max()
  assert np.abs(got[:, WINDOW] - plain[:, WINDOW]).max() > 1e-3


# Rows end within the window, at a chunk's border, and beyond both; responses
# cross borders.
@pytest.mark.parametrize('name', ['dual chunk', 'sinks'])
@pytest.mark.slow
def test_decoded_log_probs_are_those_of_reading_the_whole_text(name, params):
  variant = config(name)
  rng = np.random.default_rng(3)
  prompts = [rng.integers(0, 61, n).tolist() for n in (20, 72, 150)]
  keys = decode.row_keys(
    0, jnp.arange(3, dtype=jnp.uint32), jnp.zeros(3, jnp.int32)
  )
  response = jax.jit(
    lambda p: decode.generate(
      variant, p, pad_rows(prompts, 160), SamplingConfig(40, 1.0), (), keys
    )
  )(params)

  for n, prompt in enumerate(prompts):
    answer = np.asarray(response.ids_NxR[n])
    text = jnp.asarray([*prompt, *answer])[None]
    states = hidden(variant, params, text)[0, len(prompt) - 1 : -1]
    logits = Decoder(variant).apply(
      {'params': params}, states, method=Decoder.logits
    )
    want = jax.nn.log_softmax(logits)[np.arange(40), answer]
    np.testing.assert_allclose(response.logprob_NxR[n], want, atol=1e-4)


@pytest.mark.parametrize(
  'variant,expected',
  [
    (DualChunkAttention(WINDOW), 'at least 24 and less than 48'),
    # Chunks 0 and 2 would fit into the window, but not at their true distances.
    (DualChunkAttention(23), 'at least 24 and less than 48'),
    (SinkAttention(WINDOW), 'at least 1 and less than 48'),
    (SinkAttention(0), 'at least 1 and less than 48'),
  ],
)
def test_a_variant_that_does_not_suit_the_window_is_refused(variant, expected):
  with pytest.raises(ValueError, match=expected):
    dataclasses.replace(PLAIN, long_attention=variant)
