"""Initial params: what is scaled, where heads look, what stays random."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from memagent_jax.models import initial, transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig

# Heads as in gin_configs/models/tiny.gin.
CONFIG = ModelConfig(
  *('qwen2', 64, 128, 3, 4, 4, 32, 48, 128, 1e-5, RopeConfig()),
  attention_bias=True,
)
ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1)
WITHOUT_BIASES = dataclasses.replace(ONE_LAYER, attention_bias=False)
GROUPED = dataclasses.replace(ONE_LAYER, num_heads=6, num_kv_heads=2)
SEED = 5
KEY = jax.random.key(SEED)


@functools.cache
def usual(config):
  return transformer.init_params(config, KEY)


@functools.cache
def local(config):
  return initial.init_for_copying(config, KEY)


def branches(config):
  return {
    f'layer_{i}/{name}/kernel'
    for i in range(config.num_layers)
    for name in ('attention/o', 'mlp/down')
  }


def named(params):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def attention_of_layer_0(config, params, ids_T):
  """Attention [H, T, T] from the definition of rotary attention, in NumPy."""
  layer = jax.tree.map(np.asarray, params['layer_0']['attention'])
  x = np.asarray(params['embedding'])[ids_T]
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_epsilon)
  q = np.einsum('te,ehd->thd', x, layer['q']['kernel'])
  k = np.einsum('te,ejd->tjd', x, layer['kv']['kernel'][:, 0])
  if config.attention_bias:
    q, k = q + layer['q']['bias'], k + layer['kv']['bias'][0]
  t, h, d = q.shape
  k = np.repeat(k, h // k.shape[1], axis=1)
  frequency = config.rope.rope_theta ** (-np.arange(0, d, 2) / d)
  turn = np.exp(1j * np.arange(t)[:, None] * frequency)[:, None]
  q, k = ((z[..., : d // 2] + 1j * z[..., d // 2 :]) * turn for z in (q, k))
  scores = np.einsum('thd,shd->hts', q, k.conj()).real / np.sqrt(d)
  weight = np.exp(scores) * np.tri(t)
  return weight / weight.sum(-1, keepdims=True)


def attention_by_distance(config, params):
  """Mean attention [H, 12] to the token 0, 1 ... 11 places back."""
  rng = np.random.default_rng(0)
  means = []
  for _ in range(8):
    ids = rng.integers(0, config.vocab_size, 64)
    weight = attention_of_layer_0(config, params, ids)
    means.append(
      [
        np.diagonal(weight, -back, axis1=1, axis2=2)[:, 12 - back :].mean(1)
        for back in range(12)
      ]
    )
  return np.mean(means, axis=0).T


@pytest.mark.parametrize('config', [CONFIG, GROUPED], ids=['all', 'grouped'])
@pytest.mark.slow
def test_head_h_of_the_first_layer_looks_h_plus_one_back(config):
  back = attention_by_distance(config, local(config))
  assert back.argmax(axis=1).tolist() == list(range(1, config.num_heads + 1))
  # With the usual initialisation no distance stands out.
  plain = attention_by_distance(CONFIG, usual(CONFIG))
  assert back.max(axis=1).min() > 1.5 * plain.max()


def test_without_biases_only_the_branches_are_scaled():
  before, after = named(usual(WITHOUT_BIASES)), named(local(WITHOUT_BIASES))
  assert after.keys() == before.keys()
  assert branches(WITHOUT_BIASES) < after.keys()
  for name, value in before.items():
    scale = np.float32(0.1 if name in branches(WITHOUT_BIASES) else 1)
    np.testing.assert_array_equal(after[name], scale * value, err_msg=name)
    assert after[name].dtype == np.float32


@pytest.mark.slow
def test_biases_change_queries_and_keys_of_the_first_two_layers_only():
  before, after = named(usual(CONFIG)), named(local(CONFIG))
  changed = {name for name in before if (before[name] != after[name]).any()}
  heads = {
    f'layer_{i}/attention/{name}'
    for i in (0, 1)
    for name in ('q/bias', 'kv/bias', 'q/kernel')
  }
  assert changed == branches(CONFIG) | heads
  key_bias, value_bias = after['layer_0/attention/kv/bias']
  assert key_bias.any() and not value_bias.any()


def test_half_of_the_second_layer_is_local():
  """Its heads 0 and 1 look where heads 1 and 3 of the first layer look."""
  layers = named(local(CONFIG))
  first, second = (f'layer_{i}/attention/' for i in (0, 1))
  np.testing.assert_array_equal(
    layers[second + 'q/bias'][:2], layers[first + 'q/bias'][[1, 3]]
  )
  np.testing.assert_array_equal(
    layers[second + 'kv/bias'][0, :2], layers[first + 'kv/bias'][0, :2]
  )
  for name in ('q/bias', 'kv/bias'):
    assert not layers[second + name][..., 2:, :].any()


def test_a_new_model_has_the_tokenizer_and_the_params_of_its_seed(
  tiny_tokenizer, tmp_path
):
  tiny_tokenizer.save(tmp_path)
  model = initial.new_model(WITHOUT_BIASES, tmp_path, SEED)
  assert model.config == WITHOUT_BIASES
  text = 'hello <|im_end|>'
  assert model.tokenizer.encode(text) == tiny_tokenizer.encode(text)
  jax.tree.map(
    np.testing.assert_array_equal, model.params, local(WITHOUT_BIASES)
  )
