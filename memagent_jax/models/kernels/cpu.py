"""The forms in which XLA:CPU runs the decoder's operations fastest.

Each computes the same as one line of jnp, which its docstring quotes. `linear`
and `swiglu` serve accelerators as well, where they cost nothing; `matmul` takes
the plain form there.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax import sharding
from memagent_jax.models.kernels import recompute

# Number of rows up to which products with vectors beat one with a matrix.
_FEW_ROWS = 8


def linear(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
  """tensordot(x, kernel, inputs) as a product of two matrices.

  With two axes to sum over, XLA:CPU transposes copies of both operands for the
  kernel's gradient (12 % of a block's time).
  """
  fan_in = math.prod(kernel.shape[:inputs])
  y = x.reshape(-1, fan_in) @ kernel.reshape(fan_in, -1)
  return y.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


@jax.custom_vjp
def swiglu(gate_up_NxTx2xF: jax.Array) -> jax.Array:
  """silu(gate) * up, [N, T, F], with a gradient that keeps only the argument.

  Left to itself, JAX saves two more [N, T, F] arrays and pads the two halves of
  the gradient one by one, which makes the MLP 8 % slower on CPU.
  """
  return jax.nn.silu(gate_up_NxTx2xF[:, :, 0]) * gate_up_NxTx2xF[:, :, 1]


def _swiglu_forward(gate_up_NxTx2xF: jax.Array) -> tuple[jax.Array, jax.Array]:
  return swiglu(gate_up_NxTx2xF), gate_up_NxTx2xF


def _swiglu_backward(
  gate_up_NxTx2xF: jax.Array, d_NxTxF: jax.Array
) -> tuple[jax.Array]:
  gate_up_NxTx2xF = recompute.after(gate_up_NxTx2xF, d_NxTxF)
  gate, up = gate_up_NxTx2xF[:, :, 0], gate_up_NxTx2xF[:, :, 1]
  sigmoid = jax.nn.sigmoid(gate)
  d_gate = d_NxTxF * up * sigmoid * (1 + gate * (1 - sigmoid))
  d_up = d_NxTxF * gate * sigmoid
  if sharding.num_shards('mlp') > 1:
    # (2, F) merged into one axis has no layout where F is split.
    return (jnp.stack([d_gate, d_up], axis=2),)
  # The same as `stack`, and faster on CPU.
  d = jnp.concatenate([d_gate, d_up], axis=-1)
  return (d.reshape(gate_up_NxTx2xF.shape),)


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def matmul(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum(subscripts, x, y) in float32; on CPU, a few rows one by one.

  XLA:CPU packs both operands of a matrix product, which for the 3 to 7 query
  rows that share a kv head in a decode step costs more than the product itself;
  its product with a vector reads the cache in place (1.6x faster per decode
  step at batch 8 and 1K of context).

  Args:
    subscripts: `r` is axis 2 of x and of the result, and not an axis of y.
    x: R rows for each entry of the leading axes.
    y: the matrices.
  """

  def at_once(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)

  def one_by_one(x: jax.Array, y: jax.Array) -> jax.Array:
    one = subscripts.replace('r', '')
    rows = [
      jnp.einsum(one, x[:, :, r], y, preferred_element_type=jnp.float32)
      for r in range(x.shape[2])
    ]
    return jnp.stack(rows, axis=2)

  if x.shape[2] > _FEW_ROWS:
    return at_once(x, y)
  return lax.platform_dependent(x, y, cpu=one_by_one, default=at_once)
