"""The decoder against transformers' results, layer by layer.

`golden/make_model_goldens.py` wrote the goldens, so no torch is needed here.
There, every row ran alone; here, the rows of a case are one right-padded batch,
so that leaking padding fails these tests too.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models import configs, rope
from memagent_jax.models.transformer import Block, Decoder
from memagent_jax.models.weights import huggingface
from memagent_jax.sampling import decode
from memagent_jax.structs import Tokens

GOLDEN = Path(__file__).parents[1] / 'golden'
TINY_TOLERANCE = 1e-4
SMOLLM2_TOLERANCE = 1e-3
NEW_TOKENS = 64


@functools.cache
def golden(file):
  """Nested dicts of the arrays of an .npz whose names are paths."""
  tree = {}
  with np.load(GOLDEN / file) as arrays:
    for name in arrays.files:
      *parents, leaf = name.split('/')
      node = tree
      for parent in parents:
        node = node.setdefault(parent, {})
      node[leaf] = arrays[name]
  return tree


def cases():
  return [
    f'{weights}/{rope_name}'
    for weights, ropes in golden('models.npz').items()
    if weights != 'weights'
    for rope_name in ropes
  ]


def load_case(case):
  """(config, params, rows) of a tiny model; rows are dicts of goldens."""
  weights, rope_name = case.split('/')
  stored = golden('models.npz')[weights][rope_name]
  config = configs.from_hf_config(json.loads(str(stored['config'])), case)
  tensors = golden('models.npz')['weights'][weights]
  rows = [stored[key] for key in sorted(stored) if key.isdigit()]
  return (
    config,
    huggingface.params_from_tensors(config, tensors.__getitem__),
    rows,
  )


def pad(rows, seed=0):
  """Rows of ids as one batch, padded with random ids of the first row."""
  length_N = np.array([len(row) for row in rows], np.int32)
  rng = np.random.default_rng(seed)
  ids_NxW = rng.choice(rows[0], (len(rows), length_N.max())).astype(np.int32)
  for ids_W, row in zip(ids_NxW, rows, strict=True):
    ids_W[: len(row)] = row
  return Tokens(ids_NxW, length_N)


@functools.partial(jax.jit, static_argnums=0)
def every_layer(config, params, batch):
  """(hidden after each layer, after the final norm, logits) of a batch."""
  model = Decoder(config)
  n, t = batch.ids_NxW.shape
  (final, _), captured = model.apply(
    {'params': params},
    batch.ids_NxW,
    jnp.broadcast_to(jnp.arange(t), (n, t)),
    rope.frequencies(config, batch.length_N),
    capture_intermediates=lambda module, _: isinstance(module, Block),
    mutable=['intermediates'],
  )
  layers = captured['intermediates']
  hidden = [
    layers[f'layer_{i}']['__call__'][0][0] for i in range(config.num_layers)
  ]
  logits = model.apply({'params': params}, final, method=Decoder.logits)
  return hidden, final, logits


def close(got, want, tolerance, what):
  difference = np.max(np.abs(np.asarray(got) - want))
  assert difference <= tolerance, f'{what}: max |diff| {difference:.2e}'


def test_goldens_cover_every_architecture_and_rotary_kind():
  seen = [load_case(case)[0] for case in cases()]
  assert {c.architecture for c in seen} == set(configs.ARCHITECTURES)
  assert {c.rope.rope_type for c in seen} == set(configs.ROPE_KINDS)
  assert {c.tie_embeddings for c in seen} == {True, False}
  assert {c.attention_bias for c in seen} == {True, False}
  assert {c.attention_output_bias for c in seen} == {True, False}
  assert {c.qk_norm for c in seen} == {True, False}
  assert {c.num_heads // c.num_kv_heads for c in seen} == {1, 2, 4}
  assert {c.num_heads * c.head_dim == c.embed_dim for c in seen} == {
    True,
    False,
  }


@pytest.mark.parametrize('case', cases())
def test_tiny_models_layer_by_layer(case):
  config, params, rows = load_case(case)
  hidden, final, logits = every_layer(
    config, params, pad([row['ids'] for row in rows])
  )
  for n, row in enumerate(rows):
    length = len(row['ids'])
    for i, hidden_NxTxE in enumerate(hidden):
      close(
        hidden_NxTxE[n, :length],
        row['hidden_LxTxE'][i],
        TINY_TOLERANCE,
        f'row {n}, layer {i}',
      )
    close(final[n, :length], row['final_TxE'], TINY_TOLERANCE, f'row {n}, norm')
    close(
      logits[n, :length], row['logits_TxV'], TINY_TOLERANCE, f'row {n}, logits'
    )


def test_rows_alone_equal_the_batch_with_dynamic_ntk():
  """Each row uses its own length, not the longest of its batch."""
  config, params, rows = load_case('qwen2_mha/dynamic')
  lengths = [len(row['ids']) for row in rows]
  assert min(lengths) < config.max_positions < max(lengths)
  for row in rows:
    _, _, logits = every_layer(config, params, pad([row['ids']]))
    close(logits[0], row['logits_TxV'], TINY_TOLERANCE, len(row['ids']))


@pytest.fixture(scope='module')
def smollm2(smollm2_dir):
  config = huggingface.read_config(smollm2_dir)
  return config, huggingface.load_params(smollm2_dir, config)


def prompts():
  stored = golden('smollm2.npz')['prompt']
  return [stored[key] for key in sorted(stored, key=int)]


@pytest.mark.slow
def test_smollm2_logits_and_greedy_choices(smollm2):
  """One pass over each prompt with its golden continuation, and the passage.

  If each token of the continuation is the likeliest after those before it, the
  continuation is greedy; `generate` itself is too slow to run every time.
  """
  config, params = smollm2
  stored = golden('smollm2.npz')
  passage, subset = stored['passage'], stored['subset']
  batch = pad(
    [np.append(row['ids'], row['continuation']) for row in prompts()]
    + [passage['ids']]
  )

  @jax.jit
  def at_positions(params, batch, row_X, position_X):
    n, t = batch.ids_NxW.shape
    model = Decoder(config)
    hidden_NxTxE, _ = model.apply(
      {'params': params},
      batch.ids_NxW,
      jnp.broadcast_to(jnp.arange(t), (n, t)),
      rope.frequencies(config, batch.length_N),
    )
    logits_XxV = model.apply(
      {'params': params}, hidden_NxTxE[row_X, position_X], method=Decoder.logits
    )
    return logits_XxV[:, subset], jnp.argmax(logits_XxV, axis=-1)

  # The positions that predict each token of a continuation, row by row; then
  # every 20th token of the passage.
  at = [
    (n, len(row['ids']) - 1 + i)
    for n, row in enumerate(prompts())
    for i in range(NEW_TOKENS)
  ] + [(len(prompts()), position) for position in passage['positions']]
  logits, best = at_positions(params, batch, *np.array(at).T)

  for n, row in enumerate(prompts()):
    first = n * NEW_TOKENS
    close(logits[first], row['last_logits'], SMOLLM2_TOLERANCE, f'prompt {n}')
    np.testing.assert_array_equal(
      best[first : first + NEW_TOKENS], row['continuation'], f'prompt {n}'
    )
  last = len(prompts()) * NEW_TOKENS
  close(logits[last:], passage['logits'], SMOLLM2_TOLERANCE, 'passage')


def test_greedy_goldens_have_no_near_ties():
  """Logits within 1e-3 cannot swap two that are 2e-3 apart."""
  assert len(prompts()) == 8
  for row in prompts():
    assert row['continuation'].shape == row['margin'].shape == (NEW_TOKENS,)
    assert row['margin'].min() > 2 * SMOLLM2_TOLERANCE


@pytest.mark.slow
def test_smollm2_generates_the_greedy_continuations(smollm2):
  """8 ragged prompts x 64 tokens."""
  config, params = smollm2
  rows = prompts()
  keys = decode.row_keys(
    0, jnp.arange(len(rows)), jnp.zeros(len(rows), jnp.int32)
  )
  response = jax.jit(decode.generate, static_argnums=(0, 3, 4))(
    config,
    params,
    pad([row['ids'] for row in rows]),
    decode.SamplingConfig(max_tokens=NEW_TOKENS),
    # No control ids: the goldens continue after an end-of-turn token.
    (),
    keys,
  )
  np.testing.assert_array_equal(
    response.ids_NxR, np.stack([row['continuation'] for row in rows])
  )
