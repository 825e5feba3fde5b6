"""Small GGUF files for the tests, written by the gguf package."""

import dataclasses

import gguf
import numpy as np
import tokenizers

from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.weights import tensor_layout

LLAMA = ModelConfig(
  architecture='llama',
  vocab_size=40,
  embed_dim=32,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=16,
  mlp_dim=64,
  max_positions=128,
  norm_epsilon=1e-5,
  rope=RopeConfig(rope_theta=100_000.0),
)
# LLAMA with rows for the tokenizer of `tokenizer_metadata`.
WITH_TOKENIZER = dataclasses.replace(LLAMA, vocab_size=300)


def tensors_of(config):
  """Random float32 tensors by their Hugging Face names."""
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(shape).astype(np.float32)
    for name, shape in tensor_layout.tensor_shapes(config).items()
  }


def permute(tensor, heads):
  """llama.cpp's order of a head's rows: first and second half interleaved."""
  rows = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, -1)
  return np.stack([rows[:, 0], rows[:, 1]], axis=2).reshape(tensor.shape)


def stored_names(config):
  """Hugging Face name -> GGUF name, as convert_hf_to_gguf writes it."""
  kind = {
    'llama': gguf.MODEL_ARCH.LLAMA,
    'qwen2': gguf.MODEL_ARCH.QWEN2,
    'qwen3': gguf.MODEL_ARCH.QWEN3,
  }[config.architecture]
  names = gguf.get_tensor_name_map(kind, config.num_layers)
  return {
    name: names.get_name(name, try_suffixes=('.weight', '.bias'))
    for name in tensor_layout.tensor_shapes(config)
  }


def write(path, config, tensors, quantised=None, metadata=None, extra=None):
  """A GGUF file by the gguf package.

  Args:
    path: file to write.
    config: config whose metadata to write.
    tensors: tensors by Hugging Face name, with rows in Hugging Face's order.
    quantised: a replacement: (Hugging Face name, raw bytes [rows, bytes], type).
    metadata: function of the writer that adds keys.
    extra: more tensors, by GGUF name.
  """
  writer = gguf.GGUFWriter(path, config.architecture)
  writer.add_context_length(config.max_positions)
  writer.add_embedding_length(config.embed_dim)
  writer.add_block_count(config.num_layers)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.norm_epsilon)
  writer.add_rope_freq_base(config.rope.rope_theta)
  if metadata is not None:
    metadata(writer)
  names = stored_names(config)
  for name, tensor in tensors.items():
    if quantised is not None and name == quantised[0]:
      writer.add_tensor(names[name], quantised[1], raw_dtype=quantised[2])
      continue
    if config.architecture == 'llama' and 'self_attn.q_proj' in name:
      tensor = permute(tensor, config.num_heads)
    if config.architecture == 'llama' and 'self_attn.k_proj' in name:
      tensor = permute(tensor, config.num_kv_heads)
    writer.add_tensor(names[name], tensor)
  for name, tensor in (extra or {}).items():
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def tokenizer_metadata(pre, **fields):
  """Metadata of a byte-level GGUF tokenizer with a control token and `<think>`."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  tokens = [*alphabet, '12', '123', '<|end|>', '<think>', '[PAD260]']
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': [1] * 258 + [3, 4, 5],
    'tokenizer.ggml.merges': ['1 2', '12 3'],
    'tokenizer.ggml.eos_token_id': 258,
    **fields,
  }


def write_with_tokenizer(path):
  """A GGUF file with a tokenizer like the default model's."""

  def tokenizer(writer):
    fields = tokenizer_metadata('smollm')
    writer.add_tokenizer_model(fields['tokenizer.ggml.model'])
    writer.add_tokenizer_pre(fields['tokenizer.ggml.pre'])
    writer.add_token_list(fields['tokenizer.ggml.tokens'])
    writer.add_token_types(fields['tokenizer.ggml.token_type'])
    writer.add_token_merges(fields['tokenizer.ggml.merges'])
    writer.add_eos_token_id(fields['tokenizer.ggml.eos_token_id'])
    writer.add_chat_template('{{ messages[0].content }}<|end|>')

  return write(
    path, WITH_TOKENIZER, tensors_of(WITH_TOKENIZER), metadata=tokenizer
  )
