"""Sampling: cached loop against full passes, log-probs, keys, finish reasons."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models import rope, transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.transformer import Decoder
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.structs import EOS, LENGTH, SKIPPED, Tokens

CONFIG = ModelConfig(
  'llama', 30, 16, 2, 4, 2, 8, 24, 128, 1e-5, RopeConfig(), tie_embeddings=True
)
PARAMS = transformer.init_params(CONFIG, jax.random.key(3))
# Larger embeddings make the random model's distribution peaked, not uniform.
PARAMS = {**PARAMS, 'embedding': PARAMS['embedding'] * 4}


def _prompts(lengths, width=12, seed=0):
  ids = np.random.default_rng(seed).integers(0, 30, (len(lengths), width))
  return Tokens(jnp.asarray(ids, jnp.int32), jnp.asarray(lengths, jnp.int32))


def _keys(rows, seed=0):
  return decode.row_keys(
    seed, jnp.asarray(rows, jnp.uint32), jnp.zeros(len(rows), jnp.int32)
  )


def _generate(prompt, sampling, controls=(), keys=None, active=None):
  keys = _keys(range(prompt.length_N.shape[0])) if keys is None else keys
  return jax.jit(decode.generate, static_argnums=(0, 3, 4))(
    CONFIG, PARAMS, prompt, sampling, controls, keys, active
  )


@jax.jit
def _logits_after(ids_1xT, length_1):
  hidden, _ = Decoder(CONFIG).apply(
    {'params': PARAMS},
    ids_1xT,
    jnp.arange(ids_1xT.shape[1])[None],
    rope.frequencies(CONFIG, length_1),
  )
  return Decoder(CONFIG).apply(
    {'params': PARAMS}, hidden[0, length_1[0] - 1], method=Decoder.logits
  )


def _next_logits(ids):
  """Logits after `ids`, by one forward pass over the whole row."""
  padded = jnp.zeros((1, 24), jnp.int32).at[0, : len(ids)].set(jnp.array(ids))
  return np.asarray(_logits_after(padded, jnp.array([len(ids)])))


def test_greedy_follows_the_argmax_of_full_passes():
  prompt = _prompts([3, 12, 1])
  got = _generate(prompt, SamplingConfig(max_tokens=6))
  for row, length in enumerate([3, 12, 1]):
    ids = list(np.asarray(prompt.ids_NxW[row, :length]))
    for position in range(6):
      logits = _next_logits(ids)
      assert int(got.ids_NxR[row, position]) == logits.argmax()
      logprob = logits - np.log(np.exp(logits).sum())
      assert got.logprob_NxR[row, position] == pytest.approx(
        logprob.max(), abs=1e-4
      )
      ids.append(int(logits.argmax()))
  assert list(got.finish_N) == [LENGTH] * 3
  assert list(got.length_N) == [6] * 3


@pytest.mark.parametrize('prefill_prompts', [1, 2, 4, 5, 6])
def test_prompts_read_in_blocks_are_those_read_at_once(prefill_prompts):
  prompt = _prompts([3, 12, 1, 5, 7, 2])
  read = jax.jit(decode.prefill, static_argnums=(0, 3))
  whole, blocks = (
    read(CONFIG, PARAMS, prompt, n) for n in (0, prefill_prompts)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), blocks, whole
  )


def test_equal_prompts_are_read_once_in_blocks():
  rows = _prompts([3, 12, 7])
  prompt = jax.tree.map(lambda x: x[np.array([0, 1, 0, 2, 1, 1, 0, 2])], rows)
  # Ids beyond a prompt's end do not belong to it.
  prompt = prompt.replace(ids_NxW=prompt.ids_NxW.at[2, 5].set(9))
  order, first, different = decode._read_once(prompt)
  assert int(different) == 3
  assert list(order[:3]) == [0, 1, 3]
  assert list(first) == [0, 1, 0, 3, 1, 1, 0, 3]
  read = jax.jit(decode.prefill, static_argnums=(0, 3))
  whole, blocks = (read(CONFIG, PARAMS, prompt, n) for n in (0, 2))
  length = np.asarray(prompt.length_N)
  used = np.arange(prompt.ids_NxW.shape[1]) < length[:, None]
  for a, b in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
    if a.ndim == 4:
      a, b = (np.where(used[:, None, None], x, 0.0) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_prompt_is_another_one_where_one_id_differs():
  ids = np.full((4, 6), 5, np.int32)
  ids[1, 0], ids[2, 5] = 6, 6
  prompt = Tokens(jnp.asarray(ids), jnp.asarray([6, 6, 6, 5]))
  order, first, different = decode._read_once(prompt)
  assert int(different) == 4
  assert list(order) == list(first) == [0, 1, 2, 3]


def test_a_control_id_ends_its_row_and_is_counted():
  prompt = _prompts([3, 12])
  free = _generate(prompt, SamplingConfig(max_tokens=6))
  control = int(free.ids_NxR[0, 2])
  first = int(np.argmax(np.asarray(free.ids_NxR[0]) == control))
  got = _generate(prompt, SamplingConfig(max_tokens=6), controls=(control,))
  assert int(got.length_N[0]) == first + 1
  assert int(got.ids_NxR[0, first]) == control
  assert int(got.finish_N[0]) == EOS
  assert not np.asarray(got.logprob_NxR[0, first + 1 :]).any()


def test_inactive_rows_are_skipped():
  active = jnp.array([True, False])
  got = _generate(_prompts([3, 4]), SamplingConfig(5), active=active)
  assert list(got.finish_N) == [LENGTH, SKIPPED]
  assert list(got.length_N) == [5, 0]


def test_samples_do_not_depend_on_batch_order():
  prompt = _prompts([3, 12, 7, 5])
  order = np.array([2, 0, 3, 1])
  sampling = SamplingConfig(max_tokens=8, temperature=1.0)
  keys = _keys([10, 11, 12, 13])
  got = _generate(prompt, sampling, keys=keys)
  moved = jax.tree.map(lambda x: x[order], prompt)
  swapped = _generate(moved, sampling, keys=keys[order])
  np.testing.assert_array_equal(got.ids_NxR[order], swapped.ids_NxR)


def test_a_token_s_key_is_its_rows_key_and_its_position():
  """With equal logits everywhere, only the keys tell positions and rows apart."""
  params = jax.tree.map(jnp.zeros_like, PARAMS)
  keys = decode.row_keys(
    7, jnp.array([3, 3, 5], jnp.uint32), jnp.array([0, 1, 0], jnp.int32)
  )
  got = jax.jit(decode.generate, static_argnums=(0, 3, 4))(
    CONFIG, params, _prompts([3, 4, 2]), SamplingConfig(5, 1.0), (), keys
  )
  for row, (example, rollout) in enumerate([(3, 0), (3, 1), (5, 0)]):
    key = jax.random.fold_in(jax.random.key(7), example)
    key = jax.random.fold_in(key, rollout)
    expected = [
      int(jax.random.categorical(jax.random.fold_in(key, t), jnp.zeros(30)))
      for t in range(5)
    ]
    assert got.ids_NxR[row].tolist() == expected
  # No two rows are alike, and no row has the same token everywhere.
  assert len(set(map(tuple, got.ids_NxR.tolist()))) == 3
  assert min(len(set(row)) for row in got.ids_NxR.tolist()) > 1


def test_an_examples_number_is_that_of_its_name():
  # The first four bytes of `printf a | sha256sum`.
  assert decode.example_number('a') == 0xCA978112
  assert decode.example_number('b') == 0x3E23E816


def test_samples_have_the_frequencies_their_log_probs_say():
  """2,000 draws of one token: counts match the tempered, truncated softmax."""
  rows = 2000
  prompt = jax.tree.map(lambda x: jnp.repeat(x, rows, 0), _prompts([4]))
  sampling = SamplingConfig(max_tokens=1, temperature=1.5, top_k=6)
  got = _generate(prompt, sampling, keys=_keys(range(rows)))
  logits = _next_logits(list(np.asarray(prompt.ids_NxW[0, :4]))) / 1.5
  kept = np.argsort(-logits)[:6]
  p = np.exp(logits[kept]) / np.exp(logits[kept]).sum()
  ids = np.asarray(got.ids_NxR[:, 0])
  assert set(ids) <= set(kept)
  for token, probability in zip(kept, p, strict=True):
    error = 4 * np.sqrt(probability * (1 - probability) / rows)
    assert abs((ids == token).mean() - probability) < error
  expected = np.log(p)[[list(kept).index(i) for i in ids]]
  np.testing.assert_allclose(got.logprob_NxR[:, 0], expected, atol=1e-4)


def test_top_p_keeps_the_smallest_set_that_holds_it():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  sampling = SamplingConfig(1, temperature=1.0, top_p=0.7)
  got = np.exp(decode.log_probabilities(logits, sampling))[0]
  np.testing.assert_allclose(got, [0.625, 0.375, 0, 0], atol=1e-6)
  first_only = dataclasses.replace(sampling, top_p=0.01)
  got = np.exp(decode.log_probabilities(logits, first_only))[0]
  np.testing.assert_allclose(got, [1, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'max_tokens': 0}, 'max_tokens is 0'),
    ({'max_tokens': 1, 'temperature': -1.0}, 'temperature is -1.0'),
    ({'max_tokens': 1, 'top_p': 0.0}, 'top_p is 0.0'),
    ({'max_tokens': 1, 'top_k': -2}, 'top_k is -2'),
  ],
)
def test_bad_sampling_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    SamplingConfig(**fields)
