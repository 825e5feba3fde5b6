"""Rotary position embedding with the five scalings of Hugging Face configs.

`frequencies` is a pure function of the config and of each row's prompt length
(which only dynamic NTK looks at); `rotate` applies it at given positions.
"""

import math

import jax
import jax.numpy as jnp

from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.structs import Array


def frequencies(config: ModelConfig, prompt_length_N: Array) -> jax.Array:
  """Angles per position, float32 [N, D2 = D/2]; [1, D2] if rows do not differ.

  Dynamic NTK stretches the base to the row's *prompt* length. The caller keeps
  the result through decoding: re-deriving it as the row grows would leave the
  cached keys rotated by one base and the queries by another.

  Args:
    config: the model.
    prompt_length_N: int32, tokens of each prompt.

  Source: position interpolation arXiv 2306.15595; YaRN arXiv 2309.00071 (its
  appendix has dynamic NTK); llama3 as published with Llama 3.1.
  """
  rope, dim = config.rope, config.head_dim
  exponent = jnp.arange(0, dim, 2, dtype=jnp.float32) / dim
  if rope.rope_type == 'dynamic':
    window = config.max_positions
    length = jnp.maximum(prompt_length_N, window).astype(jnp.float32)
    stretch = rope.factor * length / window - (rope.factor - 1.0)
    base_N = rope.rope_theta * stretch ** (dim / (dim - 2))
    return base_N[:, None] ** -exponent[None]
  plain = 1.0 / (rope.rope_theta**exponent)
  if rope.rope_type == 'linear':
    plain = plain / rope.factor
  elif rope.rope_type == 'llama3':
    plain = _llama3(config, plain)
  elif rope.rope_type == 'yarn':
    plain = _yarn(config, plain)
  return plain[None]


def _window(config: ModelConfig) -> int:
  original = config.rope.original_max_position_embeddings
  return config.max_positions if original is None else original


def _llama3(config: ModelConfig, plain: jax.Array) -> jax.Array:
  """Interpolates long wavelengths, keeps short ones, blends those between."""
  rope = config.rope
  rotations = _window(config) * plain / (2 * math.pi)
  keep = (rotations - rope.low_freq_factor) / (
    rope.high_freq_factor - rope.low_freq_factor
  )
  keep = jnp.clip(keep, 0.0, 1.0)
  return plain * keep + plain / rope.factor * (1.0 - keep)


def _yarn(config: ModelConfig, plain: jax.Array) -> jax.Array:
  """Interpolates by dimension: a ramp between beta_fast and beta_slow turns."""
  rope, dim = config.rope, config.head_dim

  def dimension(rotations: float) -> float:
    ratio = _window(config) / (rotations * 2 * math.pi)
    return dim * math.log(ratio) / (2 * math.log(rope.rope_theta))

  low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
  if rope.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, dim - 1)
  span = high - low if high != low else 1e-3
  ramp = (jnp.arange(dim // 2, dtype=jnp.float32) - low) / span
  interpolate = jnp.clip(ramp, 0.0, 1.0)
  return plain * (1.0 - interpolate) + plain / rope.factor * interpolate


def amplitude(rope: RopeConfig) -> float:
  """Factor on cos and sin: YaRN's attention temperature, 1 elsewhere."""
  if rope.rope_type != 'yarn':
    return 1.0
  if rope.attention_factor is not None:
    return rope.attention_factor

  def mscale(weight: float) -> float:
    return 0.1 * weight * math.log(rope.factor) + 1.0

  if rope.mscale and rope.mscale_all_dim:
    return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
  return mscale(1.0)


def rotate(
  x_NxTxHxD: jax.Array, cos_NxTxD: jax.Array, sin_NxTxD: jax.Array
) -> jax.Array:
  """x with its halves (d, d + D/2) rotated; float32 inside, x's dtype out."""
  x = x_NxTxHxD.astype(jnp.float32)
  first, second = jnp.split(x, 2, axis=-1)
  turned = jnp.concatenate([-second, first], axis=-1)
  out = x * cos_NxTxD[:, :, None] + turned * sin_NxTxD[:, :, None]
  return out.astype(x_NxTxHxD.dtype)


def tables(
  config: ModelConfig, frequency_NxD2: jax.Array, position_NxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """cos and sin of every position, float32 [N, T, D] each."""
  angle = position_NxT[:, :, None].astype(jnp.float32) * frequency_NxD2[:, None]
  angle = jnp.concatenate([angle, angle], axis=-1)
  scale = amplitude(config.rope)
  return jnp.cos(angle) * scale, jnp.sin(angle) * scale
