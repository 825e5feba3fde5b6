"""Which Hugging Face tensors each param of the decoder is made of, and how.

Import and export are the two directions of the one table in this file: `cut`
makes (a shard of) a param from its tensors, `split` takes a param apart again,
bit for bit.
"""

from collections.abc import Iterator
import functools
import math
import mmap
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig
from memagent_jax.structs import Params


class _Source(NamedTuple):
  """The tensors of one param; several are stacked along a new axis."""

  tensors: tuple[str, ...]
  # Number of leading axes of a kernel that the layer contracts; its tensor is
  # [outputs, inputs]. 0: the tensor is not transposed.
  inputs: int = 0


_TOP = {
  'embedding': _Source(('model.embed_tokens.weight',)),
  'head': _Source(('lm_head.weight',)),
  'final_norm/scale': _Source(('model.norm.weight',)),
}
_LAYER = {
  'attention_norm/scale': _Source(('input_layernorm.weight',)),
  'attention/q/kernel': _Source(('self_attn.q_proj.weight',), 1),
  'attention/q/bias': _Source(('self_attn.q_proj.bias',)),
  'attention/kv/kernel': _Source(
    ('self_attn.k_proj.weight', 'self_attn.v_proj.weight'), 1
  ),
  'attention/kv/bias': _Source(
    ('self_attn.k_proj.bias', 'self_attn.v_proj.bias')
  ),
  'attention/o/kernel': _Source(('self_attn.o_proj.weight',), 2),
  'attention/o/bias': _Source(('self_attn.o_proj.bias',)),
  'attention/q_norm/scale': _Source(('self_attn.q_norm.weight',)),
  'attention/k_norm/scale': _Source(('self_attn.k_norm.weight',)),
  'mlp_norm/scale': _Source(('post_attention_layernorm.weight',)),
  'mlp/gate_up/kernel': _Source(
    ('mlp.gate_proj.weight', 'mlp.up_proj.weight'), 1
  ),
  'mlp/down/kernel': _Source(('mlp.down_proj.weight',), 1),
}
# Axes along which a param stacks its tensors.
_STACKED = ('kv_pair', 'gate_up')


class Param(NamedTuple):
  """How one param and its tensors correspond."""

  names: tuple[str, ...]
  shape: tuple[int, ...]
  inputs: int
  stack_axis: int | None

  @property
  def part_shape(self) -> tuple[int, ...]:
    """The param's shape without its stacking axis."""
    if self.stack_axis is None:
      return self.shape
    return self.shape[: self.stack_axis] + self.shape[self.stack_axis + 1 :]

  @property
  def tensor_shape(self) -> tuple[int, ...]:
    """Shape of each of its tensors in a file."""
    part = self.part_shape
    if self.inputs:
      return math.prod(part[self.inputs :]), math.prod(part[: self.inputs])
    return (math.prod(part),) if self.names[0].endswith('.bias') else part

  def cut(
    self,
    tensors: list[np.ndarray],
    index: Any,
    dtype: np.dtype | str,
  ) -> np.ndarray:
    """A copy of `param[index]` in `dtype`, sharing no memory with `tensors`."""
    parts = [
      (t.T if self.inputs else t).reshape(self.part_shape) for t in tensors
    ]
    axis = self.stack_axis
    if axis is None:
      source = parts[0][index]
      out = _fresh(source.shape, dtype)
      out[...] = source
      return out
    index, picked = index[:axis] + index[axis + 1 :], index[axis]
    shards = [part[index] for part in parts[picked]]
    shape = shards[0].shape
    out = _fresh((*shape[:axis], len(shards), *shape[axis:]), dtype)
    for i, shard in enumerate(shards):
      out[(slice(None),) * axis + (i,)] = shard
    return out

  def split(self, param: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tensor) of each of its tensors; the inverse of `cut`."""
    parts = [param]
    if self.stack_axis is not None:
      parts = list(np.moveaxis(param, self.stack_axis, 0))
    for name, part in zip(self.names, parts, strict=True):
      tensor = part.reshape(
        self.tensor_shape[::-1] if self.inputs else self.tensor_shape
      )
      yield name, np.ascontiguousarray(tensor.T if self.inputs else tensor)


def _fresh(shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
  """A new array on pages of its own, which the system gets back when it dies.

  With malloc, the buffers of one model leave holes as large as half the model.
  """
  count = math.prod(shape)
  pages = mmap.mmap(
    -1,
    max(1, count * np.dtype(dtype).itemsize),
    flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
  )
  return np.frombuffer(pages, dtype, count).reshape(shape)


# Tracing the decoder for its shapes takes a second for 30 layers.
@functools.lru_cache(maxsize=4)
def param_table(config: ModelConfig) -> Params:
  """The params tree with a `Param` at every leaf; shared, so do not change it."""

  def one(path: tuple[Any, ...], box: Any) -> Param:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    layer, _, rest = name.partition('/')
    prefix, source = '', _TOP.get(name)
    if source is None:
      prefix = f'model.layers.{layer.removeprefix("layer_")}.'
      source = _LAYER[rest]
    stacked = [i for i, axis in enumerate(box.names) if axis in _STACKED]
    return Param(
      names=tuple(prefix + tensor for tensor in source.tensors),
      shape=box.value.shape,
      inputs=source.inputs,
      stack_axis=stacked[0] if stacked else None,
    )

  return jax.tree_util.tree_map_with_path(
    one,
    transformer.abstract_params(config),
    is_leaf=lambda x: isinstance(x, nn.Partitioned),
  )


def params_in_order(config: ModelConfig) -> list[Param]:
  """The table's leaves; layers in numeric order, as files keep them."""

  def key(param: Param) -> int:
    rest = param.names[0].removeprefix('model.layers.')
    return int(rest.partition('.')[0]) if rest != param.names[0] else -1

  leaves = jax.tree.leaves(
    param_table(config), is_leaf=lambda x: isinstance(x, Param)
  )
  return sorted(leaves, key=key)


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every tensor of the model, in the order of export."""
  return {
    name: param.tensor_shape
    for param in params_in_order(config)
    for name in param.names
  }
