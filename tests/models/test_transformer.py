"""Properties of the decoder that hold for any weights."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models import rope, transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.transformer import Decoder, Past
from memagent_jax.sharding import TRAINING


def model(**fields):
  """A tiny decoder with every feature on, except for `fields`."""
  return ModelConfig(
    **{
      'architecture': 'qwen3',
      'vocab_size': 48,
      'embed_dim': 16,
      'num_layers': 2,
      'num_heads': 4,
      'num_kv_heads': 2,
      'head_dim': 8,
      'mlp_dim': 24,
      'max_positions': 256,
      'norm_epsilon': 1e-6,
      'rope': RopeConfig(rope_theta=100.0),
      'attention_bias': True,
      'attention_output_bias': True,
      'qk_norm': True,
      'tie_embeddings': False,
    }
    | fields
  )


def random_params(config, seed=0):
  """Params without zero biases or norms of ones; drawn in NumPy, for speed."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape).astype(leaf.dtype)
    kind = path[-1].key
    if kind == 'scale':
      return jnp.asarray(1.0 + 0.3 * x)
    # Large enough for a softmax with clear favourites.
    return jnp.asarray(0.3 * x if kind == 'kernel' else x)

  return jax.tree_util.tree_map_with_path(
    draw, nn.meta.unbox(transformer.abstract_params(config))
  )


def forward(config, params, ids_NxT, length_N):
  """Hidden states of right-padded rows that start at position 0."""
  n, t = ids_NxT.shape
  return Decoder(config).apply(
    {'params': params},
    ids_NxT,
    jnp.broadcast_to(jnp.arange(t), (n, t)),
    rope.frequencies(config, jnp.asarray(length_N)),
  )


@pytest.mark.slow
def test_gradients_show_causality():
  """d hidden[t] / d input[s] is exactly 0 for s > t, and not 0 for s <= t."""
  length = 140  # two blocks of queries, the second one ragged
  # Every position has its own token, so the gradient with respect to row s of
  # the (untied) embedding is the gradient with respect to input s.
  config = model(vocab_size=length)
  params = random_params(config)
  picked = jnp.array([0, 1, 64, 127, 128, 139])
  probe_E = jax.random.normal(jax.random.key(1), (config.embed_dim,))

  @jax.jit
  @jax.jacrev
  def influence(embedding_VxE):
    hidden, _ = forward(
      config,
      params | {'embedding': embedding_VxE},
      jnp.arange(length)[None],
      [length],
    )
    return hidden[0, picked] @ probe_E

  by_input = np.linalg.norm(influence(params['embedding']), axis=-1)
  for row, t in zip(by_input, picked, strict=True):
    assert np.all(row[: t + 1] > 0.0), f'{t} does not see all of its past'
    assert np.all(row[t + 1 :] == 0.0), f'{t} sees its future'


def test_padding_and_dummy_rows_are_inert():
  config = model(rope=RopeConfig(rope_type='dynamic', factor=2.0))
  params = random_params(config)
  rng = np.random.default_rng(0)
  lengths = [7, 3, 12]
  ids = rng.integers(0, 48, (3, 12))
  run = jax.jit(lambda ids, lengths: forward(config, params, ids, lengths)[0])
  plain = run(ids, np.array(lengths))

  # Other tokens in padding of the same shape: not a bit changes.
  other = ids.copy()
  for row, length in enumerate(lengths):
    other[row, length:] = rng.integers(0, 48, 12 - length)
  repadded = run(other, np.array(lengths))
  # Wider, with two dummy rows at the end: another program, so only nearly equal.
  wide = rng.integers(0, 48, (5, 31))
  wide[:3, :12] = ids
  widened = run(wide, np.array([*lengths, 1, 31]))

  for row, length in enumerate(lengths):
    real = plain[row, :length]
    np.testing.assert_array_equal(repadded[row, :length], real)
    np.testing.assert_allclose(widened[row, :length], real, rtol=0, atol=1e-5)


PLAIN = {
  'architecture': 'llama',
  'qk_norm': False,
  'attention_bias': False,
  'attention_output_bias': False,
  'num_kv_heads': 4,
  'tie_embeddings': True,
}


@pytest.mark.parametrize(
  'fields,chunk', [({}, 1), (PLAIN, 3)], ids=['everything', 'plain']
)
def test_prefill_and_decode_equal_one_forward_pass(fields, chunk):
  """Ragged prompts, then 6 tokens in steps of `chunk`, against whole rows."""
  config = model(**fields)
  params = random_params(config)
  rng = np.random.default_rng(3)
  lengths, steps, slots = np.array([9, 1, 5]), 6, 8
  ids = rng.integers(0, 48, (3, 9 + steps))
  whole, _ = jax.jit(lambda x, n: forward(config, params, x, n))(ids, lengths)

  frequency = rope.frequencies(config, lengths)
  _, prompt_kv = jax.jit(lambda x, n: forward(config, params, x, n))(
    # The content of the padding must not matter: here, the response's tokens.
    ids[:, :9],
    lengths,
  )
  step = jax.jit(
    lambda ids, position, past: Decoder(config).apply(
      {'params': params}, ids, position, frequency, past
    )
  )
  empty = jnp.full((3, config.num_kv_heads, config.head_dim, slots), 7.0)
  response_kv = ((empty, empty),) * config.num_layers
  for done in range(0, steps, chunk):
    position = lengths[:, None] + done + np.arange(chunk)
    past = Past(prompt_kv, response_kv, jnp.asarray(lengths), jnp.int32(done))
    hidden, response_kv = step(
      np.take_along_axis(ids, position, axis=1), position, past
    )
    want = np.take_along_axis(np.asarray(whole), position[:, :, None], axis=1)
    np.testing.assert_allclose(hidden, want, rtol=0, atol=1e-5)
  # Slots beyond the written ones stay as they were.
  for k, v in response_kv:
    assert np.all(k[..., steps:] == 7.0)
    assert np.all(v[..., steps:] == 7.0)


@pytest.mark.parametrize('tied', [True, False])
def test_every_param_has_axes_with_a_rule(tied):
  boxes = jax.tree_util.tree_leaves_with_path(
    transformer.abstract_params(model(tie_embeddings=tied)),
    is_leaf=lambda x: isinstance(x, nn.Partitioned),
  )
  for path, box in boxes:
    name = jax.tree_util.keystr(path)
    assert isinstance(box, nn.LogicallyPartitioned), name
    assert len(box.names) == box.value.ndim, name
    assert set(box.names) <= set(TRAINING), name


@pytest.mark.parametrize('tied', [True, False])
def test_abstract_and_initial_params_are_one_tree(tied):
  config = model(num_layers=1, tie_embeddings=tied)
  abstract = nn.meta.unbox(transformer.abstract_params(config))
  params = jax.eval_shape(
    lambda: transformer.init_params(config, jax.random.key(0))
  )
  assert ('head' in params) == (not tied)
  assert jax.tree.structure(abstract) == jax.tree.structure(params)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(
    lambda x: (x.shape, x.dtype), params
  )


def test_logits_are_float32_in_a_bfloat16_model():
  config = model(dtype='bfloat16')
  params = random_params(config)

  @jax.jit
  def run(ids):
    hidden, kv = forward(config, params, ids, [4])
    logits = Decoder(config).apply(
      {'params': params}, hidden, method=Decoder.logits
    )
    return hidden, kv, logits

  hidden, kv, logits = jax.eval_shape(run, jnp.zeros((1, 4), jnp.int32))
  assert hidden.dtype == kv[0][0].dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32


# 9 heads of 6144 x 6144 float32 scores: 1.36 GB.
ALL_SCORES_BYTES = 9 * 6144 * 6144 * 4


def temporary_bytes(function, tokens, **fields):
  """Peak scratch memory of `function` over one row, with SmolLM2's heads."""
  config = model(
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_positions=8192,
    tie_embeddings=True,
    **fields,
  )
  params = nn.meta.unbox(transformer.abstract_params(config))
  ids = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  compiled = (
    jax.jit(lambda params, ids: function(config, params, ids))
    .lower(params, ids)
    .compile()
  )
  return compiled.memory_analysis().temp_size_in_bytes


def test_prefill_never_holds_the_scores_of_all_heads():
  """Two of SmolLM2's 30 layers: scratch memory does not grow with depth."""

  def prefill(config, params, ids):
    hidden, kv = forward(config, params, ids, [ids.shape[1]])
    return hidden[:, -1], kv

  used_bytes = temporary_bytes(
    prefill, 6144, vocab_size=49_152, embed_dim=576, mlp_dim=1536, num_layers=2
  )
  assert used_bytes < 0.25 * ALL_SCORES_BYTES


@pytest.mark.slow
def test_gradient_does_not_keep_the_scores():
  """One narrow layer, where kept scores, even the causal half, take > 50 %."""

  def gradient(config, params, ids):
    def loss(params):
      hidden, _ = forward(config, params, ids, [ids.shape[1]])
      return jnp.sum(jnp.square(hidden))

    return jax.grad(loss)(params)

  used_bytes = temporary_bytes(gradient, 6144, num_layers=1)
  assert used_bytes < 0.5 * ALL_SCORES_BYTES


@pytest.mark.slow
def test_layers_computed_again_have_the_same_gradient():
  config = model()
  params = random_params(config)
  ids_NxT = jnp.arange(2 * 9).reshape(2, 9) % config.vocab_size

  def total(config):
    return lambda params: forward(config, params, ids_NxT, [9, 9])[0].sum()

  saved, again = total(config), total(model(remat=True))
  jax.tree.map(
    lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5),
    jax.grad(again)(params),
    jax.grad(saved)(params),
  )
  # The forward pass of both layers runs twice.
  assert str(jax.make_jaxpr(jax.grad(again))(params)).count('remat') >= 2
