"""Meshes, and the one table from logical axes to mesh axes.

Modules name their axes for what they are (`embed`, `heads`); this table alone
says which of them a mesh splits. It is checked where it is used, because a name
that is missing from the table would otherwise mean "replicate" without a word.
"""

from collections.abc import Mapping
import math

from flax import linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Logical axis of a param -> mesh axis, or None for replicated.
PARAM_RULES: Mapping[str, str | None] = {
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'head_dim': None,
  'kv_pair': None,
  'gate_up': None,
}
MESH_AXES = ('data', 'fsdp', 'tensor')


def make_mesh(shape: tuple[int, int, int], devices=None) -> Mesh:
  """Mesh over (data, fsdp, tensor) of the given sizes, axis type Auto.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if math.prod(shape) != len(devices):
    raise ValueError(
      f'mesh {dict(zip(MESH_AXES, shape, strict=True))} needs {math.prod(shape)} devices; '
      f'{len(devices)} are there.'
    )
  return jax.make_mesh(
    shape,
    MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
    devices=devices,
  )


def param_shardings(mesh: Mesh, abstract_params):
  """NamedSharding of every param of `transformer.abstract_params`.

  Raises:
    ValueError: an axis without a rule, two axes of one param on the same mesh
      axis, or a size the mesh does not divide; param, axis and both numbers are
      named.
  """

  def one(path, box):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return NamedSharding(mesh, _spec(mesh, name, box.names, box.value.shape))

  return jax.tree_util.tree_map_with_path(
    one, abstract_params, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def _spec(mesh, name, axes, shape) -> PartitionSpec:
  used: dict[str, str] = {}
  spec = []
  for axis, size in zip(axes, shape, strict=True):
    if axis not in PARAM_RULES:
      raise ValueError(
        f'{name}: axis {axis!r} has no rule; known: {sorted(PARAM_RULES)}.'
      )
    target = PARAM_RULES[axis]
    if target is not None:
      if target in used:
        raise ValueError(
          f'{name}: axes {used[target]!r} and {axis!r} are both split over '
          f'mesh axis {target!r}.'
        )
      if size % mesh.shape[target]:
        raise ValueError(
          f'{name}: axis {axis!r} of size {size} does not divide over mesh '
          f'axis {target!r} of size {mesh.shape[target]}.'
        )
      used[target] = axis
    spec.append(target)
  return PartitionSpec(*spec)
