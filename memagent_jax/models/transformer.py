"""The decoder: Llama, Qwen2/Qwen2.5 and Qwen3 as one pure-functional module.

Four layers, each usable alone: `RMSNorm`, `Attention`, `Mlp`, `Block`; and
`Decoder`, which strings them together. Params are one small tree per layer
(`layer_0` ...) rather than one tree stacked over layers: a decode loop that
slices a stack copies every weight at every token.

The cache is an explicit argument and result, drawn here for one row of a
prompt of 5 tokens in 8 prompt slots and the 3rd decode step of 6:

    prompt    p p p p p . . .      written once, by prefill
    response  r r R . . .          slot `step` is written by this call
"""

import contextlib
import functools
import math
from typing import Any, NamedTuple

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from memagent_jax.models import kernels, long_attention, rope
from memagent_jax.models.attention import Segment, attention
from memagent_jax.models.configs import LoraConfig, ModelConfig
from memagent_jax.sharding import constrain, gather_kernel
from memagent_jax.structs import Params

# Keys and values of one layer, heads-major, slots last: (NxJxDxS, NxJxDxS).
LayerKV = tuple[jax.Array, jax.Array]


class Past(struct.PyTreeNode):
  """The KV cache a decode step sees.

  prompt: a LayerKV per layer with P slots; row n's first prompt_length_N[n]
    slots are real, at positions 0, 1, ...
  response: a LayerKV per layer with R slots; slot r of row n sits at position
    prompt_length_N[n] + r. All rows write the same slot at the same time.
  step: int32 scalar, response slots already written.
  """

  prompt: tuple[LayerKV, ...]
  response: tuple[LayerKV, ...]
  prompt_length_N: jax.Array
  step: jax.Array


class Positions(NamedTuple):
  """Positions of the tokens of a forward pass, and their rotary tables."""

  position_NxT: jax.Array
  # cos and sin [N, T, D]: for the keys, and for the queries of every view.
  keys: tuple[jax.Array, jax.Array]
  queries: tuple[tuple[jax.Array, jax.Array], ...]


def _positions(
  config: ModelConfig, frequency_NxD2: jax.Array, position_NxT: jax.Array
) -> Positions:
  tables = functools.partial(rope.tables, config, frequency_NxD2)
  if config.long_attention is None:
    both = tables(position_NxT)
    return Positions(position_NxT, both, (both,))
  return Positions(
    position_NxT,
    tables(long_attention.key_positions(config, position_NxT)),
    tuple(
      tables(view.query_NxT)
      for view in long_attention.views(config, position_NxT)
    ),
  )


def _param(
  module: nn.Module,
  name: str,
  init: nn.initializers.Initializer,
  axes: tuple[str, ...],
  shape: tuple[int, ...],
) -> jax.Array:
  """A parameter of the module, unboxed; the box names its axes."""
  boxed: Any = nn.with_logical_partitioning(init, axes)
  return module.param(name, boxed, shape)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis; float32 inside, x's dtype out."""

  epsilon: float
  axis_name: str = 'embed'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = _param(
      self, 'scale', nn.initializers.ones, (self.axis_name,), (x.shape[-1],)
    )
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(
      jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon
    )
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


class Linear(nn.Module):
  """x @ kernel (+ bias), where the kernel has any number of named axes.

  The first `inputs` axes of `shape` are contracted with the last ones of x.
  """

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  inputs: int = 1
  bias: bool = False
  lora: LoraConfig | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    out_shape, out_axes = self.shape[self.inputs :], self.axes[self.inputs :]
    fan_in = math.prod(self.shape[: self.inputs])
    kernel = _param(
      self,
      'kernel',
      nn.initializers.normal(fan_in**-0.5),
      self.axes,
      self.shape,
    )
    kernel = gather_kernel(kernel.astype(x.dtype), *self.axes)
    y = kernels.linear(x, kernel, self.inputs)
    if self.lora is not None and self.name in self.lora.targets:
      y = y + self._adapted(self.lora, x, fan_in)
    if self.bias:
      bias = _param(self, 'bias', nn.initializers.zeros, out_axes, out_shape)
      y = y + bias.astype(x.dtype)
    return y

  def _adapted(self, lora: LoraConfig, x: jax.Array, fan_in: int) -> jax.Array:
    """What the adapter adds: nothing, until `lora_b` has learned."""
    in_shape, out_shape = self.shape[: self.inputs], self.shape[self.inputs :]
    a = _param(
      self,
      'lora_a',
      nn.initializers.normal(fan_in**-0.5),
      (*self.axes[: self.inputs], 'rank'),
      (*in_shape, lora.rank),
    )
    b = _param(
      self,
      'lora_b',
      nn.initializers.zeros,
      ('rank', *self.axes[self.inputs :]),
      (lora.rank, *out_shape),
    )
    low = jnp.tensordot(x, a.astype(x.dtype), self.inputs)
    return lora.scale * jnp.tensordot(low, b.astype(x.dtype), 1)


class Attention(nn.Module):
  """Grouped-query attention with rotary positions and optional q/k norm."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_NxTxE: jax.Array,
    positions: Positions,
    cache: tuple[LayerKV, LayerKV] | None,
    past: Past | None,
  ) -> tuple[jax.Array, LayerKV]:
    c = self.config
    e, h, j, d = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
    q_NxTxHxD = Linear(
      (e, h, d),
      ('embed', 'heads', 'head_dim'),
      1,
      c.attention_bias,
      c.lora,
      name='q',
    )(x_NxTxE)
    kv = Linear(
      (e, 2, j, d),
      ('embed', 'kv_pair', 'kv_heads', 'head_dim'),
      1,
      c.attention_bias,
      c.lora,
      name='kv',
    )(x_NxTxE)
    k_NxTxJxD, v_NxTxJxD = kv[:, :, 0], kv[:, :, 1]
    if c.qk_norm:
      q_NxTxHxD = RMSNorm(c.norm_epsilon, 'head_dim', name='q_norm')(q_NxTxHxD)
      k_NxTxJxD = RMSNorm(c.norm_epsilon, 'head_dim', name='k_norm')(k_NxTxJxD)
    q_NxTxHxD = constrain(q_NxTxHxD, 'rows', 'tokens', 'heads', 'head_dim')
    k_NxTxJxD = constrain(k_NxTxJxD, 'rows', 'tokens', 'kv_heads', 'head_dim')
    v_NxTxJxD = constrain(v_NxTxJxD, 'rows', 'tokens', 'kv_heads', 'head_dim')
    q_views = [rope.rotate(q_NxTxHxD, *tables) for tables in positions.queries]
    k_NxTxJxD = rope.rotate(k_NxTxJxD, *positions.keys)
    k = k_NxTxJxD.transpose(0, 2, 3, 1)
    v = v_NxTxJxD.transpose(0, 2, 3, 1)
    if past is None or cache is None:
      segments, written = [Segment(k, v)], (k, v)
    else:
      segments, written = _extend(cache, k, v, past)
    if c.long_attention is None:
      out_NxTxHxD = attention(q_views[0], segments)
    elif past is None:
      out_NxTxHxD = long_attention.prefill(c, q_views, k, v)
    else:
      start_N = past.prompt_length_N
      out_NxTxHxD = long_attention.decode(
        c,
        q_views,
        segments,
        positions.position_NxT,
        [jnp.zeros_like(start_N), start_N],
      )
    out_NxTxHxD = constrain(out_NxTxHxD, 'rows', 'tokens', 'heads', 'head_dim')
    out_NxTxE = Linear(
      (h, d, e),
      ('heads', 'head_dim', 'embed'),
      2,
      c.attention_output_bias,
      c.lora,
      name='o',
    )(out_NxTxHxD)
    return out_NxTxE, written


def _extend(
  cache: tuple[LayerKV, LayerKV], k: jax.Array, v: jax.Array, past: Past
) -> tuple[list[Segment], LayerKV]:
  """The segments that queries see, and the response cache after the write.

  k, v [N,J,D,T] are written at slot `step` of the response.
  """
  (prompt_k, prompt_v), (response_k, response_v) = cache
  n, t = k.shape[0], k.shape[3]
  at = (0, 0, 0, past.step)
  response_k = jax.lax.dynamic_update_slice(
    response_k, k.astype(response_k.dtype), at
  )
  response_v = jax.lax.dynamic_update_slice(
    response_v, v.astype(response_v.dtype), at
  )
  in_prompt = jnp.broadcast_to(past.prompt_length_N[:, None], (n, t))
  in_response = jnp.broadcast_to(past.step + 1 + jnp.arange(t), (n, t))
  return [
    Segment(prompt_k, prompt_v, in_prompt),
    Segment(response_k, response_v, in_response),
  ], (response_k, response_v)


class Mlp(nn.Module):
  """SwiGLU: down(silu(gate(x)) * up(x)), gate and up in one matmul."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_NxTxE: jax.Array) -> jax.Array:
    e, f = self.config.embed_dim, self.config.mlp_dim
    lora = self.config.lora
    gate_up = Linear(
      (e, 2, f), ('embed', 'gate_up', 'mlp'), lora=lora, name='gate_up'
    )(x_NxTxE)
    hidden_NxTxF = constrain(kernels.swiglu(gate_up), 'rows', 'tokens', 'mlp')
    return Linear((f, e), ('mlp', 'embed'), lora=lora, name='down')(
      hidden_NxTxF
    )


class Block(nn.Module):
  """One pre-norm layer: attention, then the MLP, each added to the residual."""

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    x_NxTxE: jax.Array,
    positions: Positions,
    cache: tuple[LayerKV, LayerKV] | None,
    past: Past | None,
  ) -> tuple[jax.Array, LayerKV]:
    norm = self.config.norm_epsilon
    with jax.named_scope('attention'):
      y, written = Attention(self.config, name='attention')(
        RMSNorm(norm, name='attention_norm')(x_NxTxE),
        positions,
        cache,
        past,
      )
    x_NxTxE = constrain(x_NxTxE + y, 'rows', 'tokens', 'embed')
    with jax.named_scope('mlp'):
      y = Mlp(self.config, name='mlp')(RMSNorm(norm, name='mlp_norm')(x_NxTxE))
    return constrain(x_NxTxE + y, 'rows', 'tokens', 'embed'), written


class Decoder(nn.Module):
  """Token ids to hidden states; `logits` turns the ones that matter into scores.

  The head is separate because it runs over response tokens only: the logits of
  a whole 7K-token row of Qwen2.5-7B would be 4 GB.
  """

  config: ModelConfig

  def setup(self) -> None:
    c = self.config
    self.embedding = _param(
      self,
      'embedding',
      nn.initializers.normal(c.embed_dim**-0.5),
      ('vocab', 'embed'),
      (c.vocab_size, c.embed_dim),
    )
    block = nn.remat(Block) if c.remat else Block
    self.layers = [block(c, name=f'layer_{i}') for i in range(c.num_layers)]
    self.final_norm = RMSNorm(c.norm_epsilon)
    if not c.tie_embeddings:
      self.head = _param(
        self,
        'head',
        nn.initializers.normal(c.embed_dim**-0.5),
        ('vocab', 'embed'),
        (c.vocab_size, c.embed_dim),
      )

  def __call__(
    self,
    ids_NxT: jax.Array,
    position_NxT: jax.Array,
    frequency_NxD2: jax.Array,
    past: Past | None = None,
  ) -> tuple[jax.Array, tuple[LayerKV, ...]]:
    """Hidden states of the given tokens, and the keys and values they wrote.

    Args:
      ids_NxT: int32 token ids, right-padded.
      position_NxT: int32 positions; arange(T) for a row that starts at 0.
      frequency_NxD2: from `rope.frequencies`, for the row's prompt length.
      past: None for training and prefill (causal over the T tokens); in decode,
        the cache before these tokens.

    Returns:
      hidden_NxTxE after the final norm; one LayerKV per layer: the T tokens' own
      (past None), or the whole response cache with them written in.
    """
    c = self.config
    x_NxTxE = self.embedding[ids_NxT].astype(c.dtype)
    x_NxTxE = constrain(x_NxTxE, 'rows', 'tokens', 'embed')
    positions = _positions(c, frequency_NxD2, position_NxT)
    written = []
    for i, layer in enumerate(self.layers):
      cache = None if past is None else (past.prompt[i], past.response[i])
      x_NxTxE, kv = layer(x_NxTxE, positions, cache, past)
      written.append(kv)
    return self.final_norm(x_NxTxE), tuple(written)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float32 scores over the vocabulary, [N, ..., E] -> [N, ..., V]."""
    head = self.embedding if self.config.tie_embeddings else self.head
    scores = jnp.einsum(
      '...e,ve->...v',
      hidden,
      head.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    between = ['tokens'] * (scores.ndim - 2)
    return constrain(scores, 'rows', *between, 'vocab')


def hidden_states(
  config: ModelConfig, params: Params, *inputs: Any
) -> tuple[jax.Array, tuple[LayerKV, ...]]:
  """The result of `Decoder` with these params."""
  result: Any = Decoder(config).apply({'params': params}, *inputs)
  return result


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
  """`Decoder.logits` with these params."""
  result: Any = Decoder(config).apply(
    {'params': params}, hidden, method=Decoder.logits
  )
  return result


@functools.lru_cache(maxsize=8)
def abstract_params(config: ModelConfig) -> Params:
  """The params tree as `LogicallyPartitioned` boxes of ShapeDtypeStructs.

  Weight loading, shardings and init all derive from this one tree.
  """
  model = Decoder(config)

  def init(key: jax.Array) -> Params:
    ids_NxT = jnp.zeros((1, 1), jnp.int32)
    frequency = jnp.zeros((1, config.head_dim // 2))

    def everything(m: Decoder) -> jax.Array:
      hidden, _ = m(ids_NxT, ids_NxT, frequency)
      return m.logits(hidden)

    return nn.init(everything, model)(key)['params']

  with _without_mesh():
    # The key is abstract, too: the devices of a mesh may not be present.
    return jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
  """Random float32 params, unboxed; the same tree that weight loading fills."""
  model = Decoder(config)
  ids_NxT = jnp.zeros((1, 1), jnp.int32)
  frequency = jnp.zeros((1, config.head_dim // 2))
  with _without_mesh():
    params = jax.jit(model.init)(key, ids_NxT, ids_NxT, frequency)['params']
  return nn.meta.unbox(params)


def _without_mesh() -> contextlib.AbstractContextManager:
  """A context that hides any mesh: the single row of an init is not split."""
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
