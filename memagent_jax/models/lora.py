"""Low-rank adapters: added to a model, split from it, merged into it.

    Model -> add -> params with `lora_a`, `lora_b` next to the kernels they adapt
    params -> split -> (adapters, which learn; the rest, which is frozen) -> join
    params -> merged -> params of the plain model, to export

`transformer.Linear` says what an adapter computes.
"""

import dataclasses

import flax
from flax import linen as nn
import jax
import jax.numpy as jnp

from memagent_jax.models import transformer
from memagent_jax.models.configs import LoraConfig, ModelConfig
from memagent_jax.models.model import Model
from memagent_jax.structs import Params

_NAMES = ('lora_a', 'lora_b')


def add(model: Model, config: LoraConfig, seed: int = 0) -> Model:
  """The model with adapters that change nothing yet, in float32.

  Args:
    model: a model without adapters.
    config: rank, scale and targets.
    seed: seed of the first factors.

  Raises:
    ValueError: the model already has adapters.
  """
  if model.config.lora is not None:
    raise ValueError(f'model {model.name} has adapters already.')
  adapted = dataclasses.replace(model.config, lora=config)
  flat = flax.traverse_util.flatten_dict(model.params)
  boxes = flax.traverse_util.flatten_dict(transformer.abstract_params(adapted))
  keys = jax.random.split(jax.random.key(seed), len(boxes))
  for key, (path, box) in zip(keys, boxes.items(), strict=True):
    shape = box.value.shape
    if path[-1] == 'lora_a':
      fan_in = box.value.size // config.rank
      flat[path] = jax.random.normal(key, shape) * fan_in**-0.5
    elif path[-1] == 'lora_b':
      flat[path] = jnp.zeros(shape)
  # In the order of the module's own params.
  params = flax.traverse_util.unflatten_dict({p: flat[p] for p in boxes})
  return dataclasses.replace(model, config=adapted, params=params)


def split(params: Params) -> tuple[Params, Params]:
  """Params that learn, and frozen ones; without adapters all learn.

  Args:
    params: a params tree of arrays, boxes or shardings.
  """
  flat = flax.traverse_util.flatten_dict(params)
  adapters = {p: x for p, x in flat.items() if p[-1] in _NAMES}
  if not adapters:
    return params, {}
  rest = {p: x for p, x in flat.items() if p not in adapters}
  unflatten = flax.traverse_util.unflatten_dict
  return unflatten(adapters), unflatten(rest)


def join(learned: Params, frozen: Params) -> Params:
  """The params that `split` took apart."""
  if not frozen:
    return learned
  flatten = flax.traverse_util.flatten_dict
  flat = flatten(frozen) | flatten(learned)
  return flax.traverse_util.unflatten_dict(flat)


def unadapted(params: Params) -> Params:
  """Params with adapters that change nothing: the model before training."""
  flat = flax.traverse_util.flatten_dict(params)
  return flax.traverse_util.unflatten_dict(
    {
      path: jnp.zeros_like(x) if path[-1] == 'lora_b' else x
      for path, x in flat.items()
    }
  )


def merged(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
  """Config and params of the plain model that computes the same."""
  if config.lora is None:
    return config, params
  learned, frozen = split(params)
  flat = flax.traverse_util.flatten_dict(frozen)
  adapters = flax.traverse_util.flatten_dict(learned)
  for path, a in adapters.items():
    if path[-1] == 'lora_a':
      b = jnp.asarray(adapters[(*path[:-1], 'lora_b')], jnp.float32)
      kernel = flat[(*path[:-1], 'kernel')]
      change = config.lora.scale * jnp.tensordot(
        jnp.asarray(a, jnp.float32), b, 1
      )
      flat[(*path[:-1], 'kernel')] = (kernel + change).astype(kernel.dtype)
  plain = dataclasses.replace(config, lora=None)
  order = flax.traverse_util.flatten_dict(
    nn.meta.unbox(transformer.abstract_params(plain))
  )
  return plain, flax.traverse_util.unflatten_dict({p: flat[p] for p in order})
