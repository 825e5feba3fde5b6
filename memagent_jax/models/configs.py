"""Architecture configs of the supported decoders, and their Hugging Face form.

A `ModelConfig` holds everything the decoder needs; nothing else in the package
reads a `config.json`, except that `tokenizer` takes the eos ids. Llama
(SmolLM2), Qwen2/Qwen2.5 and Qwen3 differ in four flags only: attention bias,
output bias, q/k norm, and an explicit head_dim.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
ROPE_KINDS = ('default', 'linear', 'dynamic', 'yarn', 'llama3')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  """Rotary embedding: base, and the scaling that stretches it past training.

  Field names follow Hugging Face's `rope_parameters`, so that a config read
  from disk and one written in gin look alike.
  """

  # Base of the geometric series of wavelengths.
  rope_theta: float = 10_000.0
  # One of ROPE_KINDS: none, position interpolation, dynamic NTK, YaRN, Llama 3.
  rope_type: str = 'default'
  # Window extension factor of every kind but `default`.
  factor: float = 1.0
  # Window of the original training in tokens; None: the model's max_positions.
  original_max_position_embeddings: int | None = None
  # llama3: wavelengths beyond original/low_freq_factor are fully interpolated.
  low_freq_factor: float = 1.0
  # llama3: wavelengths below original/high_freq_factor are left alone.
  high_freq_factor: float = 4.0
  # yarn: rotations over the original window above which nothing is interpolated.
  beta_fast: float = 32.0
  # yarn: rotations below which everything is interpolated.
  beta_slow: float = 1.0
  # yarn: factor on cos and sin; None: the paper's 0.1 ln(factor) + 1.
  attention_factor: float | None = None
  # yarn, DeepSeek's form of the attention factor; None: not used.
  mscale: float | None = None
  mscale_all_dim: float | None = None
  # yarn: round the correction range to whole dimensions.
  truncate: bool = True

  def __post_init__(self) -> None:
    if self.rope_type not in ROPE_KINDS:
      raise ValueError(
        f'rope_type is {self.rope_type!r}; supported: {", ".join(ROPE_KINDS)}.'
      )
    if self.rope_type != 'default' and self.factor < 1.0:
      raise ValueError(
        f'rope factor is {self.factor}; {self.rope_type} needs a factor >= 1.'
      )
    if (
      self.rope_type == 'llama3'
      and self.high_freq_factor <= self.low_freq_factor
    ):
      raise ValueError(
        f'llama3 rope: high_freq_factor {self.high_freq_factor} must exceed '
        f'low_freq_factor {self.low_freq_factor}.'
      )


@dataclasses.dataclass(frozen=True)
class DualChunkAttention:
  """DCA: no distance exceeds the window, however long the text is.

  Source: arXiv 2402.17463.
  """

  # Tokens per chunk: at least half the window, three quarters in the paper.
  chunk_tokens: int


@dataclasses.dataclass(frozen=True)
class SinkAttention:
  """Every query sees the first tokens and as many of the latest as fit.

  Source: StreamingLLM, arXiv 2309.17453.
  """

  # Number of first tokens that stay visible; four in the paper.
  sinks: int = 4


# Kernels of a layer that can be adapted.
LORA_TARGETS = ('q', 'kv', 'o', 'gate_up', 'down')


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank updates of frozen kernels: W + alpha / rank * A B.

  Source: arXiv 2106.09685.
  """

  rank: int = 16
  alpha: float = 32.0
  targets: tuple[str, ...] = LORA_TARGETS

  def __post_init__(self) -> None:
    object.__setattr__(self, 'targets', tuple(self.targets))
    if self.rank < 1:
      raise ValueError(f'rank is {self.rank}; expected 1 or more.')
    unknown = sorted(set(self.targets) - set(LORA_TARGETS))
    if unknown or not self.targets:
      raise ValueError(
        f'targets {unknown or "none"}; choose from {", ".join(LORA_TARGETS)}.'
      )

  @property
  def scale(self) -> float:
    """The factor on A B."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and flavour of one decoder. Axis letters as in `structs.py`."""

  # One of ARCHITECTURES; decides nothing in the decoder, only the export.
  architecture: str
  vocab_size: int  # V
  embed_dim: int  # E
  num_layers: int  # L
  num_heads: int  # H
  num_kv_heads: int  # J
  head_dim: int  # D
  mlp_dim: int  # F
  # Window: prompt plus response tokens the model was trained to see.
  max_positions: int
  norm_epsilon: float
  rope: RopeConfig
  # Bias on q, k and v (Qwen2; Llama with attention_bias).
  attention_bias: bool = False
  # Bias on the attention output (Llama with attention_bias).
  attention_output_bias: bool = False
  # RMSNorm over head_dim on q and k before the rotation (Qwen3).
  qk_norm: bool = False
  # The output head is the transposed embedding.
  tie_embeddings: bool = True
  # Activations' dtype; params keep their own, softmax and log-probs are float32.
  dtype: str = 'float32'
  # Keep only the activations between layers for the gradient, and recompute
  # those within a layer: one more forward pass for far less memory.
  remat: bool = False
  # What queries see of texts beyond max_positions, a training-free baseline;
  # None: plain attention to all of it. Not part of an exported model.
  long_attention: DualChunkAttention | SinkAttention | None = None
  # Adapters of frozen kernels, see `lora`. An exported model has them merged
  # into its kernels.
  lora: LoraConfig | None = None

  def __post_init__(self) -> None:
    if self.architecture not in ARCHITECTURES:
      raise ValueError(
        f'architecture is {self.architecture!r}; '
        f'supported: {", ".join(ARCHITECTURES)}.'
      )
    if self.dtype not in DTYPES:
      raise ValueError(
        f'dtype is {self.dtype!r}; supported: {", ".join(DTYPES)}.'
      )
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads {self.num_heads} is not a multiple of num_kv_heads '
        f'{self.num_kv_heads}.'
      )
    if isinstance(self.long_attention, DualChunkAttention):
      # Otherwise chunks that are not adjacent could share a window.
      self._check_part('chunk_tokens', -(-self.max_positions // 2))
    elif isinstance(self.long_attention, SinkAttention):
      self._check_part('sinks', 1)
    if self.head_dim % 2:
      raise ValueError(f'head_dim {self.head_dim} is odd; rotary needs pairs.')

  def _check_part(self, name: str, least: int) -> None:
    value = getattr(self.long_attention, name)
    if not least <= value < self.max_positions:
      raise ValueError(
        f'{name} of the attention is {value}; expected at least {least} and '
        f'less than {self.max_positions}, the window.'
      )


def from_hf_config(hf: Mapping[str, Any], source: str) -> ModelConfig:
  """The ModelConfig of a parsed Hugging Face `config.json`.

  Reads transformers 4's `rope_theta` + `rope_scaling` and transformers 5's
  `rope_parameters`.

  Args:
    hf: the parsed JSON.
    source: where it came from, for error messages.

  Raises:
    ValueError: an unsupported model type or feature, or a missing field; the
      message names it and lists what is supported.
  """
  kind = hf.get('model_type')
  if kind not in ARCHITECTURES:
    raise ValueError(
      f'{source}: model_type is {kind!r}; supported: '
      f'{", ".join(ARCHITECTURES)} (any size).'
    )
  missing = [
    k
    for k in (
      'vocab_size',
      'hidden_size',
      'num_hidden_layers',
      'num_attention_heads',
      'intermediate_size',
    )
    if k not in hf
  ]
  if missing:
    raise ValueError(f'{source}: fields missing: {", ".join(missing)}.')
  _refuse_unsupported(hf, source)
  heads = hf['num_attention_heads']
  bias = bool(hf.get('attention_bias', kind == 'qwen2'))
  return ModelConfig(
    architecture=kind,
    vocab_size=hf['vocab_size'],
    embed_dim=hf['hidden_size'],
    num_layers=hf['num_hidden_layers'],
    num_heads=heads,
    num_kv_heads=hf.get('num_key_value_heads') or heads,
    head_dim=hf.get('head_dim') or hf['hidden_size'] // heads,
    mlp_dim=hf['intermediate_size'],
    max_positions=hf.get('max_position_embeddings', 2048),
    norm_epsilon=hf.get('rms_norm_eps', 1e-6),
    rope=_rope_from_hf(hf, source),
    attention_bias=bias,
    attention_output_bias=bias and kind != 'qwen2',
    qk_norm=kind == 'qwen3',
    tie_embeddings=bool(hf.get('tie_word_embeddings', False)),
  )


def _refuse_unsupported(hf: Mapping[str, Any], source: str) -> None:
  """Raises ValueError if the checkpoint needs what the decoder lacks."""
  if hf.get('hidden_act', 'silu') != 'silu':
    raise ValueError(
      f'{source}: hidden_act is {hf["hidden_act"]!r}; supported: silu.'
    )
  if hf.get('mlp_bias'):
    raise ValueError(f'{source}: mlp_bias is true; supported: false.')
  if hf.get('use_sliding_window'):
    raise ValueError(
      f'{source}: use_sliding_window is true; supported: full attention.'
    )
  if hf.get('quantization_config'):
    raise ValueError(
      f'{source}: quantised weights (quantization_config); supported: '
      'float32, float16 and bfloat16 safetensors, or a GGUF file.'
    )


def _rope_from_hf(hf: Mapping[str, Any], source: str) -> RopeConfig:
  scaling = dict(hf.get('rope_parameters') or hf.get('rope_scaling') or {})
  kind = (
    scaling.pop('rope_type', None) or scaling.pop('type', None) or 'default'
  )
  scaling.pop('type', None)
  theta = scaling.pop('rope_theta', None) or hf.get('rope_theta', 10_000.0)
  if scaling.pop('partial_rotary_factor', 1.0) != 1.0:
    raise ValueError(
      f'{source}: partial_rotary_factor is not 1; supported: full rotary.'
    )
  known = {f.name for f in dataclasses.fields(RopeConfig)}
  unknown = sorted(set(scaling) - known)
  if unknown:
    raise ValueError(
      f'{source}: unknown rope fields {unknown}; supported: {sorted(known)}.'
    )
  # None in the file means "not given": the field keeps its own default.
  given = {k: v for k, v in scaling.items() if v is not None}
  if kind in ROPE_KINDS and kind != 'default' and 'factor' not in given:
    raise ValueError(
      f'{source}: rope_type {kind} without a factor; expected a number >= 1 '
      '(the window it was extended to / the original window).'
    )
  try:
    return RopeConfig(rope_theta=float(theta), rope_type=kind, **given)
  except ValueError as e:
    raise ValueError(f'{source}: {e}') from None


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
  """The Hugging Face `config.json` of `config`, without its token ids.

  Writes the rope settings in both forms, so that transformers 4, transformers 5
  and other engines read the same model.
  """
  rope = {
    k: v
    for k, v in dataclasses.asdict(config.rope).items()
    if v != getattr(RopeConfig(), k)
  }
  rope |= {
    'rope_type': config.rope.rope_type,
    'rope_theta': config.rope.rope_theta,
  }
  if config.rope.rope_type != 'default':
    rope['factor'] = config.rope.factor
  if config.rope.rope_type == 'llama3':
    rope |= {
      'low_freq_factor': config.rope.low_freq_factor,
      'high_freq_factor': config.rope.high_freq_factor,
    }
  scaling = {k: v for k, v in rope.items() if k != 'rope_theta'}
  return {
    'architectures': [ARCHITECTURES[config.architecture]],
    'model_type': config.architecture,
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'intermediate_size': config.mlp_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'max_position_embeddings': config.max_positions,
    'rms_norm_eps': config.norm_epsilon,
    'hidden_act': 'silu',
    'attention_bias': config.attention_bias,
    'attention_dropout': 0.0,
    'tie_word_embeddings': config.tie_embeddings,
    'initializer_range': 0.02,
    'use_cache': True,
    'rope_theta': config.rope.rope_theta,
    'rope_scaling': None if config.rope.rope_type == 'default' else scaling,
    'rope_parameters': rope,
  }
