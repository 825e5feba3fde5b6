"""Meshes, and the one place that maps logical axes to mesh axes.

Modules name their axes for what they are (`embed`, `heads`); only the tables
here say which of them a mesh splits. Every lookup is checked, because a name
missing from a table would otherwise silently mean "replicate".

    training   params over fsdp and tensor, rows over data x fsdp
    rollouts   params over tensor alone,    rows over data x fsdp

`make_reshard` moves params from one layout to the other, once a step.

No mesh axis splits a sequence. A row is never longer than the window, and a
step has thousands of rows: they fill every device long before one has to be
split, and attention over a split row would wait for keys from other devices.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np

MESH_AXES = ('data', 'fsdp', 'tensor')
AnyMesh = Mesh | AbstractMesh
Rules = Mapping[str, str | tuple[str, ...] | None]

# Logical axis of a param -> mesh axis; None: replicated.
TRAINING: Rules = {
  'vocab': 'tensor',
  'embed': 'fsdp',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'head_dim': None,
  'kv_pair': None,
  'gate_up': None,
  'rank': None,
}
# A decode step reads every weight for one token of each row: gathering the
# weights first would cost more than the step.
ROLLOUTS: Rules = {**TRAINING, 'embed': None}
# Logical axis of an activation or a cache, in training and rollouts alike.
ACTIVATIONS: Rules = {
  'rows': ('data', 'fsdp'),
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'mlp': 'tensor',
  'vocab': 'tensor',
  'tokens': None,
  'embed': None,
  'head_dim': None,
  'slots': None,
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices each mesh axis has; -1: all that remain."""

  # Copies of the params; each reads its own rows.
  data: int = 1
  # Shards of params and optimizer that are gathered layer by layer in training;
  # each reads its own rows too.
  fsdp: int = -1
  # Shards of every matmul: heads, MLP and vocabulary.
  tensor: int = 1

  def shape(self, devices: int) -> tuple[int, int, int]:
    """The size of each mesh axis on this number of devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [self.data, self.fsdp, self.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
      sizes[sizes.index(-1)] = devices // known
    if min(sizes) < 1 or math.prod(sizes) != devices:
      raise ValueError(
        f'mesh {dict(zip(MESH_AXES, sizes, strict=True))} does not fit '
        f'{devices} devices; the sizes have to multiply to that number, and one '
        'of them may be -1.'
      )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def make_mesh(config: MeshConfig, devices: Sequence | None = None) -> Mesh:
  """Mesh over (data, fsdp, tensor), of type Auto; enter it with `jax.set_mesh`.

  Args:
    config: sizes of its axes.
    devices: devices to use; None: all devices of this run.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  # An axis of 4 on a slice of 8 x 8 is half of a physical axis.
  grid = mesh_utils.create_device_mesh(
    config.shape(len(devices)), devices, allow_split_physical_axes=True
  )
  types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return Mesh(grid, MESH_AXES, axis_types=types)


def under_mesh(function: Callable) -> Callable:
  """Runs `function` under the mesh of its argument `mesh`, if not None."""

  @functools.wraps(function)
  def entered(*args: Any, mesh: MeshConfig | None = None, **kwargs: Any) -> Any:
    if mesh is None:
      return function(*args, mesh=None, **kwargs)
    with jax.set_mesh(make_mesh(mesh)):
      return function(*args, mesh=mesh, **kwargs)

  return entered


def param_shardings(
  mesh: AnyMesh, abstract_params: Any, rules: Rules = TRAINING
) -> Any:
  """NamedSharding of every param of `transformer.abstract_params`.

  Args:
    mesh: a Mesh or AbstractMesh.
    abstract_params: boxes that name the axes of each param.
    rules: TRAINING or ROLLOUTS.

  Raises:
    ValueError: an axis without a rule, two axes of one param on the same mesh
      axis, or a size the mesh does not divide; the message names param, axis
      and both numbers.
  """

  def one(path: tuple[Any, ...], box: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = _spec(mesh, name, box.names, box.value.shape, rules)
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(
    one, abstract_params, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )


def constrain(x: jax.Array, *axes: str) -> jax.Array:
  """x laid out over the current mesh as ACTIVATIONS says.

  Without a mesh, as on one device, x is returned unchanged.

  Args:
    x: an array under jit.
    *axes: a name for each axis of x.

  Raises:
    ValueError: as in `param_shardings`.
  """
  return _laid_out(x, 'activation', axes, ACTIVATIONS)


def gather_kernel(kernel: jax.Array, *axes: str) -> jax.Array:
  """A kernel gathered over all but its tensor shards, for a matrix product.

  Left to itself, the TPU compiler multiplies the shards of `fsdp` one by one as
  they arrive, and adds up the partial products in memory.

  Args:
    kernel: an array under jit.
    *axes: a name for each axis of the kernel.

  Raises:
    ValueError: as in `param_shardings`.
  """
  return _laid_out(kernel, 'kernel', axes, ROLLOUTS)


def num_shards(axis: str, mesh: AnyMesh | None = None) -> int:
  """Shards of an ACTIVATIONS axis on a mesh; None: the current mesh."""
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  target = ACTIVATIONS[axis]
  if mesh.empty or target is None:
    return 1
  targets = (target,) if isinstance(target, str) else target
  return math.prod(mesh.shape[name] for name in targets)


def platform() -> str:
  """The platform that programs are built for now: cpu, gpu or tpu.

  It is that of the current mesh, whose devices need not be present.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def shard_rows(tree: Any, axis: int = 0) -> Any:
  """Puts host arrays on the current mesh, splitting `axis` of each by rows.

  Every process passes the same arrays. Without a mesh they are unchanged.

  Raises:
    ValueError: a number of rows that the mesh does not divide.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return tree

  def one(x: Any) -> jax.Array:
    x = np.asarray(x)
    axes = ['rows' if i == axis else 'tokens' for i in range(x.ndim)]
    spec = _spec(mesh, 'batch', axes, x.shape, ACTIVATIONS)
    return jax.make_array_from_callback(
      x.shape, NamedSharding(mesh, spec), lambda index: x[index]
    )

  return jax.tree.map(one, tree)


def split_by_shard(tree: Any) -> Any:
  """Arrays of N rows as [S, N / S, ...]: the rows of each of the S shards."""
  shards = num_shards('rows')
  return jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), tree)


def take_rows(tree: Any, row_Sx: jax.Array) -> Any:
  """Takes rows within each shard of `split_by_shard` arrays, moving none."""
  take = jax.vmap(lambda x, row: x[row])
  return jax.tree.map(lambda x: take(x, row_Sx), tree)


def put_rows(tree: Any, row_Sx: jax.Array, new: Any) -> Any:
  """`split_by_shard` arrays with `new` in the given rows of each shard."""
  put = jax.vmap(lambda x, row, new: x.at[row].set(new))
  return jax.tree.map(lambda x, new: put(x, row_Sx, new), tree, new)


def replicate(tree: Any) -> Any:
  """Arrays on every device of the current mesh; unchanged without a mesh."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return tree
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def make_reshard(shardings: Any, dtype: str) -> Callable:
  """Makes the function that moves params from training to rollout layout.

  Args:
    shardings: target layout, from `param_shardings`; None: the current layout.
    dtype: dtype to cast matrices to; vectors, which are small, keep theirs.
  """

  def cast(x: jax.Array) -> jax.Array:
    return x if x.ndim < 2 else x.astype(dtype)

  return jax.jit(
    lambda params: jax.tree.map(cast, params), out_shardings=shardings
  )


def is_main() -> bool:
  """Whether this process is the one that writes and prints."""
  return jax.process_index() == 0


def to_host(tree: Any) -> Any:
  """Gathers arrays from the devices of all processes into NumPy arrays."""
  if jax.process_count() > 1:
    return multihost_utils.process_allgather(tree, tiled=True)
  return jax.device_get(tree)


def _laid_out(
  x: jax.Array, name: str, axes: Sequence[str], rules: Rules
) -> jax.Array:
  """x laid out over the current mesh; unchanged without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = _spec(mesh, name, axes, x.shape, rules)
  return jax.lax.with_sharding_constraint(x, spec)


def _spec(
  mesh: AnyMesh,
  name: str,
  axes: Sequence[str],
  shape: Sequence[int],
  rules: Rules,
) -> PartitionSpec:
  used: dict[str, str] = {}
  spec: list[str | tuple[str, ...] | None] = []
  for axis, size in zip(axes, shape, strict=True):
    if axis not in rules:
      raise ValueError(
        f'{name}: axis {axis!r} has no rule; known: {sorted(rules)}.'
      )
    targets = rules[axis]
    if targets is None:
      spec.append(None)
      continue
    parts = (targets,) if isinstance(targets, str) else targets
    for target in parts:
      if target in used:
        raise ValueError(
          f'{name}: axes {used[target]!r} and {axis!r} are both split over '
          f'mesh axis {target!r}.'
        )
      used[target] = axis
    count = math.prod(mesh.shape[target] for target in parts)
    if size % count:
      raise ValueError(
        f'{name}: axis {axis!r} of size {size} does not divide over mesh '
        f'{"axis" if len(parts) == 1 else "axes"} '
        f'{" x ".join(map(repr, parts))} of size {count}.'
      )
    spec.append(targets)
  return PartitionSpec(*spec)
