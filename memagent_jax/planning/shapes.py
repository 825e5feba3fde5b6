"""Shapes of published models, for plans that are made without their files.

Source: `config.json` of each repository on the Hugging Face hub.
"""

from collections.abc import Mapping
import os
from pathlib import Path

from memagent_jax.io import assets
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.weights import huggingface


def _qwen2(
  embed: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int
) -> ModelConfig:
  return ModelConfig(
    architecture='qwen2',
    vocab_size=vocab,
    embed_dim=embed,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=embed // heads,
    mlp_dim=mlp,
    max_positions=32_768,
    norm_epsilon=1e-6,
    rope=RopeConfig(rope_theta=1e6),
    attention_bias=True,
    tie_embeddings=False,
  )


def _qwen3(embed: int, layers: int, mlp: int, tied: bool) -> ModelConfig:
  return ModelConfig(
    architecture='qwen3',
    vocab_size=151_936,
    embed_dim=embed,
    num_layers=layers,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=mlp,
    max_positions=40_960,
    norm_epsilon=1e-6,
    rope=RopeConfig(rope_theta=1e6),
    qk_norm=True,
    tie_embeddings=tied,
  )


def _smollm2(
  embed: int, layers: int, heads: int, kv_heads: int, mlp: int
) -> ModelConfig:
  return ModelConfig(
    architecture='llama',
    vocab_size=49_152,
    embed_dim=embed,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=embed // heads,
    mlp_dim=mlp,
    max_positions=8192,
    norm_epsilon=1e-5,
    rope=RopeConfig(rope_theta=1e5),
  )


# By the name of the repository, without its owner.
CONFIGS: Mapping[str, ModelConfig] = {
  'Qwen2.5-7B-Instruct': _qwen2(3584, 28, 28, 4, 18_944, 152_064),
  'Qwen2.5-14B-Instruct': _qwen2(5120, 48, 40, 8, 13_824, 152_064),
  'Qwen3-4B': _qwen3(2560, 36, 9728, tied=True),
  'Qwen3-8B': _qwen3(4096, 36, 12_288, tied=False),
  'SmolLM2-135M-Instruct': _smollm2(576, 30, 9, 3, 1536),
  'SmolLM2-360M-Instruct': _smollm2(960, 32, 15, 5, 2560),
}


def config(name_or_dir: str | os.PathLike) -> ModelConfig:
  """The shape of a model directory, which need not be there if it is published.

  Raises:
    ValueError: neither a model directory nor a published name.
  """
  path = assets.model(name_or_dir) or Path(name_or_dir)
  if (path / 'config.json').is_file():
    return huggingface.read_config(path)
  if path.name not in CONFIGS:
    raise ValueError(
      f'model {str(name_or_dir)!r}: no such directory, and no published shape of '
      f'that name; known: {", ".join(CONFIGS)}.'
    )
  return CONFIGS[path.name]
