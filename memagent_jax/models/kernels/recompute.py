"""Makes a backward pass recompute what it must not keep from the forward pass.

`jax.checkpoint` and `optimization_barrier` only ask for it. XLA:CPU (jaxlib
0.10) drops the barrier before it merges common subexpressions: outside a loop,
the second computation becomes the first one, whose result is then kept.
"""

from typing import Any

import jax
from jax import lax


def after(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """x, but not before `gradient`, which is what the backward pass receives.

  What is computed from the result then shares no subexpression with the forward
  pass. On CPU the price is adding a zero that XLA cannot see through: the
  result is NaN if the gradient's first element is not finite, but then the
  backward pass would return NaN anyway.
  """

  def add_zero(x: jax.Array, gradient: Any) -> jax.Array:
    first = gradient[(0,) * gradient.ndim]
    return x + (0.0 * first).astype(x.dtype)

  def barrier(x: jax.Array, gradient: Any) -> jax.Array:
    return lax.optimization_barrier((x, gradient))[0]

  return lax.platform_dependent(x, gradient, cpu=add_zero, default=barrier)
