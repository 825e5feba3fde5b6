"""GGUF files to a config and to Hugging Face tensors, one at a time.

`GGUFModel` reads the header at once and each tensor on request: it is memory-
mapped, dequantised by the `gguf` package and brought into Hugging Face's order.
The header is parsed here, not by `gguf.GGUFReader`, which keeps several numpy
objects per string and reports a truncated file as a failed reshape.
"""

import dataclasses
import math
import os
from pathlib import Path
import struct
from typing import Any, BinaryIO, NamedTuple

import gguf
import numpy as np

from memagent_jax.models import configs, rope
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.weights import tensor_layout

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
TYPES = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1')
_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
# struct format of every scalar metadata type.
_SCALARS = {
  0: 'B',
  1: 'b',
  2: 'H',
  3: 'h',
  4: 'I',
  5: 'i',
  6: 'f',
  7: '?',
  10: 'Q',
  11: 'q',
  12: 'd',
}
_STRING, _ARRAY = 8, 9
# A longer string or array of numbers means a damaged length field.
_MAX_VALUE_BYTES = 1 << 30
_TOP = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}
_LAYER = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}
_FACTOR = 'rope.scaling.factor'
# Keys of `rope.scaling`: those with a field in Hugging Face's form, those
# without meaning for inference, and those supported only at a neutral value.
_YARN_FIELDS = {
  'original_context_length': 'original_max_position_embeddings',
  'yarn_beta_fast': 'beta_fast',
  'yarn_beta_slow': 'beta_slow',
}
_IGNORED = ('factor', 'finetuned')
_NEUTRAL = {'attn_factor': 1.0, 'yarn_attn_factor': 1.0, 'yarn_ext_factor': 1.0}
_ROPE_FREQS = 'rope_freqs.weight'


class _Entry(NamedTuple):
  """Where one tensor lies; `shape` is in numpy's order, GGUF's reversed."""

  type_name: str
  shape: tuple[int, ...]
  offset_bytes: int  # from the start of the file
  size_bytes: int


class GGUFModel:
  """A GGUF file of a supported decoder.

  Attributes:
    metadata: every key of the header; arrays are lists.
    config: its ModelConfig.

  Raises:
    ValueError: not a GGUF file, truncated, of an unsupported architecture,
      tensor type or rope scaling, or with tensors that the decoder lacks.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)
    if not self.path.is_file():
      raise ValueError(f'{self.path}: no such file; expected a GGUF file.')
    size = self.path.stat().st_size
    with self.path.open('rb') as f:
      try:
        self.metadata, self._entries = _read_header(f, self.path, size)
      except (struct.error, UnicodeDecodeError) as e:
        raise ValueError(
          f'{self.path}: truncated or damaged in its header at byte '
          f'{f.tell()} of {size} ({e}). Get the file again.'
        ) from None
    self.config = self._config()
    self._check_tensors()

  def read(self, name: str) -> np.ndarray:
    """The tensor with a Hugging Face name, float32, in Hugging Face's order."""
    entry = self._entries[_gguf_name(name)]
    # As rows, which `gguf` dequantises a few at a time.
    rows = entry.shape[0] if len(entry.shape) > 1 else 1
    data = np.memmap(
      self.path,
      dtype=np.uint8,
      mode='r',
      offset=entry.offset_bytes,
      shape=(rows, entry.size_bytes // rows),
    )
    type_ = gguf.GGMLQuantizationType[entry.type_name]
    tensor = gguf.dequantize(data, type_).reshape(entry.shape)
    for part, heads in (
      ('q_proj', self.config.num_heads),
      ('k_proj', self.config.num_kv_heads),
    ):
      if self.config.architecture == 'llama' and part in name:
        return _unpermute(tensor, heads)
    return tensor

  def _get(self, key: str, default: Any = None) -> Any:
    """Metadata of the architecture; ValueError if a required key is absent."""
    full = f'{self.metadata["general.architecture"]}.{key}'
    value = self.metadata.get(full, default)
    if value is None:
      raise ValueError(f'{self.path}: metadata key {full} is missing.')
    return value

  def _config(self) -> ModelConfig:
    kind = self.metadata.get('general.architecture')
    if kind not in ARCHITECTURES:
      raise ValueError(
        f'{self.path}: architecture is {kind!r}; supported: '
        f'{", ".join(ARCHITECTURES)}.'
      )
    for needed in ('token_embd.weight', 'blk.0.attn_q.weight'):
      if needed not in self._entries:
        raise ValueError(f'{self.path}: tensor {needed} is missing.')
    heads = self._get('attention.head_count')
    width = self._get('embedding_length')
    head_dim = self._get('attention.key_length', width // heads)
    for key in ('attention.value_length', 'rope.dimension_count'):
      if self._get(key, head_dim) != head_dim:
        raise ValueError(
          f'{self.path}: {kind}.{key} is {self._get(key)}; supported: the head '
          f'dimension, {head_dim}.'
        )
    hf = {
      'model_type': kind,
      'vocab_size': self._entries['token_embd.weight'].shape[0],
      'hidden_size': width,
      'intermediate_size': self._get('feed_forward_length'),
      'num_hidden_layers': self._get('block_count'),
      'num_attention_heads': heads,
      'num_key_value_heads': self._get('attention.head_count_kv', heads),
      'head_dim': head_dim,
      'max_position_embeddings': self._get('context_length'),
      'rms_norm_eps': _decimal(self._get('attention.layer_norm_rms_epsilon')),
      'tie_word_embeddings': 'output.weight' not in self._entries,
      'rope_theta': _decimal(self._get('rope.freq_base', 10_000.0)),
      'rope_scaling': self._rope_scaling(),
    }
    config = dataclasses.replace(
      configs.from_hf_config(hf, str(self.path)),
      attention_bias='blk.0.attn_q.bias' in self._entries,
      attention_output_bias='blk.0.attn_output.bias' in self._entries,
    )
    return self._with_rope_freqs(config)

  def _rope_scaling(self) -> dict[str, Any] | None:
    """The metadata's rope scaling as Hugging Face's `rope_scaling`."""
    prefix = f'{self.metadata["general.architecture"]}.rope.scaling.'
    given = {
      key.removeprefix(prefix): value
      for key, value in self.metadata.items()
      if key.startswith(prefix)
    }
    kind = given.pop('type', 'none')
    if kind == 'none':
      return None
    if kind not in ('linear', 'yarn'):
      raise ValueError(
        f'{self.path}: rope scaling {kind!r}; supported: none, linear, yarn.'
      )
    scaling = {'rope_type': kind, 'factor': _decimal(self._get(_FACTOR))}
    for key, value in given.items():
      if key in _YARN_FIELDS:
        if kind == 'yarn':
          scaling[_YARN_FIELDS[key]] = value
      elif key not in _IGNORED and value != _NEUTRAL.get(key):
        raise ValueError(
          f'{self.path}: {prefix}{key} is {value}; supported besides type and '
          f'factor: {", ".join(_YARN_FIELDS)}.'
        )
    return scaling

  def _with_rope_freqs(self, config: ModelConfig) -> ModelConfig:
    """config with the llama3 scaling that the file stores as a tensor.

    The file has one divisor per frequency, not the four numbers behind them:
    these are assumed to be Llama 3's published ones, which is checked.
    """
    if _ROPE_FREQS not in self._entries:
      return config
    entry = self._entries[_ROPE_FREQS]
    divisors = np.fromfile(
      self.path, np.float32, math.prod(entry.shape), offset=entry.offset_bytes
    )
    scaled = dataclasses.replace(
      config,
      rope=dataclasses.replace(
        config.rope,
        rope_type='llama3',
        factor=float(divisors.max()),
        original_max_position_embeddings=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
      ),
    )
    length = np.zeros(1, np.int32)
    expected = rope.frequencies(config, length) / rope.frequencies(
      scaled, length
    )
    if divisors.shape != expected.shape[1:] or not np.allclose(
      divisors, expected[0], rtol=1e-3
    ):
      raise ValueError(
        f'{self.path}: tensor {_ROPE_FREQS} is not the published llama3 '
        'scaling (8192 positions, factors 1 and 4); import the Hugging Face '
        'directory, whose config.json has the numbers.'
      )
    return scaled

  def _check_tensors(self) -> None:
    """Raises ValueError unless the file holds exactly the decoder's tensors."""
    shapes = {
      _gguf_name(name): shape
      for name, shape in tensor_layout.tensor_shapes(self.config).items()
    }
    missing = [name for name in shapes if name not in self._entries]
    extra = [
      name
      for name in self._entries
      if name not in shapes and name != _ROPE_FREQS
    ]
    for what, names in (('missing', missing), ('unexpected', extra)):
      if names:
        raise ValueError(
          f'{self.path}: {len(names)} tensors {what}: {", ".join(names[:5])}; '
          f'expected {len(shapes)}, got {len(self._entries)}.'
        )
    for name, shape in shapes.items():
      if self._entries[name].shape != shape:
        raise ValueError(
          f'{self.path}: tensor {name}: got shape '
          f'{list(self._entries[name].shape)}, expected {list(shape)}.'
        )


def _gguf_name(name: str) -> str:
  """GGUF's name for a Hugging Face tensor."""
  if name in _TOP:
    return _TOP[name]
  layer, _, rest = name.removeprefix('model.layers.').partition('.')
  module, _, kind = rest.rpartition('.')
  return f'blk.{layer}.{_LAYER[module]}.{kind}'


def _unpermute(tensor: np.ndarray, heads: int) -> np.ndarray:
  """Reorders a head's rows from interleaved pairs to (first, second half)."""
  pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
  return pairs.swapaxes(1, 2).reshape(tensor.shape)


def _decimal(value: float) -> float:
  """The shortest decimal of a float32: 1e-05, where the file has 9.99999975e-06."""
  return float(str(np.float32(value)))


def _read_header(
  f: BinaryIO, path: Path, size: int
) -> tuple[dict[str, Any], dict[str, _Entry]]:
  """Metadata and tensor entries; see `GGUFModel` for what is refused."""
  magic, version = f.read(4), _scalar(f, 'I')
  if magic != _MAGIC or version not in _VERSIONS:
    raise ValueError(
      f'{path}: no GGUF file of version {_VERSIONS} (magic {magic!r}, version '
      f'{version}).'
    )
  tensor_count, key_count = _scalar(f, 'Q'), _scalar(f, 'Q')
  metadata = {}
  for _ in range(key_count):
    key = _string(f)
    metadata[key] = _value(f, _scalar(f, 'I'))
  found = []
  for _ in range(tensor_count):
    name = _string(f)
    dims = [_scalar(f, 'Q') for _ in range(_scalar(f, 'I'))]
    found.append((name, tuple(dims[::-1]), _scalar(f, 'I'), _scalar(f, 'Q')))
  align = metadata.get('general.alignment', gguf.GGUF_DEFAULT_ALIGNMENT)
  start = -(-f.tell() // align) * align
  entries = {
    name: _entry(path, size, name, shape, code, start + offset)
    for name, shape, code, offset in found
  }
  return metadata, entries


def _entry(
  path: Path,
  size: int,
  name: str,
  shape: tuple[int, ...],
  code: int,
  offset: int,
) -> _Entry:
  """The checked entry of one tensor."""
  try:
    type_ = gguf.GGMLQuantizationType(code)
    type_name = type_.name
  except ValueError:
    type_name = f'number {code}'
  if type_name not in TYPES:
    raise ValueError(
      f'{path}: tensor {name} has type {type_name}; supported: '
      f'{", ".join(TYPES)}.'
    )
  block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
  bytes_ = math.prod(shape) // block * block_bytes
  if offset + bytes_ > size:
    raise ValueError(
      f'{path}: truncated: tensor {name} has {max(0, size - offset)} bytes, '
      f'expected {bytes_}; the file has {size} bytes, expected at least '
      f'{offset + bytes_}. Get the file again.'
    )
  return _Entry(type_name, shape, offset, bytes_)


def _take(f: BinaryIO, count: int) -> bytes:
  """Exactly `count` bytes; struct.error if the file has fewer."""
  data = f.read(min(count, _MAX_VALUE_BYTES))
  if len(data) != count:
    raise struct.error(f'{count} bytes expected, {len(data)} there')
  return data


def _scalar(f: BinaryIO, code: str) -> Any:
  (value,) = struct.unpack(f'<{code}', _take(f, struct.calcsize(f'<{code}')))
  return value


def _string(f: BinaryIO) -> str:
  return _take(f, _scalar(f, 'Q')).decode('utf-8')


def _value(f: BinaryIO, code: int) -> Any:
  """One metadata value: a scalar, a string, or a list of either."""
  if code == _STRING:
    return _string(f)
  if code == _ARRAY:
    item, count = _scalar(f, 'I'), _scalar(f, 'Q')
    if item in _SCALARS:
      data = _take(f, count * struct.calcsize(f'<{_SCALARS[item]}'))
      return list(struct.unpack(f'<{count}{_SCALARS[item]}', data))
    return [_value(f, item) for _ in range(count)]
  if code not in _SCALARS:
    raise struct.error(f'unknown metadata type {code}')
  return _scalar(f, _SCALARS[code])
