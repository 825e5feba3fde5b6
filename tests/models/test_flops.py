"""FLOPs by arithmetic, against counts by hand and by the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from memagent_jax.models import flops as flops_lib
from memagent_jax.models import rope
from memagent_jax.models.configs import ModelConfig, RopeConfig, SinkAttention
from memagent_jax.models.transformer import Decoder, abstract_params

# embed 4, 1 layer, 2 query heads and 1 kv head of 2, mlp 3, 10 ids.
SMALL = ModelConfig('llama', 10, 4, 1, 2, 1, 2, 3, 16, 1e-5, RopeConfig())


def test_a_turn_by_hand():
  # Per token: q and o 4x4 each, k and v 4x2 each, mlp 3 times 4x3: 84 products.
  matrices = 2 * (16 + 16 + 8 + 8 + 36)
  # 5 tokens are read (3 + 3 sampled; the last is never read): 15 pairs, each with
  # 2 products of length 2 in 2 heads.
  pairs = 15 * 2 * (2 * 2 * 2)
  head = 3 * 2 * 4 * 10
  assert flops_lib.turn_flops(SMALL, 3, 3) == 5 * matrices + pairs + head


def test_the_compiler_counts_nearly_the_same():
  config = ModelConfig(
    'llama', 512, 256, 2, 8, 4, 32, 704, 256, 1e-5, RopeConfig()
  )
  params = jax.tree.map(
    lambda x: x.value,
    abstract_params(config),
    is_leaf=lambda x: hasattr(x, 'value'),
  )

  def read(params, ids_NxT):
    at = jnp.arange(ids_NxT.shape[1])[None]
    hidden, _ = Decoder(config).apply(
      {'params': params}, ids_NxT, at, rope.frequencies(config, at[:, -1])
    )
    return Decoder(config).apply(
      {'params': params}, hidden[:, -1], method=Decoder.logits
    )

  # One block of queries, computed whole: all 128 x 128 pairs.
  compiled = jax.jit(read).lower(
    params, jax.ShapeDtypeStruct((1, 128), jnp.int32)
  )
  masked = 4 * 8 * 32 * (128 * 127 / 2) * 2
  expected = flops_lib.turn_flops(config, 128, 1) + masked
  got = compiled.compile().cost_analysis()['flops']
  assert got == pytest.approx(expected, rel=0.02)


def test_a_window_makes_attention_linear():
  sinks = dataclasses.replace(SMALL, long_attention=SinkAttention(2))

  def attention(config, tokens):
    return flops_lib.turn_flops(config, tokens, 1) - flops_lib.turn_flops(
      dataclasses.replace(config, num_layers=0), tokens, 1
    )

  assert attention(sinks, 16) == attention(SMALL, 16)
  step = attention(sinks, 1001) - attention(sinks, 1000)
  assert step == attention(sinks, 101) - attention(sinks, 100)
