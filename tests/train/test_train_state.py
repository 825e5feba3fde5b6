"""The optimizer's schedule, clipping, and updates that are not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.train import train_state
from memagent_jax.train.train_state import OptimizerConfig

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=2)


def state(config=CONFIG):
  return train_state.init_state(config, {'w': jnp.ones(3, jnp.bfloat16)})


def test_parameters_are_float32():
  assert state().params['w'].dtype == jnp.float32


def test_the_first_adam_step_is_the_learning_rate():
  config = dataclasses.replace(CONFIG, warmup_steps=0, clip_norm=0.0)
  gradients = {'w': jnp.asarray([3.0, -0.5, 0.0])}
  new, norm = train_state.apply_gradients(config, state(config), gradients)
  np.testing.assert_allclose(new.params['w'], [0.9, 1.1, 1.0], rtol=1e-5)
  np.testing.assert_allclose(norm, np.sqrt(9.25), rtol=1e-6)
  assert (int(new.step), int(new.skipped)) == (1, 0)


def test_a_gradient_is_cut_to_its_norm():
  """Adam's first step hides its scale; the second does not."""
  config = dataclasses.replace(CONFIG, warmup_steps=0, clip_norm=2.0)

  def after(first):
    new, norm = train_state.apply_gradients(
      config, state(config), {'w': jnp.asarray(first)}
    )
    new, _ = train_state.apply_gradients(
      config, new, {'w': jnp.asarray([0.5, -1.0, 0.5])}
    )
    return np.asarray(new.params['w']), float(norm)

  long, norm = after([30.0, 0.0, 40.0])
  cut, _ = after([1.2, 0.0, 1.6])
  assert norm == pytest.approx(50.0)
  np.testing.assert_allclose(long, cut, rtol=1e-5)
  assert np.abs(long - after([0.6, 0.0, 0.8])[0]).max() > 1e-3


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_an_update_that_is_not_finite_changes_nothing(bad):
  before = state()
  new, norm = train_state.apply_gradients(
    CONFIG, before, {'w': jnp.asarray([1.0, bad, 1.0])}
  )
  assert not np.isfinite(norm)
  jax.tree.map(
    np.testing.assert_array_equal,
    (new.params, new.opt_state),
    (before.params, before.opt_state),
  )
  assert (int(new.step), int(new.skipped)) == (0, 1)


@pytest.mark.parametrize('anything', [False, jnp.bool_(False)])
def test_without_anything_to_learn_momentum_moves_nothing(anything):
  config = dataclasses.replace(CONFIG, warmup_steps=0, weight_decay=0.1)
  before, _ = train_state.apply_gradients(
    config, state(config), {'w': jnp.asarray([1.0, -2.0, 3.0])}
  )
  zeros = {'w': jnp.zeros(3)}
  after, norm = train_state.apply_gradients(config, before, zeros, anything)
  jax.tree.map(
    np.testing.assert_array_equal,
    (after.params, after.opt_state),
    (before.params, before.opt_state),
  )
  assert (float(norm), int(after.step), int(after.skipped)) == (0.0, 1, 0)
  # Without a gradient, momentum and decay still make most of a step.
  moved, _ = train_state.apply_gradients(config, before, zeros)
  assert np.abs(moved.params['w'] - before.params['w']).min() > 0.05


def test_schedules():
  constant = train_state.learning_rate(CONFIG)
  np.testing.assert_allclose(
    [constant(i) for i in (0, 1, 2, 500)], [0, 0.05, 0.1, 0.1], rtol=1e-6
  )
  cosine = train_state.learning_rate(
    dataclasses.replace(CONFIG, schedule='cosine', decay_steps=10)
  )
  # Half-way between warm-up and end: half of it.
  np.testing.assert_allclose(
    [cosine(i) for i in (2, 6, 10, 50)], [0.1, 0.05, 0, 0], atol=1e-8
  )


def test_a_restart_begins_where_the_cosine_before_it_ended():
  cosine = train_state.learning_rate(
    dataclasses.replace(
      CONFIG,
      schedule='cosine',
      decay_steps=10,
      restarts=[(8, 0.5), (4, 0.2)],
    )
  )
  np.testing.assert_allclose(
    [cosine(i) for i in (6, 10, 14, 18, 20, 22, 30)],
    [0.05, 0.05, 0.025, 0.02, 0.01, 0, 0],
    atol=1e-8,
  )


def test_bad_values_are_named():
  with pytest.raises(ValueError, match='choose from constant, cosine'):
    OptimizerConfig(schedule='linear')
  with pytest.raises(ValueError, match=r'decay_steps 0 must exceed .* 20'):
    OptimizerConfig(schedule='cosine')
  with pytest.raises(ValueError, match='only cosine has restarts'):
    OptimizerConfig(restarts=((9, 0.5),))
