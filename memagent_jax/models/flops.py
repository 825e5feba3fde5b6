"""What a model costs, by arithmetic: FLOPs of a turn, a text, an update.

A multiplication and an addition count as two. Norms, rotations and the softmax,
a few in a thousand, are left out, and so is whatever an implementation computes
and then masks.
"""

from memagent_jax.models.configs import (
  DualChunkAttention,
  ModelConfig,
  SinkAttention,
)


def turn_flops(
  config: ModelConfig, prompt_tokens: int, response_tokens: int
) -> float:
  """FLOPs of a prefill and of decoding a response, the head included.

  Args:
    config: the model; sliding windows cost less, dual chunks do not.
    prompt_tokens: length of the prompt.
    response_tokens: number of sampled tokens; the last one is never read.
  """
  read = prompt_tokens + max(response_tokens - 1, 0)
  return forward_flops(config, read, max(response_tokens, 1))


def forward_flops(config: ModelConfig, tokens: int, head_tokens: int) -> float:
  """FLOPs of reading a causal text, with the head on some of its tokens.

  Args:
    config: as in `turn_flops`.
    tokens: length of the text.
    head_tokens: number of tokens that get scores over the vocabulary.
  """
  c = config
  heads = c.head_dim * (
    2 * c.num_heads + 2 * c.num_kv_heads
  )  # q and o, k and v
  layer = c.embed_dim * heads + 3 * c.embed_dim * c.mlp_dim
  head = 2 * c.embed_dim * c.vocab_size * head_tokens
  return float(
    c.num_layers * (2 * layer * tokens + _attention_flops(c, tokens)) + head
  )


def update_flops(config: ModelConfig, tokens: int, head_tokens: int) -> float:
  """FLOPs of a forward pass and its gradient.

  The backward pass costs two forward passes: one for the gradients of the
  activations, one for those of the kernels, which is left out where adapters
  learn (as are the adapters' own, a hundredth). Recomputed layers add another.

  Args:
    config: the model; `remat` and `lora` matter.
    tokens: length of the text.
    head_tokens: as in `forward_flops`.
  """
  forward = forward_flops(config, tokens, head_tokens)
  flops = (4 if config.remat else 3) * forward
  if config.lora is not None:
    flops -= forward - config.num_layers * _attention_flops(config, tokens)
  return flops


def _attention_flops(c: ModelConfig, tokens: int) -> float:
  """FLOPs of scores and value sums, 2 head_dim products per head and pair."""
  return 4 * c.num_heads * c.head_dim * _pairs(c, tokens)


def _pairs(config: ModelConfig, tokens: int) -> float:
  """The number of (query, key) pairs in a causal text."""
  all_pairs = tokens * (tokens + 1) / 2
  if isinstance(config.long_attention, SinkAttention):
    window = config.max_positions
    beyond = max(tokens - window, 0)
    # A triangle up to the window, then `window` keys per query.
    return min(all_pairs, window * (window + 1) / 2 + beyond * window)
  assert config.long_attention is None or isinstance(
    config.long_attention, DualChunkAttention
  )
  return all_pairs
