"""Params to train from scratch, in a state from which copying is learned fast.

    ModelConfig -> init_for_copying: random, small branches, local heads -> Model

For thousands of steps two things keep a small decoder from learning to copy: at
the usual scale its branches drown out the embedding of the current token, and
no head looks at previous tokens. Both are remedied here; all else is learned.
"""

from collections.abc import Sequence
import os

import jax
import jax.numpy as jnp

from memagent_jax.io import assets
from memagent_jax.models import rope, transformer
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import Params

# Factor on the output projections of attention and MLP.
_BRANCH_SCALE = 0.1
# Norm of a local head's query and key bias, and factor on its query kernel.
_BIAS_NORM = 7.0
_CONTENT_SCALE = 0.1


def new_model(
  config: ModelConfig, tokenizer_directory: str | os.PathLike, seed: int = 0
) -> Model:
  """A model to train from scratch, with a tokenizer by name or directory."""
  directory = assets.model(tokenizer_directory) or tokenizer_directory
  return Model(
    'new',
    config,
    init_for_copying(config, jax.random.key(seed)),
    Tokenizer.from_directory(directory),
  )


def init_for_copying(config: ModelConfig, key: jax.Array) -> Params:
  """Random float32 params with small branches and, given biases, local heads.

  Head h of the first layer starts out attending to the token h + 1 places back,
  head h in the first half of the second layer to the one 2 h + 2 places back:
  its query and key biases are the same vector, rotated apart by that distance.
  Configs without `attention_bias` get only the small branches.

  Args:
    config: the model.
    key: typed PRNG key.
  """
  params = transformer.init_params(config, key)
  for i in range(config.num_layers):
    layer = params[f'layer_{i}']
    layer['attention']['o']['kernel'] *= _BRANCH_SCALE
    layer['mlp']['down']['kernel'] *= _BRANCH_SCALE
  if config.attention_bias:
    heads = range(1, config.num_heads + 1)
    _make_heads_local(config, params['layer_0']['attention'], heads)
    if config.num_layers > 1:
      heads = range(2, config.num_heads + 1, 2)
      _make_heads_local(config, params['layer_1']['attention'], heads)
  return params


def _make_heads_local(
  config: ModelConfig, attention: Params, distances: Sequence[int]
) -> None:
  """Makes the first heads look back by the given distances in tokens."""
  heads, dim = len(distances), config.head_dim
  bias_D = jnp.full((dim,), _BIAS_NORM * dim**-0.5)
  # A query rotated back by a distance matches the key that many places before.
  position_1xH = -jnp.asarray(distances)[None]
  frequency = rope.frequencies(config, jnp.ones((1,), jnp.int32))
  cos, sin = rope.tables(config, frequency, position_1xH)
  query_1xHx1xD = jnp.broadcast_to(bias_D, (1, heads, 1, dim))
  q, kv = attention['q'], attention['kv']
  rotated_HxD = rope.rotate(query_1xHx1xD, cos, sin)[0, :, 0]
  q['bias'] = q['bias'].at[:heads].set(rotated_HxD)
  q['kernel'] = q['kernel'].at[:, :heads].multiply(_CONTENT_SCALE)
  # The key heads that these query heads share.
  shared = config.num_heads // config.num_kv_heads
  kv['bias'] = kv['bias'].at[0, : -(-heads // shared)].set(bias_D)
