"""GGUF files: every quantisation by hand, llama's permutation, and refusals."""

import dataclasses
import os
import struct

import gguf as gguf_package
import numpy as np
import pytest

from memagent_jax.models import rope
from memagent_jax.models.configs import RopeConfig
from memagent_jax.models.weights import gguf, huggingface
from tests.models.weights.gguf_files import LLAMA, tensors_of, write

QWEN2 = dataclasses.replace(
  LLAMA, architecture='qwen2', attention_bias=True, tie_embeddings=False
)
QWEN3 = dataclasses.replace(LLAMA, architecture='qwen3', qk_norm=True)


@pytest.mark.parametrize(
  'config', [LLAMA, QWEN2, QWEN3], ids=lambda c: c.architecture
)
def test_config_and_tensors_read_back(tmp_path, config):
  tensors = tensors_of(config)
  model = gguf.GGUFModel(write(tmp_path / 'm.gguf', config, tensors))
  assert model.config == config
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(model.read(name), tensor)
    assert model.read(name).dtype == np.float32


def test_permuted_biases_of_llama_are_undone(tmp_path):
  config = dataclasses.replace(
    LLAMA, attention_bias=True, attention_output_bias=True
  )
  tensors = tensors_of(config)
  model = gguf.GGUFModel(write(tmp_path / 'm.gguf', config, tensors))
  assert model.config == config
  for name in ('q_proj.bias', 'k_proj.bias', 'v_proj.bias', 'o_proj.bias'):
    name = f'model.layers.1.self_attn.{name}'
    np.testing.assert_array_equal(model.read(name), tensors[name])


def test_permutation_by_hand():
  # One head of 4 rows: llama.cpp stores Hugging Face's rows 0 2 1 3.
  stored = np.array([[0.0], [2.0], [1.0], [3.0]])
  np.testing.assert_array_equal(
    gguf._unpermute(stored, 1), [[0.0], [1.0], [2.0], [3.0]]
  )


def half(value):
  return np.float16(value).tobytes()


def blocks():
  """(type, bytes of one block of 32 weights, the 32 weights)."""
  nibbles = np.arange(32) % 16  # of weights 0..31
  packed = (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
  values = np.arange(-16, 16) * 0.25
  return [
    ('F32', values.astype('<f4').tobytes(), values),
    ('F16', values.astype('<f2').tobytes(), values),
    # bfloat16 is the upper half of a float32.
    ('BF16', values.astype('<f4').view('<u2')[1::2].tobytes(), values),
    (
      'Q8_0',
      half(0.5) + np.arange(-16, 16).astype(np.int8).tobytes(),
      np.arange(-16, 16) * 0.5,
    ),
    ('Q4_0', half(2.0) + packed, (nibbles - 8) * 2.0),
    ('Q4_1', half(2.0) + half(-3.0) + packed, nibbles * 2.0 - 3.0),
  ]


@pytest.mark.parametrize('block', blocks(), ids=lambda b: b[0])
def test_quantised_blocks_by_hand(tmp_path, block):
  type_name, raw, weights = block
  name = 'model.layers.0.mlp.gate_proj.weight'
  # [64, 32]: a row is one block; the second row differs from the first.
  rows = np.tile(np.frombuffer(raw, np.uint8), (64, 1))
  zero = np.frombuffer(blocks_of_zeros()[type_name], np.uint8)
  rows[1] = zero
  stored = (name, rows, gguf_package.GGMLQuantizationType[type_name])
  model = gguf.GGUFModel(
    write(tmp_path / 'm.gguf', LLAMA, tensors_of(LLAMA), stored)
  )
  tensor = model.read(name)
  assert tensor.shape == (64, 32)
  assert tensor.dtype == np.float32
  np.testing.assert_array_equal(tensor[0], weights)
  np.testing.assert_array_equal(tensor[1], np.zeros(32))
  np.testing.assert_array_equal(tensor[63], weights)


def blocks_of_zeros():
  return {type_name: bytes(len(raw)) for type_name, raw, _ in blocks()}


def test_params_from_gguf_equal_params_from_tensors(tmp_path):
  tensors = tensors_of(LLAMA)
  model = gguf.GGUFModel(write(tmp_path / 'm.gguf', LLAMA, tensors))
  params = huggingface.params_from_tensors(model.config, model.read)
  exported = dict(huggingface.tensors_from_params(LLAMA, params))
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(exported[name], tensor)


def test_an_unsupported_type_is_named(tmp_path):
  name = 'model.layers.0.mlp.gate_proj.weight'
  raw = np.zeros((64, 24), np.uint8)
  stored = (name, raw, gguf_package.GGMLQuantizationType.Q5_1)
  path = write(tmp_path / 'm.gguf', LLAMA, tensors_of(LLAMA), stored)
  with pytest.raises(
    ValueError,
    match=r'blk\.0\.ffn_gate\.weight has type Q5_1; supported: F32, F16, BF16,'
    r' Q8_0, Q4_0, Q4_1',
  ):
    gguf.GGUFModel(path)


def test_an_unsupported_architecture_is_named(tmp_path):
  writer = gguf_package.GGUFWriter(tmp_path / 'm.gguf', 'gemma3')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(ValueError, match="'gemma3'; supported: llama, qwen2, qw"):
    gguf.GGUFModel(tmp_path / 'm.gguf')


def test_a_truncated_file_names_tensor_and_bytes(tmp_path):
  path = write(tmp_path / 'm.gguf', LLAMA, tensors_of(LLAMA))
  size = path.stat().st_size
  os.truncate(path, size - 200)
  # The last tensors: ffn_up, [64, 32] float32, and ffn_norm, 128 bytes.
  with pytest.raises(
    ValueError,
    match=r'm\.gguf: truncated: tensor blk\.1\.ffn_up\.weight has 8120 bytes, '
    rf'expected 8192; the file has {size - 200} bytes',
  ):
    gguf.GGUFModel(path)


@pytest.mark.parametrize('size', [0, 3, 10, 30, 100, 300])
def test_a_file_truncated_in_its_header_is_refused(tmp_path, size):
  path = write(tmp_path / 'm.gguf', LLAMA, tensors_of(LLAMA))
  os.truncate(path, size)
  with pytest.raises(ValueError, match=r'm\.gguf: '):
    gguf.GGUFModel(path)


def test_no_gguf_file(tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    gguf.GGUFModel(tmp_path / 'absent.gguf')
  path = tmp_path / 'm.gguf'
  path.write_bytes(b'PK\3\4 some other file')
  with pytest.raises(ValueError, match=r'no GGUF file.*magic'):
    gguf.GGUFModel(path)
  # A string of 2^63 bytes: a damaged length, not memory to allocate.
  path.write_bytes(b'GGUF' + struct.pack('<IQQQ', 3, 0, 1, 1 << 63))
  with pytest.raises(ValueError, match='truncated or damaged in its header'):
    gguf.GGUFModel(path)


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
  tensors = tensors_of(LLAMA)
  name = 'model.layers.1.mlp.up_proj.weight'
  less = {k: v for k, v in tensors.items() if k != name}
  with pytest.raises(
    ValueError, match=r'1 tensors missing: blk\.1\.ffn_up\.weight'
  ):
    gguf.GGUFModel(write(tmp_path / 'less.gguf', LLAMA, less))
  extra = {'blk.0.ffn_gate_exps.weight': np.zeros((2, 2), np.float32)}
  with pytest.raises(
    ValueError, match=r'1 tensors unexpected: blk\.0\.ffn_gate_exps'
  ):
    gguf.GGUFModel(write(tmp_path / 'more.gguf', LLAMA, tensors, extra=extra))
  wrong = tensors | {name: np.zeros((63, 32), np.float32)}
  with pytest.raises(
    ValueError,
    match=r'blk\.1\.ffn_up\.weight: got shape \[63, 32\], expected \[64, 32\]',
  ):
    gguf.GGUFModel(write(tmp_path / 'wrong.gguf', LLAMA, wrong))


def test_rope_scaling_of_the_metadata(tmp_path):
  tensors = tensors_of(QWEN2)

  def linear(writer):
    writer.add_rope_scaling_type(gguf_package.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)

  model = gguf.GGUFModel(
    write(tmp_path / 'linear.gguf', QWEN2, tensors, metadata=linear)
  )
  assert model.config.rope == RopeConfig(
    rope_theta=100_000.0, rope_type='linear', factor=4.0
  )

  def yarn(writer):
    writer.add_rope_scaling_type(gguf_package.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_yarn_beta_fast(16.0)

  model = gguf.GGUFModel(
    write(tmp_path / 'yarn.gguf', QWEN2, tensors, metadata=yarn)
  )
  assert model.config.rope == RopeConfig(
    rope_theta=100_000.0,
    rope_type='yarn',
    factor=4.0,
    original_max_position_embeddings=32,
    beta_fast=16.0,
  )

  def longrope(writer):
    writer.add_rope_scaling_type(gguf_package.RopeScalingType.LONGROPE)

  with pytest.raises(
    ValueError, match="'longrope'; supported: none, linear, yarn"
  ):
    gguf.GGUFModel(
      write(tmp_path / 'long.gguf', QWEN2, tensors, metadata=longrope)
    )


def test_yarn_settings_without_a_counterpart_are_refused(tmp_path):
  def yarn(writer):
    writer.add_rope_scaling_type(gguf_package.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_rope_scaling_yarn_ext_factor(0.5)

  path = write(tmp_path / 'm.gguf', QWEN2, tensors_of(QWEN2), metadata=yarn)
  with pytest.raises(ValueError, match=r'rope\.scaling\.yarn_ext_factor'):
    gguf.GGUFModel(path)


def test_partial_rotary_is_refused(tmp_path):
  path = write(
    tmp_path / 'm.gguf',
    LLAMA,
    tensors_of(LLAMA),
    metadata=lambda writer: writer.add_rope_dimension_count(8),
  )
  with pytest.raises(ValueError, match=r'rope\.dimension_count is 8; .*16'):
    gguf.GGUFModel(path)


def test_llama3_scaling_is_recognised_from_its_tensor(tmp_path):
  # Wavelengths of theta 5e5 and head_dim 16, by the published recipe: below
  # 8192/4 unchanged, above 8192/1 divided by 32, blended in between.
  wavelength = 2 * np.pi * 5e5 ** (np.arange(0, 16, 2) / 16)
  blend = np.clip((8192 / wavelength - 1.0) / (4.0 - 1.0), 0, 1)
  divisors = 1 / ((1 - blend) / 32 + blend)
  assert divisors[0] == 1
  assert divisors[-1] == 32
  base = dataclasses.replace(LLAMA, rope=RopeConfig(rope_theta=5e5))

  def with_divisors(path, values):
    return gguf.GGUFModel(
      write(
        path,
        base,
        tensors_of(base),
        extra={'rope_freqs.weight': values.astype(np.float32)},
      )
    )

  config = with_divisors(tmp_path / 'm.gguf', divisors).config
  assert config.rope == RopeConfig(
    rope_theta=5e5,
    rope_type='llama3',
    factor=32.0,
    original_max_position_embeddings=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
  )
  length = np.zeros(1, np.int32)
  np.testing.assert_allclose(
    rope.frequencies(base, length) / rope.frequencies(config, length),
    divisors[None],
    rtol=1e-4,
  )
  with pytest.raises(ValueError, match=r'rope_freqs\.weight is not the publ'):
    with_divisors(tmp_path / 'other.gguf', divisors * 1.1)
