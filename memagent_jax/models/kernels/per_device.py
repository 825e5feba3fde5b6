"""Runs a kernel on each device's own rows and heads."""

from collections.abc import Callable
from typing import Any

import jax

from memagent_jax import sharding


def on_each_device(function: Callable[..., Any], *arrays: jax.Array) -> Any:
  """Applies `function` to each device's own rows and heads, if a mesh is set.

  Args:
    function: from arrays like these to one array or several [rows, heads, ...].
    *arrays: [rows, heads, ...], or [rows].
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(*arrays)
  rows, heads = sharding.ACTIVATIONS['rows'], sharding.ACTIVATIONS['kv_heads']
  specs = tuple(
    jax.P(rows, heads) if x.ndim > 1 else jax.P(rows) for x in arrays
  )
  return jax.shard_map(
    function,
    in_specs=specs,
    out_specs=jax.P(rows, heads),
    check_vma=False,
  )(*arrays)
