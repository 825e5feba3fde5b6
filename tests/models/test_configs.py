"""Hugging Face configs: both rope forms, the round trip, and refusals."""

import dataclasses
import json

import pytest

from memagent_jax.models.configs import (
  ARCHITECTURES,
  ModelConfig,
  RopeConfig,
  from_hf_config,
  to_hf_config,
)

SMALL = {
  'vocab_size': 100,
  'hidden_size': 64,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 96,
  'max_position_embeddings': 512,
}
CONFIG = ModelConfig('llama', 100, 64, 2, 4, 2, 16, 96, 512, 1e-6, RopeConfig())


def read(kind='llama', **fields):
  return from_hf_config({'model_type': kind, **SMALL, **fields}, 'here')


@pytest.mark.parametrize(
  ('kind', 'biases', 'qk_norm'),
  [
    ('llama', (False, False), False),
    ('qwen2', (True, False), False),
    ('qwen3', (False, False), True),
  ],
)
def test_an_architecture_is_its_flags(kind, biases, qk_norm):
  config = read(kind)
  assert (config.attention_bias, config.attention_output_bias) == biases
  assert config.qk_norm == qk_norm
  assert config.head_dim == 16


def test_llama_with_attention_bias_has_it_on_the_output_too():
  config = read(attention_bias=True)
  assert config.attention_bias and config.attention_output_bias


def test_defaults_where_the_file_is_silent():
  assert read('qwen3', head_dim=128).head_dim == 128
  assert read(num_key_value_heads=None).num_kv_heads == 4
  assert not read().tie_embeddings
  assert read(head_dim=None).head_dim == 16


@pytest.mark.parametrize(
  'fields',
  [
    {
      'rope_theta': 5e5,
      'rope_scaling': {'type': 'linear', 'factor': 4.0},
    },
    {
      'rope_theta': 5e5,
      'rope_scaling': {'rope_type': 'linear', 'factor': 4.0},
    },
    {
      'rope_parameters': {
        'rope_type': 'linear',
        'factor': 4.0,
        'rope_theta': 5e5,
      }
    },
  ],
  ids=['transformers 4, old', 'transformers 4', 'transformers 5'],
)
def test_the_forms_of_a_rope_are_one(fields):
  assert read(**fields).rope == RopeConfig(5e5, 'linear', 4.0)


def test_no_scaling_is_the_default_rope():
  assert read(rope_theta=1e6, rope_scaling=None).rope == RopeConfig(1e6)


@pytest.mark.parametrize(
  'rope',
  [
    RopeConfig(1e6),
    RopeConfig(1e4, 'linear', 2.0),
    RopeConfig(1e4, 'dynamic', 4.0, original_max_position_embeddings=256),
    RopeConfig(1e4, 'yarn', 4.0, beta_fast=16.0, attention_factor=1.25),
    RopeConfig(1e4, 'yarn', 4.0, truncate=False),
    # Values that equal our defaults may not be other engines' defaults.
    RopeConfig(1e4, 'llama3', 8.0, 256, 1.0, 4.0),
  ],
  ids=lambda rope: rope.rope_type,
)
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_round_trip_in_either_form(architecture, rope):
  config = dataclasses.replace(
    CONFIG,
    architecture=architecture,
    rope=rope,
    attention_bias=architecture == 'qwen2',
    qk_norm=architecture == 'qwen3',
  )
  written = json.loads(json.dumps(to_hf_config(config)))
  assert from_hf_config(written, 'here') == config
  old = {k: v for k, v in written.items() if k != 'rope_parameters'}
  assert from_hf_config(old, 'here') == config
  new = {
    k: v for k, v in written.items() if k not in ('rope_theta', 'rope_scaling')
  }
  assert from_hf_config(new, 'here') == config


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'model_type': 'mamba'}, r"'mamba'; supported: llama, qwen2, qwen3"),
    ({'model_type': None}, 'model_type is None'),
    ({'hidden_act': 'gelu'}, "hidden_act is 'gelu'; supported: silu"),
    ({'mlp_bias': True}, 'mlp_bias'),
    ({'use_sliding_window': True}, 'use_sliding_window'),
    ({'quantization_config': {'bits': 4}}, 'quantised.*GGUF'),
    ({'rope_scaling': {'type': 'longrope', 'factor': 2.0}}, 'longrope'),
    ({'rope_scaling': {'type': 'yarn'}}, 'yarn without a factor'),
    ({'rope_scaling': {'type': 'linear', 'factor': 0.5}}, 'factor is 0.5'),
    (
      {'rope_parameters': {'rope_type': 'default', 'short_factor': [1]}},
      'short_factor',
    ),
    (
      {'rope_parameters': {'partial_rotary_factor': 0.5}},
      'partial_rotary_factor',
    ),
    ({'num_key_value_heads': 3}, 'num_heads 4 is not a multiple'),
  ],
)
def test_what_the_decoder_lacks_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    from_hf_config({'model_type': 'llama', **SMALL, **fields}, 'here')


def test_missing_fields_are_named_together():
  with pytest.raises(ValueError, match=r'here: .*hidden_size.*intermediate'):
    from_hf_config({'model_type': 'llama', 'vocab_size': 3}, 'here')


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'architecture': 'gpt2'}, 'gpt2'),
    ({'dtype': 'float16'}, 'float16'),
    ({'head_dim': 15}, 'odd'),
  ],
)
def test_a_config_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **fields)
