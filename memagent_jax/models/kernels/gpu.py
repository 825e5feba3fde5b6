"""Attention on GPUs."""

import jax
import jax.numpy as jnp

from memagent_jax.models.kernels.per_device import on_each_device


def causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Causal attention by cuDNN, which supports only float16 and bfloat16.

  Arguments and result are as in `tpu.causal`; float32 uses XLA's own attention.
  """
  half = q.dtype in (jnp.bfloat16, jnp.float16)

  def one(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    n, j, g, t, d = q.shape
    out = jax.nn.dot_product_attention(
      q.transpose(0, 3, 1, 2, 4).reshape(n, t, j * g, d),
      k.transpose(0, 3, 1, 2),
      v.transpose(0, 3, 1, 2),
      scale=1.0,
      is_causal=True,
      implementation='cudnn' if half else 'xla',
    )
    return out.reshape(n, t, j, g, d).transpose(0, 2, 3, 1, 4)

  return on_each_device(one, q, k, v)
