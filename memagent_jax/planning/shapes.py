"""Shapes of published models, for planning without their files.

Source: `config.json` of each repository on the Hugging Face hub.
"""

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

from memagent_jax.io import assets
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.weights import huggingface


def _shape(
  embed: int,
  layers: int,
  heads: int,
  kv_heads: int,
  head_dim: int,
  mlp: int,
  **family: Any,
) -> ModelConfig:
  return ModelConfig(
    embed_dim=embed,
    num_layers=layers,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    mlp_dim=mlp,
    **family,
  )


_QWEN: dict[str, Any] = {
  'norm_epsilon': 1e-6,
  'rope': RopeConfig(rope_theta=1e6),
}
_QWEN2: dict[str, Any] = {
  **_QWEN,
  'architecture': 'qwen2',
  'vocab_size': 152_064,
  'max_positions': 32_768,
  'attention_bias': True,
  'tie_embeddings': False,
}
_QWEN3: dict[str, Any] = {
  **_QWEN,
  'architecture': 'qwen3',
  'vocab_size': 151_936,
  'max_positions': 40_960,
  'qk_norm': True,
}
_SMOLLM2: dict[str, Any] = {
  'architecture': 'llama',
  'vocab_size': 49_152,
  'max_positions': 8192,
  'norm_epsilon': 1e-5,
  'rope': RopeConfig(rope_theta=1e5),
}
# Configs by repository name, without the owner.
CONFIGS: Mapping[str, ModelConfig] = {
  'Qwen2.5-7B-Instruct': _shape(3584, 28, 28, 4, 128, 18_944, **_QWEN2),
  'Qwen2.5-14B-Instruct': _shape(5120, 48, 40, 8, 128, 13_824, **_QWEN2),
  'Qwen3-4B': _shape(2560, 36, 32, 8, 128, 9728, tie_embeddings=True, **_QWEN3),
  'Qwen3-8B': _shape(
    4096, 36, 32, 8, 128, 12_288, tie_embeddings=False, **_QWEN3
  ),
  'SmolLM2-135M-Instruct': _shape(576, 30, 9, 3, 64, 1536, **_SMOLLM2),
  'SmolLM2-360M-Instruct': _shape(960, 32, 15, 5, 64, 2560, **_SMOLLM2),
}


def config(name_or_dir: str | os.PathLike) -> ModelConfig:
  """The shape of a model; a published one needs no directory.

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
