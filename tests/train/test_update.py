"""One step: the same for any split, order, padding and mesh."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from memagent_jax import sharding
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.policy import Policy
from memagent_jax.sft.imitation import Imitation
from memagent_jax.structs import WeightedMean
from memagent_jax.train import sequences, train_state, update
from memagent_jax.train.sequences import PolicySequences, Sequences
from memagent_jax.train.train_state import OptimizerConfig

# Every kind of parameter.
MODEL = ModelConfig(
  *('qwen3', 40, 16, 1, 2, 2, 8, 24, 64, 1e-5, RopeConfig()),
  attention_bias=True,
  attention_output_bias=True,
  qk_norm=True,
  tie_embeddings=False,
)
OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=0, clip_norm=0.0)
S, R = 20, 6
POLICY = Policy(MODEL, GrpoConfig(entropy_coefficient=0.01), 0.7)
IMITATION = Imitation(MODEL, R)
OBJECTIVES = {'policy': POLICY, 'imitation': IMITATION}


@functools.cache
def params():
  return transformer.init_params(MODEL, jax.random.key(0))


def ragged(count=13, seed=0) -> PolicySequences:
  """Rows of all lengths; some have no weight, some no response."""
  rng = np.random.default_rng(seed)
  noise = functools.partial(rng.normal, scale=0.3, size=(count, R))
  response_N = rng.integers(1, R + 1, count)
  # Advantages of one sign do not cancel; long rows have the large ones.
  advantage_N = 0.2 + 0.3 * response_N * rng.random(count)
  weight_N = np.ones(count)
  weight_N[3::7] = 0.0
  response_N[5::7] = 0
  return PolicySequences(
    turns=Sequences(
      rng.integers(0, 40, (count, S)).astype(np.int32),
      rng.integers(1, S - R + 1, count).astype(np.int32),
      response_N.astype(np.int32),
    ),
    sampler_logprob_NxR=(noise() - 3.5).astype(np.float32),
    old_logprob_NxR=(noise() - 3.5).astype(np.float32),
    reference_logprob_NxR=(noise() - 3.5).astype(np.float32),
    advantage_N=advantage_N.astype(np.float32),
    weight_N=weight_N.astype(np.float32),
  )


def split(objective, rows, *, widths=(S,), micro_tokens=16 * S, capacity=16):
  """Micro-batches of the rows as the objective wants them."""
  if isinstance(objective, Imitation):
    taught = rows.weight_N > 0
    rows = jax.tree.map(lambda x: x[taught], rows.turns)
  return sequences.micro_batches(
    rows, widths=widths, micro_tokens=micro_tokens, capacity=capacity
  )


_sums = jax.jit(update.gradient_sums, static_argnums=0)


def mean_gradient(objective, batches, of=None):
  """The gradient that an update uses, and its metrics."""
  sums, loss, metrics = _sums(
    objective, params() if of is None else of, batches
  )
  return jax.tree.map(lambda g: g / loss.weight, sums), {
    'loss': loss,
    **metrics,
  }


@functools.cache
def whole(name):
  return mean_gradient(OBJECTIVES[name], split(OBJECTIVES[name], ragged()))


def largest_gap(got, expected):
  """Largest relative gap of any parameter, by norm or maximum; with its name."""
  gaps = []
  paths = jax.tree_util.tree_leaves_with_path(expected)
  for (path, e), g in zip(paths, jax.tree.leaves(got), strict=True):
    e, g = np.asarray(e, np.float64), np.asarray(g, np.float64)
    assert np.abs(e).max() > 0 and np.isfinite(g).all(), path
    for size in (np.linalg.norm, lambda x: np.abs(x).max()):
      gaps.append((size(g - e) / size(e), jax.tree_util.keystr(path)))
  return max(gaps)


def assert_same(got, expected):
  """Compares gradients by norm and maximum, and metrics with their weights."""
  gap = largest_gap(got[0], expected[0])
  assert gap[0] <= 1e-5, gap
  assert got[1].keys() == expected[1].keys()
  for name, mean in expected[1].items():
    found = got[1][name]
    np.testing.assert_allclose(
      found.mean(), mean.mean(), rtol=1e-5, atol=1e-6, err_msg=name
    )
    np.testing.assert_allclose(found.weight, mean.weight, err_msg=name)


# --- What changes nothing ----------------------------------------------------


@pytest.mark.slow
def test_widths_and_capacity_change_nothing():
  batches = split(
    POLICY, ragged(), widths=(11, S), micro_tokens=50, capacity=40
  )
  # 5 rows in micro-batches of 4, and 4 rows in micro-batches of 2.
  assert [int(b.count) for b in batches] == [2, 2]
  assert_same(mean_gradient(POLICY, batches), whole('policy'))


@pytest.mark.slow
def test_rows_one_by_one_change_nothing():
  batches = split(POLICY, ragged(), micro_tokens=1)
  assert int(batches[0].count) == 9
  assert_same(mean_gradient(POLICY, batches), whole('policy'))


@pytest.mark.slow
def test_row_order_changes_nothing():
  rows = ragged()
  for seed in range(5):
    order = np.random.default_rng(seed).permutation(len(rows.weight_N))
    mixed = jax.tree.map(lambda x, order=order: x[order], rows)
    got = mean_gradient(POLICY, split(POLICY, mixed, micro_tokens=4 * S))
    assert_same(got, whole('policy'))


@pytest.mark.slow
def test_the_bound_would_notice_a_mean_of_means():
  (batch,) = split(POLICY, ragged(), micro_tokens=4 * S)
  parts = []
  for i in range(int(batch.count)):
    alone = jax.tree.map(lambda x, i=i: np.roll(x, -i, axis=0), batch.sequences)
    one = sequences.MicroBatches(alone, np.int32(1))
    parts.append(mean_gradient(POLICY, (one,))[0])
  assert len(parts) == 3
  mean_of_means = jax.tree.map(lambda *g: sum(g) / len(g), *parts)
  assert largest_gap(mean_of_means, whole('policy')[0])[0] > 0.01


def with_garbage(rows, dummies=3, slots=9, tokens=3):
  """Rows among dummies, with NaN and absurd ids wherever nothing counts."""
  count = len(rows.weight_N)
  turns = rows.turns
  ids = np.resize(np.int32([-1, 39, 10**6]), (count + dummies, S + slots))
  length_N = turns.prompt_length_N + turns.response_length_N
  ids[:count, :S] = np.where(
    np.arange(S) < length_N[:, None], turns.ids_NxS, ids[:count, :S]
  )

  def logprob(x):
    padded = np.full((count + dummies, R + tokens), np.nan, np.float32)
    padded[:count, :R] = np.where(
      np.arange(R) < turns.response_length_N[:, None], x, np.nan
    )
    return padded

  def with_dummies(x, value):
    return np.append(x, np.full(dummies, value, x.dtype))

  return PolicySequences(
    turns=Sequences(
      ids,
      with_dummies(turns.prompt_length_N, 4),
      with_dummies(turns.response_length_N, 0),
    ),
    sampler_logprob_NxR=logprob(rows.sampler_logprob_NxR),
    old_logprob_NxR=logprob(rows.old_logprob_NxR),
    reference_logprob_NxR=logprob(rows.reference_logprob_NxR),
    advantage_N=with_dummies(rows.advantage_N, np.nan),
    weight_N=with_dummies(rows.weight_N, 1.0),
  )


@pytest.mark.parametrize('name', OBJECTIVES)
def test_padding_and_dummies_change_nothing(name):
  """Even if `micro_batches` has not left out what does not count."""
  rows = with_garbage(ragged())
  if name == 'imitation':
    no_weight_N = rows.weight_N == 0
    rows = rows.turns
    rows.response_length_N[no_weight_N] = 0
  halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), rows)
  got = mean_gradient(
    OBJECTIVES[name], (sequences.MicroBatches(halves, np.int32(2)),)
  )
  assert_same(got, whole(name))


def compare_on_eight_devices():
  """Rows split over all devices, parameters over two."""
  assert len(jax.devices()) == 8
  mesh = sharding.make_mesh(sharding.MeshConfig(4, 2, 1))
  on_rows = NamedSharding(mesh, PartitionSpec(None, ('data', 'fsdp')))
  (batch,) = split(POLICY, ragged(), micro_tokens=8 * S)
  batch = batch.replace(sequences=jax.device_put(batch.sequences, on_rows))
  ids = batch.sequences.turns.ids_NxS
  assert [x.data.shape for x in ids.addressable_shards] == [(2, 1, S)] * 8
  of = jax.device_put(
    params(),
    sharding.param_shardings(mesh, transformer.abstract_params(MODEL)),
  )
  assert_same(mean_gradient(POLICY, (batch,), of), whole('policy'))


@pytest.mark.slow
def test_eight_devices_change_nothing(run_on_eight_devices):
  run_on_eight_devices(
    'from tests.train import test_update as t; t.compare_on_eight_devices()'
  )


# --- The step ----------------------------------------------------------------


_apply = jax.jit(train_state.apply_gradients, static_argnums=0)


def fresh_state():
  # The update donates its state.
  return train_state.init_state(OPTIMIZER, jax.tree.map(jnp.copy, params()))


def kept(state):
  """Parameters and optimizer, out of reach of donation."""
  return jax.device_get((state.params, state.opt_state))


def assert_equal(got, expected):
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_step_is_the_optimizer_s_on_the_mean_gradient():
  batches = split(POLICY, ragged(), micro_tokens=4 * S)
  before = fresh_state()
  gradient, _ = whole('policy')
  expected, norm = _apply(OPTIMIZER, before, gradient)
  # Adam's first moment is linear in the gradient; its step is not.
  moments = optax.tree.get(expected.opt_state, 'mu')
  state, metrics = update.update(POLICY, OPTIMIZER, before, batches)
  gap = largest_gap(optax.tree.get(state.opt_state, 'mu'), moments)
  assert gap[0] <= 1e-5, gap
  assert float(metrics['grad_norm'].mean()) == pytest.approx(
    float(norm), rel=1e-5
  )
  assert float(metrics['grad_norm'].weight) == 1.0
  assert (int(state.step), int(state.skipped)) == (1, 0)


@dataclasses.dataclass(frozen=True)
class Scale:
  """The loss of a row of numbers: its sum times the parameter."""

  def __call__(self, params, rows):
    loss = WeightedMean((params['a'] * rows).sum(), jnp.float32(rows.size))
    return loss, {'twice': WeightedMean(2 * loss.sum, loss.weight)}


def scale_step(*batches):
  """(state, metrics) after a step of plain descent from 3, with rate 1."""
  optimizer = dataclasses.replace(OPTIMIZER, beta1=0.0)
  state = train_state.init_state(optimizer, {'a': jnp.float32(3.0)})
  batches = tuple(
    sequences.MicroBatches(np.array(rows, np.float32), np.int32(count))
    for rows, count in batches
  )
  return update.update(Scale(), optimizer, state, batches)


def test_a_step_is_one_on_the_mean_of_all_widths_and_micro_batches():
  """Numbers 1 to 4 and 10, 20, 30; rows beyond the count must not be read."""
  narrow = [[[1.0]], [[2.0]], [[3.0]], [[4.0]], [[1e6]]]
  wide = [[[10.0, 20.0, 30.0]], [[1e6, 1e6, 1e6]]]
  state, metrics = scale_step((narrow, 4), (wide, 1))
  mean = (1 + 2 + 3 + 4 + 10 + 20 + 30) / 7
  assert float(metrics['loss'].mean()) == pytest.approx(3 * mean)
  assert float(metrics['loss'].weight) == 7
  assert float(metrics['twice'].mean()) == pytest.approx(6 * mean)
  assert float(metrics['grad_norm'].mean()) == pytest.approx(mean)
  moment = optax.tree.get(state.opt_state, 'mu')['a']
  assert float(moment) == pytest.approx(mean)
  assert (int(state.step), int(state.skipped)) == (1, 0)


def test_a_step_without_any_weight_changes_nothing():
  state, metrics = scale_step(([[[5.0]]], 0))
  assert float(state.params['a']) == 3.0
  assert float(metrics['loss'].mean()) == 0.0
  assert (int(state.step), int(state.skipped)) == (0, 0)
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_steps_lower_the_loss_and_are_counted():
  state, losses = fresh_state(), []
  batches = split(IMITATION, ragged(), micro_tokens=4 * S)
  for _ in range(8):
    state, metrics = update.update(IMITATION, OPTIMIZER, state, batches)
    losses.append(float(metrics['loss'].mean()))
  assert losses[-1] < 0.6 * losses[0]
  assert losses == sorted(losses, reverse=True)
  assert (int(state.step), int(state.skipped)) == (8, 0)


def test_rows_without_weight_move_nothing():
  """Not even through the momentum of the previous step."""
  rows, how = ragged(), {'micro_tokens': 4 * S}
  nothing = {
    'no weight': rows.replace(weight_N=np.zeros_like(rows.weight_N)),
    'no rows': jax.tree.map(lambda x: x[:0], rows),
  }
  state, _ = update.update(
    POLICY, OPTIMIZER, fresh_state(), split(POLICY, rows, **how)
  )
  before = kept(state)
  for empty in nothing.values():
    batches = split(POLICY, empty, **how)
    assert int(batches[0].count) == 0
    state, metrics = update.update(POLICY, OPTIMIZER, state, batches)
    assert_equal(kept(state), before)
    assert (int(state.step), int(state.skipped)) == (1, 0)
    assert float(metrics['loss'].mean()) == 0.0
    assert float(metrics['loss'].weight) == 0.0
  # Momentum alone would have moved them.
  moved, _ = _apply(
    OPTIMIZER, state, jax.tree.map(jnp.zeros_like, state.params)
  )
  assert np.abs(moved.params['embedding'] - before[0]['embedding']).max() > 0.01


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(bad):
  rows, how = ragged(), {'micro_tokens': 4 * S}
  broken = rows.replace(advantage_N=rows.advantage_N.copy())
  broken.advantage_N[0] = bad
  state = fresh_state()
  before = kept(state)
  state, metrics = update.update(
    POLICY, OPTIMIZER, state, split(POLICY, broken, **how)
  )
  assert not np.isfinite(metrics['grad_norm'].mean())
  assert_equal(kept(state), before)
  assert (int(state.step), int(state.skipped)) == (0, 1)
  # The next step is as if nothing had happened.
  good = split(POLICY, rows, **how)
  state, _ = update.update(POLICY, OPTIMIZER, state, good)
  other, _ = update.update(POLICY, OPTIMIZER, fresh_state(), good)
  assert_equal(kept(state), kept(other))
  assert (int(state.step), int(state.skipped)) == (1, 1)


@pytest.mark.slow
def test_ragged_batches_compile_once(caplog):
  """With one capacity; equal objectives and optimizers count as the same."""
  state = fresh_state()
  with jax.log_compiles(), caplog.at_level('WARNING'):
    for count in (16, 1, 9, 4, 13, 16):
      objective = dataclasses.replace(POLICY, grpo=GrpoConfig(clip_low=0.11))
      batches = split(
        objective, ragged(count, seed=count), widths=(10, S), micro_tokens=80
      )
      logprobs = [
        update.log_probs(MODEL, 0.7, state.params, batch) for batch in batches
      ]
      batches = tuple(
        batch.replace(
          sequences=batch.sequences.replace(old_logprob_NxR=logprob)
        )
        for batch, logprob in zip(batches, logprobs, strict=True)
      )
      optimizer = dataclasses.replace(OPTIMIZER)
      state, metrics = update.update(objective, optimizer, state, batches)
  assert float(metrics['loss'].weight) > 0
  compiled = re.findall(
    r'Finished XLA compilation of jit\((_update|log_probs)\)', caplog.text
  )
  # log_probs: each of the two widths.
  assert sorted(compiled) == ['_update', 'log_probs', 'log_probs']
