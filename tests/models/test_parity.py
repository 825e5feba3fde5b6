"""The decoder against what transformers computed, layer by layer.

`golden/make_model_goldens.py` wrote the goldens; no torch is needed here. There
every row ran alone; here the rows of a case are one right-padded batch, so that
padding that leaks fails these tests too.
"""

import functools
import json
from pathlib import Path
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import decode
from memagent_jax.models import configs, huggingface, rope
from memagent_jax.models.transformer import Block, Decoder
from memagent_jax.structs import Tokens

GOLDEN = Path(__file__).parents[1] / 'golden'
TINY_TOLERANCE = 1e-4
SMOLLM2_TOLERANCE = 1e-3


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
  """Rows of ids as one batch; the padding is arbitrary ids of the rows' own."""
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
  """Each row goes by its own length, not by the longest of its batch."""
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


def test_smollm2_logits(smollm2):
  config, params = smollm2
  passage = golden('smollm2.npz')['passage']
  subset = golden('smollm2.npz')['subset']
  batch = pad([row['ids'] for row in prompts()] + [passage['ids']])

  @jax.jit
  def at_positions(params, batch, row_X, position_X):
    n, t = batch.ids_NxW.shape
    hidden_NxTxE, _ = Decoder(config).apply(
      {'params': params},
      batch.ids_NxW,
      jnp.broadcast_to(jnp.arange(t), (n, t)),
      rope.frequencies(config, batch.length_N),
    )
    hidden_XxE = hidden_NxTxE[row_X, position_X]
    return Decoder(config).apply(
      {'params': params}, hidden_XxE, method=Decoder.logits
    )

  # The last token of each prompt, then every 20th of the passage.
  prompt_count = len(prompts())
  row_X = [*range(prompt_count)] + [prompt_count] * len(passage['positions'])
  position_X = [*batch.length_N[:prompt_count] - 1, *passage['positions']]
  logits_XxV = at_positions(
    params, batch, np.array(row_X), np.array(position_X)
  )

  got = np.asarray(logits_XxV)[:, subset]
  for n, prompt in enumerate(prompts()):
    close(got[n], prompt['last_logits'], SMOLLM2_TOLERANCE, f'prompt {n}')
  close(got[prompt_count:], passage['logits'], SMOLLM2_TOLERANCE, 'passage')


def test_smollm2_greedy_continuations(smollm2):
  """8 ragged prompts x 64 tokens, token by token, within 40 s."""
  config, params = smollm2
  rows = prompts()
  wanted = np.stack([row['continuation'] for row in rows])
  assert wanted.shape == (8, 64)
  # Logits that are right to 1e-3 cannot swap two that are 2e-3 apart.
  assert min(row['margin'].min() for row in rows) > 2 * SMOLLM2_TOLERANCE
  batch = pad([row['ids'] for row in rows])
  keys = decode.row_keys(
    0, jnp.arange(len(rows)), jnp.zeros(len(rows), jnp.int32)
  )
  start = time.monotonic()
  response = jax.jit(decode.generate, static_argnums=(0, 3, 4))(
    config,
    params,
    batch,
    decode.SamplingConfig(max_tokens=64),
    # No control ids: the goldens go on behind an end-of-text token.
    (),
    keys,
  )
  got = np.asarray(response.ids_NxR)
  seconds = time.monotonic() - start
  np.testing.assert_array_equal(got, wanted)
  assert seconds < 40, f'{seconds:.0f} s'
