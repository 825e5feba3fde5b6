"""Hugging Face model directories to params, and back.

    config.json ------------------> ModelConfig          read_config
    *.safetensors -> tensors -----> params               load_params
    params -> tensors ------------> a whole directory    save_model

Tensors pass through the host one param at a time: apart from the params
themselves, it never holds more than one param's worth of them.
"""

from collections.abc import Callable, Iterator
import json
import math
import os
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax.models import configs
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import safetensors_io, tensor_layout
from memagent_jax.models.weights.safetensors_io import (
  INDEX,
  SINGLE,
  read_json,
  shorten,
)
from memagent_jax.models.weights.tensor_layout import Param
from memagent_jax.structs import Params

DTYPES = ('float32', 'bfloat16', 'float16')
SHARD_BYTES = 4_000_000_000


def read_config(directory: str | os.PathLike) -> ModelConfig:
  """The ModelConfig of a model directory.

  Raises:
    ValueError: no such directory, no readable config.json in it, or an
      unsupported model; the message lists what is needed and supported.
  """
  path = Path(directory) / 'config.json'
  if not path.is_file():
    found = 'no such file' if path.parent.is_dir() else 'no such directory'
    raise ValueError(
      f'{path}: {found}. A model directory holds config.json, {SINGLE} (or '
      f'{INDEX} and its shards) and tokenizer.json; supported architectures: '
      f'{", ".join(configs.ARCHITECTURES)}.'
    )
  return configs.from_hf_config(read_json(path), source=str(path))


def params_from_tensors(
  config: ModelConfig,
  read: Callable[[str], np.ndarray],
  shardings: Params | None = None,
  dtype: str = 'float32',
) -> Params:
  """The params tree, unboxed, on device; one param's tensors are read at a time.

  Args:
    config: the model.
    read: tensor name -> array of any float dtype, which may be memory-mapped:
      the params never share its memory.
    shardings: tree of shardings as `sharding.param_shardings` makes it, or None
      for the default device. Only the shards of this process are cut.
    dtype: one of DTYPES.

  Raises:
    ValueError: a tensor's shape is not the one that the config implies.
  """
  check_dtype(dtype)
  table = tensor_layout.param_table(config)
  if shardings is None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(
      lambda _: device, table, is_leaf=lambda x: isinstance(x, Param)
    )

  def build(param: Param, sharding: jax.sharding.Sharding) -> jax.Array:
    tensors = [read(name) for name in param.names]
    for name, tensor in zip(param.names, tensors, strict=True):
      _check_shape(name, tensor.shape, param.tensor_shape)
    array = jax.make_array_from_callback(
      param.shape,
      sharding,
      lambda index: param.cut(tensors, index, jnp.dtype(dtype)),
    )
    # A pending transfer would keep its host copy while the next one starts.
    return array.block_until_ready()

  return jax.tree.map(
    build, table, shardings, is_leaf=lambda x: isinstance(x, Param)
  )


def check_dtype(dtype: str) -> None:
  """Raises ValueError unless `dtype` is one that weights are kept in."""
  if dtype not in DTYPES:
    raise ValueError(f'dtype is {dtype!r}; supported: {", ".join(DTYPES)}.')


def _check_shape(name: str, got: tuple, expected: tuple) -> None:
  if tuple(got) != expected:
    raise ValueError(
      f'tensor {name}: got shape {list(got)}, expected {list(expected)}; '
      'config.json and the weights do not belong together.'
    )


def tensors_from_params(
  config: ModelConfig, params: Params
) -> Iterator[tuple[str, np.ndarray]]:
  """(name, tensor) pairs in the order of `tensor_shapes`; undoes the import."""
  table = jax.tree.leaves(
    tensor_layout.param_table(config), is_leaf=lambda x: isinstance(x, Param)
  )
  arrays = dict(zip(table, jax.tree.leaves(params), strict=True))
  for param in tensor_layout.params_in_order(config):
    yield from param.split(np.asarray(arrays[param]))


def load_params(
  directory: str | os.PathLike,
  config: ModelConfig,
  shardings: Params | None = None,
  dtype: str = 'float32',
) -> Params:
  """The params tree of a directory's safetensors; see `params_from_tensors`.

  Raises:
    ValueError: see `open_tensors`.
  """
  return params_from_tensors(
    config, open_tensors(directory, config), shardings, dtype
  )


def open_tensors(
  directory: str | os.PathLike, config: ModelConfig
) -> Callable[[str], np.ndarray]:
  """A function that reads a directory's tensor by name, memory-mapped.

  Raises:
    ValueError: a tensor is missing, unexpected or of the wrong shape; a file is
      missing, truncated or damaged.
  """
  directory = Path(directory)
  entries = safetensors_io.open_directory(directory)
  expected = tensor_layout.tensor_shapes(config)
  missing = [name for name in expected if name not in entries]
  if missing:
    raise ValueError(
      f'{directory}: {len(missing)} tensors missing: {shorten(missing)}; '
      f'{len(expected)} are expected, {len(entries)} are there.'
    )
  extra = [
    name
    for name in entries
    if name not in expected and not _ignorable(name, config)
  ]
  if extra:
    raise ValueError(
      f'{directory}: {len(extra)} unexpected tensors: {shorten(extra)}; the '
      'model has parts that this decoder does not compute.'
    )
  for name, shape in expected.items():
    _check_shape(f'{name} in {entries[name].path}', entries[name].shape, shape)
  return lambda name: entries[name].read()


def _ignorable(name: str, config: ModelConfig) -> bool:
  """Whether a tensor repeats what the config or the embedding already says."""
  tied_head = name == 'lm_head.weight' and config.tie_embeddings
  return tied_head or name.endswith('rotary_emb.inv_freq')


def save_model(
  directory: str | os.PathLike,
  config: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  dtype: str = 'float32',
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a directory that transformers and `load_params` read; all or nothing.

  Args:
    directory: the target; must be absent or empty.
    config: the model.
    params: its unboxed params.
    tokenizer: its tokenizer.
    dtype: dtype of the files, one of DTYPES.
    shard_bytes: most bytes per file; weights above it are split over several (a
      larger tensor gets a file of its own).

  Raises:
    ValueError: the directory is not empty, or an unsupported dtype.
  """
  check_dtype(dtype)
  directory = Path(directory)
  check_free(directory)
  # Built next to its target and then renamed: a killed export leaves nothing
  # that looks like a model.
  partial = directory.parent / f'.{directory.name}.partial-{os.getpid()}'
  partial.mkdir(parents=True)
  try:
    _write_weights(partial, config, params, dtype, shard_bytes)
    _write_configs(partial, config, tokenizer, dtype)
    tokenizer.save(partial)
    os.replace(partial, directory)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def check_free(directory: Path) -> None:
  """Raises ValueError unless the directory is absent or empty."""
  if directory.exists() and (
    not directory.is_dir() or any(directory.iterdir())
  ):
    raise ValueError(
      f'{directory}: exists and is not an empty directory; remove it or name '
      'another.'
    )


def _write_weights(
  directory: Path,
  config: ModelConfig,
  params: Params,
  dtype: str,
  shard_bytes: int,
) -> None:
  shapes = tensor_layout.tensor_shapes(config)
  itemsize = jnp.dtype(dtype).itemsize
  shards: list[dict[str, tuple[int, ...]]] = [{}]
  used = 0
  for name, shape in shapes.items():
    size = math.prod(shape) * itemsize
    if shards[-1] and used + size > shard_bytes:
      shards.append({})
      used = 0
    shards[-1][name] = shape
    used += size
  tensors = tensors_from_params(config, params)
  weight_map: dict[str, str] = {}
  for i, shard in enumerate(shards):
    file = SINGLE
    if len(shards) > 1:
      file = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    # Each file takes its share of one stream of tensors.
    share = (next(tensors) for _ in range(len(shard)))
    safetensors_io.write_file(directory / file, shard, share, dtype)
    weight_map |= dict.fromkeys(shard, file)
  if len(shards) > 1:
    total = sum(math.prod(s) for s in shapes.values()) * itemsize
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    _write_json(directory / INDEX, index)


def _write_configs(
  directory: Path, config: ModelConfig, tokenizer: Tokenizer, dtype: str
) -> None:
  """Writes config.json and generation_config.json."""
  eos = tokenizer.eos_ids
  ids = {
    'bos_token_id': tokenizer.bos_id,
    'eos_token_id': eos[0] if len(eos) == 1 else list(eos) or None,
    'pad_token_id': tokenizer.pad_id,
  }
  hf = configs.to_hf_config(config) | ids | {'torch_dtype': dtype}
  _write_json(directory / 'config.json', hf)
  _write_json(directory / 'generation_config.json', ids)


def _write_json(path: Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
