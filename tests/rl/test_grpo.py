"""Advantages and loss against NumPy loops, analytic gradients and literals."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.rl import grpo
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.structs import EOS, LENGTH, SKIPPED, WeightedMean
from tests.tiny_runs import OBJECTIVES, preset

PRESETS = ('paper', 'released_script', 'dapo', 'dr_grpo')
LOG_PROBS = ('logprob', 'old_logprob', 'reference_logprob', 'sampler_logprob')


# --- WeightedMean ------------------------------------------------------------


def test_weighted_means_add_up():
  parts = [
    WeightedMean(jnp.float32(s), jnp.float32(w)) for s, w in [(1, 2), (5, 1)]
  ]
  # (1 + 5) / (2 + 1); the mean of the two means would be 2.75.
  assert float((parts[0] + parts[1]).mean()) == 2.0
  nothing = WeightedMean(jnp.float32(0), jnp.float32(0))
  assert float(nothing.mean()) == 0.0
  slope = jax.grad(lambda s: WeightedMean(s, jnp.float32(0)).mean())(0.0)
  assert float(slope) == 0.0


# --- Config and presets ------------------------------------------------------


@pytest.mark.parametrize('name', PRESETS)
def test_presets_set_every_field_once(name):
  text = (OBJECTIVES / f'{name}.gin').read_text()
  bound = re.findall(r'^  (\w+) = ', text, re.M)
  assert bound == [field.name for field in dataclasses.fields(GrpoConfig)]
  config = preset(name)
  assert type(config) is GrpoConfig
  assert hash(config) == hash(dataclasses.replace(config))


def test_presets_say_what_they_are():
  assert preset('paper') == GrpoConfig()
  assert grpo.preset_difference(preset('paper'), preset('released_script')) == {
    'clip_high': (0.28, 0.2),
    'dual_clip': (0.0, 3.0),
  }
  assert grpo.preset_difference(preset('paper'), preset('dapo')) == {
    'normalise_std': (False, True),
    'kl_coefficient': (1e-3, 0.0),
    'dynamic_sampling': (False, True),
    'max_refills': (0, 9),
    'overlong_buffer_tokens': (0, 204),
  }
  assert grpo.preset_difference(preset('paper'), preset('dr_grpo')) == {
    'clip_high': (0.28, 0.2),
    'aggregation': ('token_mean', 'constant'),
    'constant_tokens': (0, 1024),
    'kl_coefficient': (1e-3, 0.0),
  }
  assert grpo.preset_difference(preset('dapo'), preset('dapo')) == {}
  wanted = [grpo.needs_reference(preset(name)) for name in PRESETS]
  assert wanted == [True, True, False, False]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'aggregation': 'mean'}, "'mean'; choose one of token_mean"),
    ({'kl_estimator': 'k4'}, "'k4'; choose one of k1, k2, k3"),
    ({'overlong_filter': 'on'}, "'on'; choose one of off, answer"),
    ({'clip_low': 1.5}, 'clip_low is 1.5; expected more than 0 and at most 1'),
    ({'clip_high': 0.0}, 'clip_high is 0.0; expected more than 0'),
    ({'dual_clip': 0.5}, 'dual_clip is 0.5; expected 0 or above 1'),
    (
      {'importance_cap': 0.5},
      'importance_cap is 0.5; expected 0 or at least 1',
    ),
    ({'kl_coefficient': -1.0}, 'kl_coefficient is -1.0'),
    ({'kl_coefficient': float('nan')}, 'kl_coefficient is nan'),
    ({'kl_coefficient': '0'}, "kl_coefficient is '0', a str; expected a float"),
    ({'normalise_std': 1}, 'normalise_std is 1, a int; expected a bool'),
    ({'max_refills': True}, 'max_refills is True, a bool; expected a int'),
    ({'clip_low': [0.2]}, r'clip_low is \[0.2\], a list'),
    ({'aggregation': 'constant'}, "'constant' and constant_tokens is 0"),
    ({'constant_tokens': 9}, "'token_mean' and constant_tokens is 9"),
    ({'max_refills': 2}, 'max_refills is 2 and dynamic_sampling is False'),
  ],
)
def test_bad_configs_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    GrpoConfig(**fields)


# --- Advantages and rows -----------------------------------------------------


def test_advantages_are_per_trajectory_and_go_to_all_of_its_turns():
  """Rewards [1 (3 turns), 0 (1 turn)] give [.5, .5, .5, -.5].

  A mean over turns (3/4) would give [.25, .25, .25, -.75].
  """
  advantage = grpo.advantages(jnp.array([[1, 0]]), GrpoConfig())
  finish = jnp.array([[EOS, SKIPPED], [LENGTH, SKIPPED], [EOS, EOS]])
  advantage_CxN, weight_CxN = grpo.turn_advantages(advantage, finish)
  by_trajectory = np.asarray(advantage_CxN).T[np.asarray(weight_CxN).T > 0]
  assert by_trajectory.tolist() == [0.5, 0.5, 0.5, -0.5]
  # More turns of trajectory 0 change nothing for trajectory 1.
  more = jnp.concatenate([finish[:1], finish[:1], finish])
  again, _ = grpo.turn_advantages(advantage, more)
  assert np.asarray(again)[:, 1].tolist() == [-0.5] * 5


def test_rows_are_numbered_document_by_document():
  advantage = jnp.arange(6.0).reshape(2, 3)  # B 2, G 3
  got, weight = grpo.turn_advantages(advantage, jnp.zeros((4, 6), jnp.int32))
  assert np.asarray(got).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]] * 4
  assert np.asarray(weight).tolist() == [[1.0] * 6] * 4


@pytest.mark.parametrize('name', PRESETS)
def test_advantages_equal_a_loop(name):
  config = preset(name)
  reward = np.random.default_rng(0).normal(size=(5, 4))
  reward[3] = 0.1
  expected = np.zeros((5, 4))
  for b in range(5):
    mean = sum(reward[b]) / 4
    variance = sum((r - mean) ** 2 for r in reward[b]) / 3
    for g in range(4):
      expected[b, g] = reward[b, g] - mean
      if name == 'dapo':
        expected[b, g] /= variance**0.5 + 1e-6
  got = np.asarray(grpo.advantages(reward, config))
  np.testing.assert_allclose(got, expected, atol=2e-6)
  assert got.dtype == np.float32
  assert not got[3].any()


@pytest.mark.parametrize('normalise_std', [False, True])
def test_constant_groups_are_exactly_zero(normalise_std):
  config = GrpoConfig(normalise_std=normalise_std, std_epsilon=0.0)
  for group in range(2, 17):
    reward = np.full((1, group), 0.1)
    assert not np.asarray(grpo.advantages(reward, config)).any()


def test_groups_of_one_are_refused():
  with pytest.raises(ValueError, match=r'shape \(3, 1\).*no baseline'):
    grpo.advantages(jnp.zeros((3, 1)), GrpoConfig())


def test_degenerate_groups():
  score = jnp.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0.1, 0.1, 0.1]])
  got = np.asarray(grpo.degenerate_groups(score))
  assert got.tolist() == [True, False, True, True]


def test_soft_overlong_penalty():
  """Cap 20, buffer 4: free up to 16 tokens, then a quarter per token."""
  length = jnp.array([0, 16, 17, 18, 20, 25])
  got = np.asarray(grpo.soft_overlong_penalty(length, 20, 4))
  assert got.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
  for buffer_tokens in (0, 21):
    with pytest.raises(
      ValueError, match=f'{buffer_tokens} tokens .* cap is 20'
    ):
      grpo.soft_overlong_penalty(length, 20, buffer_tokens)


def test_overlong_filter():
  memory = jnp.array([[EOS, LENGTH, EOS], [SKIPPED, EOS, EOS]])
  answer = jnp.array([EOS, EOS, LENGTH])
  kept = {
    name: np.asarray(
      grpo.kept_trajectories(GrpoConfig(overlong_filter=name), memory, answer)
    ).tolist()
    for name in grpo.OVERLONG_FILTERS
  }
  assert kept == {
    'off': [True, True, True],
    'answer': [True, True, False],
    'any_turn': [True, False, False],
  }
  _, weight = grpo.turn_advantages(
    jnp.zeros((1, 3)), memory, jnp.array(kept['any_turn'])
  )
  assert np.asarray(weight).tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


# --- Loss --------------------------------------------------------------------


def _data(seed=0, rows=9, width=6):
  """Ragged rows (row 4 a dummy) with ratios on both sides of every clip."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, width + 1, rows)
  length[4] = 0
  old = -rng.exponential(1.0, (rows, width)) - 1.5
  data = {
    'logprob': old + rng.normal(0.0, 0.6, (rows, width)),
    'old_logprob': old,
    'reference_logprob': old + rng.normal(0.0, 0.4, (rows, width)),
    'sampler_logprob': old + rng.normal(0.0, 0.8, (rows, width)),
    'entropy': rng.exponential(1.0, (rows, width)),
    'advantage': rng.normal(size=rows),
    'mask': np.arange(width) < length[:, None],
    'row_weight': np.where(rng.random(rows) < 0.2, 0.0, 1.0),
  }
  # Beyond the dual clip, with a negative advantage.
  data['advantage'][0] = -0.7
  data['row_weight'][0] = 1.0
  data['logprob'][0, 0] = old[0, 0] + 1.4
  return data


def _arguments(data):
  axes = {name: 'NxR' for name in (*LOG_PROBS, 'entropy', 'mask')}
  return {
    f'{name}_{axes.get(name, "N")}': jnp.asarray(
      x, bool if x.dtype == bool else jnp.float32
    )
    for name, x in data.items()
  }


_jitted = jax.jit(grpo.policy_loss, static_argnums=0)


def _loop(config, data):
  """The loss and two metrics, token by token in Python floats."""
  row_losses, tokens, above, beyond = [], 0, 0, 0
  for n in range(len(data['advantage'])):
    at = [t for t in range(data['mask'].shape[1]) if data['mask'][n, t]]
    if not data['row_weight'][n] or not at:
      continue
    a = data['advantage'][n]
    losses = []
    for t in at:
      ratio = np.exp(data['logprob'][n, t] - data['old_logprob'][n, t])
      low, high = 1 - config.clip_low, 1 + config.clip_high
      gain = min(ratio * a, min(max(ratio, low), high) * a)
      if config.dual_clip and a < 0:
        gain = max(gain, config.dual_clip * a)
        beyond += ratio > config.dual_clip
      above += ratio > high and a > 0
      loss = -gain
      if config.importance_cap:
        weight = np.exp(
          data['old_logprob'][n, t] - data['sampler_logprob'][n, t]
        )
        loss *= min(weight, config.importance_cap)
      x = data['reference_logprob'][n, t] - data['logprob'][n, t]
      kl = {'k1': -x, 'k2': x**2 / 2, 'k3': np.exp(x) - 1 - x}
      kl = kl[config.kl_estimator] * (ratio if config.kl_corrected else 1)
      losses.append(
        loss
        + config.kl_coefficient * kl
        - config.entropy_coefficient * data['entropy'][n, t]
      )
    row_losses.append(losses)
    tokens += len(at)
  everything = sum(sum(losses) for losses in row_losses)
  if config.aggregation == 'token_mean':
    loss = everything / tokens
  elif config.aggregation == 'constant':
    loss = everything / (len(row_losses) * config.constant_tokens)
  else:
    loss = sum(sum(x) / len(x) for x in row_losses) / len(row_losses)
  return loss, above / tokens, beyond / tokens


CONFIGS = {
  **{name: preset(name) for name in PRESETS},
  'everything': GrpoConfig(
    dual_clip=1.5,
    aggregation='sequence_mean',
    kl_coefficient=0.3,
    kl_estimator='k1',
    kl_corrected=True,
    entropy_coefficient=0.2,
    importance_cap=1.2,
    old_log_probs='trainer',
  ),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_loss_and_gradient_equal_a_loop(name):
  config, data = CONFIGS[name], _data()
  loss, metrics = _jitted(config, **_arguments(data))
  expected, above, beyond = _loop(config, data)
  assert float(loss.mean()) == pytest.approx(expected, rel=2e-6)
  assert float(metrics['clip_high_fraction'].mean()) == pytest.approx(above)
  assert above > 0
  if config.dual_clip:
    assert float(metrics['dual_clip_fraction'].mean()) == pytest.approx(beyond)
    assert beyond > 0

  def mean(logprob_NxR):
    arguments = {**_arguments(data), 'logprob_NxR': logprob_NxR}
    return grpo.policy_loss(config, **arguments)[0].mean()

  gradient = jax.jit(jax.grad(mean))(_arguments(data)['logprob_NxR'])
  for n, t in np.ndindex(*data['mask'].shape):
    sides = []
    for step in (1e-6, -1e-6):
      moved = {**data, 'logprob': data['logprob'].copy()}
      moved['logprob'][n, t] += step
      sides.append(_loop(config, moved)[0])
    slope = (sides[0] - sides[1]) / 2e-6
    assert float(gradient[n, t]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_metrics_are_means_over_the_tokens_that_count():
  data = _data()
  _, metrics = _jitted(CONFIGS['everything'], **_arguments(data))
  real = data['mask'] & (data['row_weight'][:, None] > 0)
  log_ratio = (data['logprob'] - data['old_logprob'])[real]
  x = (data['reference_logprob'] - data['logprob'])[real]
  gap = (data['logprob'] - data['sampler_logprob'])[real]
  old_gap = (data['old_logprob'] - data['sampler_logprob'])[real]
  sign = np.broadcast_to(data['advantage'][:, None], real.shape)[real]
  expected = {
    'ratio': np.exp(log_ratio).mean(),
    'approx_kl': (np.exp(log_ratio) - 1 - log_ratio).mean(),
    'reference_kl': (np.exp(x) - 1 - x).mean(),
    'entropy': data['entropy'][real].mean(),
    'sampler_gap': np.abs(gap).mean(),
    'importance_weight': np.minimum(np.exp(old_gap), 1.2).mean(),
    'clip_low_fraction': ((sign < 0) & (np.exp(log_ratio) < 0.8)).mean(),
  }
  assert expected['clip_low_fraction'] > 0
  for name, value in expected.items():
    assert float(metrics[name].mean()) == pytest.approx(value, rel=1e-5), name
    assert float(metrics[name].weight) == real.sum()


def test_each_turn_gets_its_advantage_on_its_own_tokens():
  """On-policy and unclipped, d loss_sum / d log-prob = -A on real tokens.

  So for every turn the gradients sum to -A times its token count.
  """
  data = _data()
  arguments = _arguments(data) | {'row_weight_N': None}
  arguments['old_logprob_NxR'] = arguments['logprob_NxR']
  config = GrpoConfig(kl_coefficient=0.0)

  def loss_sum(logprob_NxR):
    return grpo.policy_loss(config, **arguments | {'logprob_NxR': logprob_NxR})[
      0
    ].sum

  got = np.asarray(jax.grad(loss_sum)(arguments['logprob_NxR'])).sum(axis=1)
  expected = -data['advantage'] * data['mask'].sum(axis=1)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_old_policy_is_a_constant():
  """Passing the policy's own log-probs as the old ones is the on-policy case."""
  arguments = _arguments(_data())

  def loss_sum(logprob_NxR):
    both = {'logprob_NxR': logprob_NxR, 'old_logprob_NxR': logprob_NxR}
    return grpo.policy_loss(GrpoConfig(), **arguments | both)[0].sum

  assert np.abs(jax.grad(loss_sum)(arguments['logprob_NxR'])).max() > 0.1


def test_dual_clip_bounds_the_loss_of_negative_advantages():
  """Ratios 1, 2, 10 at A = -1: losses 1, 2, 10; with dual clip 3: 1, 2, 3."""
  arguments = {
    'logprob_NxR': jnp.log(jnp.array([[1.0, 2.0, 10.0]])),
    'old_logprob_NxR': jnp.zeros((1, 3)),
    'mask_NxR': jnp.ones((1, 3), bool),
  }
  plain = GrpoConfig(kl_coefficient=0.0)
  dual = dataclasses.replace(plain, dual_clip=3.0)
  for config, advantage, expected in [
    (plain, -1.0, 1 + 2 + 10),
    (dual, -1.0, 1 + 2 + 3),
    # Positive advantages only have the upper clip.
    (plain, 1.0, -(1 + 1.28 + 1.28)),
    (dual, 1.0, -(1 + 1.28 + 1.28)),
  ]:
    loss, _ = grpo.policy_loss(
      config, advantage_N=jnp.array([advantage]), **arguments
    )
    assert float(loss.sum) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
  ('field', 'missing'),
  [
    ('kl_coefficient', 'reference_logprob_NxR'),
    ('entropy_coefficient', 'entropy_NxR'),
    ('importance_cap', 'sampler_logprob_NxR'),
  ],
)
def test_a_missing_argument_is_named(field, missing):
  arguments = _arguments(_data()) | {missing: None}
  with pytest.raises(ValueError, match=f'{field} is .* and {missing} is None'):
    grpo.policy_loss(CONFIGS['everything'], **arguments)


# --- Splits, padding, garbage ------------------------------------------------


def _features(rows=9, width=6):
  return np.random.default_rng(7).normal(0, 0.3, (rows, width, 3))


_THETA = jnp.array([0.3, -0.2, 0.5])


@functools.partial(jax.jit, static_argnums=0)
def _part(config, arguments, features_NxRxD):
  """Loss, metrics and d sum / d theta; theta moves log-probs and entropies."""

  def loss_sum(theta):
    moved = {
      'logprob_NxR': arguments['logprob_NxR'] + features_NxRxD @ theta,
      'entropy_NxR': arguments['entropy_NxR'] + features_NxRxD @ theta**2,
    }
    loss, metrics = grpo.policy_loss(config, **arguments | moved)
    return loss.sum, (loss, metrics)

  gradient, (loss, metrics) = jax.grad(loss_sum, has_aux=True)(_THETA)
  return gradient, {'loss': loss, **metrics}


def _total(config, parts):
  """Mean gradient and means of a batch that was split into parts."""
  results = [_part(config, _arguments(data), f) for data, f in parts]
  gradient = sum(np.asarray(g) for g, _ in results)
  means = {
    name: functools.reduce(lambda a, b: a + b, [m[name] for _, m in results])
    for name in results[0][1]
  }
  return gradient / float(means['loss'].weight), {
    name: float(mean.mean()) for name, mean in means.items()
  }


def _rows(data, features, rows):
  return {name: x[rows] for name, x in data.items()}, features[rows]


def _with_garbage(data, features):
  """3 more tokens and 2 more rows, with NaN or inf wherever nothing counts."""
  rows, width = data['mask'].shape
  real = data['mask'] & (data['row_weight'][:, None] > 0)
  padded = {}
  for name, x in data.items():
    if name == 'mask':
      padded[name] = np.pad(x, ((0, 2), (0, 3)))
    elif x.ndim == 2:
      padded[name] = np.full((rows + 2, width + 3), np.nan)
      padded[name][:rows, :width] = np.where(real, x, np.inf)
    else:
      padded[name] = np.append(x, [np.nan if name == 'advantage' else 1.0] * 2)
  return padded, np.pad(features, ((0, 2), (0, 3), (0, 0)))


@pytest.mark.parametrize(
  'name', ['paper', 'released_script', 'dr_grpo', 'everything']
)
def test_loss_gradient_and_metrics_do_not_depend_on_the_split(name):
  config, data, features = CONFIGS[name], _data(), _features()
  whole_gradient, whole_means = _total(config, [(data, features)])
  assert np.isfinite(whole_gradient).all()
  splits = {
    'single rows': [_rows(data, features, [n]) for n in range(9)],
    'uneven': [
      _rows(data, features, r) for r in ([4], [0, 1], [2, 3, 5, 6, 7, 8])
    ],
    'reordered': [_rows(data, features, [8, 2, 5, 0, 4, 1, 7, 3, 6])],
    'padded': [_with_garbage(data, features)],
  }
  for split, parts in splits.items():
    gradient, means = _total(config, parts)
    gap = np.linalg.norm(gradient - whole_gradient)
    assert gap <= 1e-5 * np.linalg.norm(whole_gradient), split
    assert means == pytest.approx(whole_means, rel=1e-5, abs=1e-7), split


def test_a_batch_of_dummies_gives_zero():
  data = _data()
  data['mask'][:] = False
  gradient, means = _part(
    CONFIGS['everything'], _arguments(data), jnp.asarray(_features())
  )
  assert not np.asarray(gradient).any()
  assert all(float(mean.mean()) == 0.0 for mean in means.values())


@pytest.mark.parametrize('gap', [1000.0, -1000.0])
@pytest.mark.parametrize('advantage', [1.0, -1.0])
@pytest.mark.parametrize('estimator', grpo.KL_ESTIMATORS)
def test_absurd_ratios_give_finite_gradients(gap, advantage, estimator):
  config = GrpoConfig(kl_estimator=estimator, kl_corrected=True)
  arguments = {
    'old_logprob_NxR': jnp.array([[-gap / 2, -1.0]]),
    'reference_logprob_NxR': jnp.array([[-gap / 2, -1.0]]),
    'advantage_N': jnp.array([advantage]),
    'mask_NxR': jnp.ones((1, 2), bool),
  }

  def mean(logprob_NxR):
    loss, _ = grpo.policy_loss(config, logprob_NxR=logprob_NxR, **arguments)
    return loss.mean()

  value, gradient = jax.value_and_grad(mean)(jnp.array([[gap / 2, -1.0]]))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  # The other token still learns: its ratio is 1, its reference equal.
  assert float(gradient[0, 1]) == pytest.approx(-advantage / 2, abs=1e-3)


# --- KL on a categorical -----------------------------------------------------

_LOGITS = jnp.array([0.7, -0.4, 1.1, -1.3])
_OLD = jax.nn.log_softmax(jnp.array([0.1, 0.3, 0.6, -0.9]))
_REFERENCE = jax.nn.log_softmax(jnp.array([-0.5, 0.8, 0.2, 0.1]))


def _expected_kl_loss(logits, old, estimator, corrected):
  """The loss over all outcomes, each weighted by its probability under `old`.

  Without advantages and with a KL coefficient of 1 only the estimate is left.
  """
  config = GrpoConfig(
    kl_coefficient=1.0, kl_estimator=estimator, kl_corrected=corrected
  )
  loss, _ = grpo.policy_loss(
    config,
    logprob_NxR=jax.nn.log_softmax(logits)[:, None],
    old_logprob_NxR=old[:, None],
    reference_logprob_NxR=_REFERENCE[:, None],
    advantage_N=jnp.zeros(4),
    mask_NxR=jnp.ones((4, 1), bool),
    row_weight_N=jnp.exp(old),
  )
  return loss.mean()


def _kl(logits, forward=False):
  p, q = jax.nn.log_softmax(logits), _REFERENCE
  return (jnp.exp(q) * (q - p) if forward else jnp.exp(p) * (p - q)).sum()


_REVERSE_SLOPE = jax.grad(_kl)(_LOGITS)
_FORWARD_SLOPE = jax.grad(functools.partial(_kl, forward=True))(_LOGITS)
_slope = jax.grad(_expected_kl_loss)
_ON_POLICY = jax.nn.log_softmax(_LOGITS)


@pytest.mark.parametrize('estimator', grpo.KL_ESTIMATORS)
def test_corrected_kl_has_the_analytic_gradient(estimator):
  for old in (_OLD, _ON_POLICY):
    got = _slope(_LOGITS, old, estimator, corrected=True)
    np.testing.assert_allclose(got, _REVERSE_SLOPE, atol=1e-6)
    if estimator != 'k2':
      value = _expected_kl_loss(_LOGITS, old, estimator, corrected=True)
      assert float(value) == pytest.approx(float(_kl(_LOGITS)), abs=1e-6)


@pytest.mark.parametrize(
  ('estimator', 'expected'),
  [
    ('k1', jnp.zeros(4)),
    ('k2', _REVERSE_SLOPE),
    ('k3', _FORWARD_SLOPE),
  ],
)
def test_uncorrected_kl_has_the_gradient_the_docstring_says(
  estimator, expected
):
  got = _slope(_LOGITS, _ON_POLICY, estimator, corrected=False)
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert np.abs(_FORWARD_SLOPE - _REVERSE_SLOPE).max() > 0.02
  off_policy = _slope(_LOGITS, _OLD, estimator, corrected=False)
  assert np.abs(off_policy - _REVERSE_SLOPE).max() > 0.02
