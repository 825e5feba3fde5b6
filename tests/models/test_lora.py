"""Adapters: no change at first, trained alone, and merged into kernels."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models import lora
from memagent_jax.models.configs import LORA_TARGETS, LoraConfig
from memagent_jax.models.weights import pretrained
from memagent_jax.sampling.log_probs import response_log_probs
from memagent_jax.train import trainer
from memagent_jax.train.checkpoint import Checkpoints
from memagent_jax.train.metric_log import read_metrics
from memagent_jax.train.train_state import OptimizerConfig, init_state
from tests import tiny_runs

CONFIG = LoraConfig(rank=2, alpha=8.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)


@pytest.fixture
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def log_probs(config, params):
  ids_NxS = np.random.default_rng(0).integers(0, 256, (2, 24))
  prompt_N, response_N = np.asarray([8, 12]), np.asarray([12, 6])
  found, _ = response_log_probs(
    config,
    params,
    jnp.asarray(ids_NxS),
    prompt_N,
    response_N,
    response_tokens=12,
    temperature=1.0,
  )
  return np.asarray(found)


def moved(params):
  """The params as if the adapters had been trained."""
  flat = flax.traverse_util.flatten_dict(params)
  for i, (path, x) in enumerate(flat.items()):
    if path[-1] == 'lora_b':
      flat[path] = jax.random.normal(jax.random.key(i), x.shape)
  return flax.traverse_util.unflatten_dict(flat)


@pytest.mark.slow
def test_new_adapters_change_nothing_and_merged_ones_stay(model):
  before = log_probs(model.config, model.params)
  adapted = lora.add(model, CONFIG)
  np.testing.assert_array_equal(
    log_probs(adapted.config, adapted.params), before
  )
  params = moved(adapted.params)
  after = log_probs(adapted.config, params)
  assert np.abs(after - before).max() > 0.1
  config, merged = lora.merged(adapted.config, params)
  assert config == model.config
  assert jax.tree.structure(merged) == jax.tree.structure(model.params)
  np.testing.assert_allclose(log_probs(config, merged), after, rtol=1e-5)
  np.testing.assert_array_equal(
    log_probs(adapted.config, lora.unadapted(params)), before
  )


@pytest.mark.parametrize('target', LORA_TARGETS)
@pytest.mark.slow
def test_targets_are_adapted_alone(model, target):
  config = LoraConfig(rank=2, targets=(target,))
  adapted = lora.add(model, config)
  learned, frozen = lora.split(adapted.params)
  paths = flax.traverse_util.flatten_dict(learned)
  assert {path[-2] for path in paths} == {target}
  assert jax.tree.leaves(frozen) == jax.tree.leaves(model.params)
  joined = lora.join(learned, frozen)
  assert jax.tree.structure(joined) == jax.tree.structure(adapted.params)
  plain, merged = lora.merged(adapted.config, moved(adapted.params))
  np.testing.assert_allclose(
    log_probs(plain, merged),
    log_probs(adapted.config, moved(adapted.params)),
    rtol=1e-5,
  )


def test_without_adapters_all_params_learn(model):
  assert lora.split(model.params) == (model.params, {})
  assert lora.join(model.params, {}) is model.params
  assert lora.merged(model.config, model.params)[1] is model.params


def test_moments_and_checkpoints_are_of_the_adapters(model, tmp_path):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
  adapted = lora.add(dataclasses.replace(model, params=half), CONFIG)
  state = init_state(OPTIMIZER, adapted.params)
  learned = sum(x.size for x in jax.tree.leaves(state.params))
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert 2 * learned <= moments <= 2 * learned + 4
  assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {'float32'}
  assert {x.dtype.name for x in jax.tree.leaves(state.frozen)} == {'bfloat16'}


@pytest.mark.slow
def test_a_run_learns_adapters_and_exports_the_plain_model(model, tmp_path):
  base = jax.device_get(model.params)

  def train(of, **given):
    return trainer.train(
      workdir=tmp_path,
      model=of,
      # The reference model needs no copy of the params.
      source=lambda m: tiny_runs.rollouts(
        m,
        grpo=dataclasses.replace(tiny_runs.GRPO, kl_coefficient=0.1),
        reward=tiny_runs.length_reward,
      ),
      optimizer=OPTIMIZER,
      lora=CONFIG,
      num_steps=3,
      checkpoint_every_steps=1,
      **given,
    )

  train(model, stop_at_step=2)
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    adapted = lora.add(
      dataclasses.replace(model, params=jax.tree.map(jnp.array, base)), CONFIG
    )
    state = init_state(OPTIMIZER, adapted.params)
    saved = checkpoints.restore(state.replace(frozen={})).state
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), saved.params, state.params
  )
  assert all(jax.tree.leaves(changed))
  again = dataclasses.replace(model, params=jax.tree.map(jnp.array, base))
  train(again)
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [0, 1, 2, 3]
  assert rows[0]['reference_kl'] == pytest.approx(0.0, abs=1e-6)
  assert rows[2]['reference_kl'] > 1e-4
  # The first ratios are 1: sampler and trainer have the same adapters.
  assert max(row['sampler_gap'] for row in rows[:3]) < 1e-4
  exported = pretrained.load_model(tmp_path / 'model')
  assert exported.config.lora is None
  same = jax.tree.map(lambda a, b: bool((a == b).all()), exported.params, base)
  assert same['embedding'] and same['final_norm']['scale']
  assert not same['layer_0']['attention']['q']['kernel']


def test_bad_adapters_are_refused(model):
  with pytest.raises(ValueError, match='rank is 0'):
    LoraConfig(rank=0)
  with pytest.raises(ValueError, match=r"\['key'\].*q, kv, o, gate_up, down"):
    LoraConfig(targets=('q', 'key'))
  with pytest.raises(ValueError, match='adapters already'):
    lora.add(lora.add(model, CONFIG), CONFIG)
