"""Both objectives against a NumPy decoder and loss."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.rl.policy import Policy
from memagent_jax.sft.imitation import Imitation
from memagent_jax.train.sequences import PolicySequences, Sequences
from tests.tiny_runs import preset

PRESETS = ('paper', 'released_script', 'dapo', 'dr_grpo')
THETA = 100.0
MODEL = ModelConfig(
  *('llama', 30, 16, 1, 4, 2, 8, 24, 64, 1e-5, RopeConfig(THETA))
)
S, R, TEMPERATURE = 18, 6, 0.7
# Row 3 is a dummy; rows 1 and 4 fill both response and sequence.
PROMPT_N = np.array([4, 12, 1, 2, 12, 7, 3], np.int32)
RESPONSE_N = np.array([3, 6, 6, 0, 6, 1, 5], np.int32)
MASK_NxR = np.arange(R) < RESPONSE_N[:, None]


@functools.cache
def params():
  made = transformer.init_params(MODEL, jax.random.key(3))
  # Larger embeddings make the random model's distribution peaked, not uniform.
  return {**made, 'embedding': made['embedding'] * 3}


def turns():
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 30, (len(PROMPT_N), S)).astype(np.int32)
  return Sequences(ids, PROMPT_N, RESPONSE_N)


# --- The model in NumPy ------------------------------------------------------


def _norm(x, scale):
  rms = np.sqrt((x * x).mean(-1, keepdims=True) + MODEL.norm_epsilon)
  return x / rms * scale['scale']


def _rotated(x_TxHxD):
  """Pairs (d, d + D/2) as complex numbers, turned by position * frequency."""
  t, _, d = x_TxHxD.shape
  angle = np.arange(t)[:, None] * THETA ** (-np.arange(0, d, 2) / d)
  z = x_TxHxD[..., : d // 2] + 1j * x_TxHxD[..., d // 2 :]
  z = z * np.exp(1j * angle)[:, None]
  return np.concatenate([z.real, z.imag], axis=-1)


def _attended(layer, x_TxE):
  q = _rotated(np.einsum('te,ehd->thd', x_TxE, layer['q']['kernel']))
  k, v = np.einsum('te,ecjd->ctjd', x_TxE, layer['kv']['kernel'])
  group = MODEL.num_heads // MODEL.num_kv_heads
  k, v = np.repeat(_rotated(k), group, 1), np.repeat(v, group, 1)
  scores = np.einsum('thd,shd->hts', q, k) / np.sqrt(MODEL.head_dim)
  weight = np.exp(scores) * np.tri(len(x_TxE))
  weight /= weight.sum(-1, keepdims=True)
  out = np.einsum('hts,shd->thd', weight, v)
  return np.einsum('thd,hde->te', out, layer['o']['kernel'])


def _logits(p, ids_T):
  """float64 logits [T, V] after every token."""
  x = p['embedding'][ids_T]
  for i in range(MODEL.num_layers):
    layer = p[f'layer_{i}']
    x = x + _attended(layer['attention'], _norm(x, layer['attention_norm']))
    gate, up = np.einsum(
      'te,ecf->ctf',
      _norm(x, layer['mlp_norm']),
      layer['mlp']['gate_up']['kernel'],
    )
    x = x + (gate / (1 + np.exp(-gate)) * up) @ layer['mlp']['down']['kernel']
  return _norm(x, p['final_norm']) @ p['embedding'].T


def numpy_log_probs(p, temperature):
  """float64 log-probs and entropies [N, R] of responses, NaN after their ends."""
  logprob, entropy = np.full((2, len(PROMPT_N), R), np.nan)
  ids = turns().ids_NxS
  for n, (start, count) in enumerate(zip(PROMPT_N, RESPONSE_N, strict=True)):
    if count:
      logits = _logits(p, ids[n, : start + count]) / temperature
      every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
      every = every[start - 1 : start + count - 1]
      sampled = ids[n, start : start + count]
      logprob[n, :count] = every[np.arange(count), sampled]
      entropy[n, :count] = -(np.exp(every) * every).sum(-1)
  return logprob, entropy


@functools.cache
def float64_params():
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params())


def policy_rows():
  """Old and reference policies so near that some tokens are clipped, some not."""
  rng = np.random.default_rng(1)
  logprob, _ = numpy_log_probs(float64_params(), TEMPERATURE)
  logprob = np.where(MASK_NxR, logprob, 0.0)
  old = logprob - rng.normal(0.0, 0.35, logprob.shape)
  advantage_N = np.array([0.8, -1.1, 0.6, 0.5, 1.3, -0.4, -0.9])
  # Beyond the dual clip.
  old[1, :2] = logprob[1, :2] - 1.4
  weight_N = np.array([1, 1, 1, 1, 0, 1, 1])
  shifted = logprob + rng.normal(0.0, 0.3, logprob.shape)
  return PolicySequences(
    turns(),
    *(x.astype(np.float32) for x in (old, old, shifted, advantage_N, weight_N)),
  )


def numpy_policy_loss(config, p):
  """The mean loss of `policy_rows`, and the share of tokens beyond a clip."""
  rows = policy_rows()
  logprob, entropy = numpy_log_probs(p, TEMPERATURE)
  counts_NxR = MASK_NxR & (rows.weight_N > 0)[:, None]
  n, _ = np.nonzero(counts_NxR)
  advantage = rows.advantage_N[n].astype(np.float64)
  old, reference, logprob, entropy = (
    x[counts_NxR].astype(np.float64)
    for x in (
      rows.old_logprob_NxR,
      rows.reference_logprob_NxR,
      logprob,
      entropy,
    )
  )
  ratio = np.exp(logprob - old)
  bound = np.where(advantage > 0, 1 + config.clip_high, 1 - config.clip_low)
  # The pessimistic gain: where a ratio helps, it counts only up to its bound.
  limit = np.where(advantage > 0, np.minimum, np.maximum)
  clipped = np.array(
    [f(r, b) for f, r, b in zip(limit, ratio, bound, strict=True)]
  )
  gain = advantage * clipped
  beyond = (advantage < 0) & (clipped > (config.dual_clip or np.inf))
  gain = np.where(beyond, advantage * config.dual_clip, gain)
  x = reference - logprob
  loss = (
    config.kl_coefficient * (np.exp(x) - 1 - x)
    - gain
    - config.entropy_coefficient * entropy
  )
  divisor = len(loss)
  if config.aggregation == 'constant':
    divisor = len(set(n)) * config.constant_tokens
  return loss.sum() / divisor, (clipped != ratio).mean(), beyond.mean()


# --- Objectives --------------------------------------------------------------


def _moved(direction, by):
  return jax.tree.map(lambda p, d: p + by * d, float64_params(), direction)


def check_value_and_slope(objective, rows, numpy_loss):
  """Checks the loss, and its derivative in a random direction of all params."""
  rng = np.random.default_rng(2)
  direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params())

  def mean(params):
    loss, metrics = objective(params, rows)
    return loss.mean(), metrics

  (loss, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(
    params()
  )
  assert float(loss) == pytest.approx(numpy_loss(float64_params()), rel=2e-5)
  slope = sum(
    np.vdot(np.asarray(g, np.float64), d)
    for g, d in zip(
      jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
    )
  )
  step = 1e-6
  expected = (
    numpy_loss(_moved(direction, step)) - numpy_loss(_moved(direction, -step))
  ) / (2 * step)
  assert slope == pytest.approx(expected, rel=1e-4)
  return metrics


@pytest.mark.parametrize('name', PRESETS)
def test_policy_equals_a_loss_in_numpy(name):
  config = preset(name)
  metrics = check_value_and_slope(
    Policy(MODEL, config, TEMPERATURE),
    policy_rows(),
    lambda p: numpy_policy_loss(config, p)[0],
  )
  _, clipped, beyond = numpy_policy_loss(config, float64_params())
  assert clipped > 0.1
  got = [
    float(metrics[f'clip_{side}_fraction'].mean()) for side in ('low', 'high')
  ]
  assert min(got) > 0 and sum(got) == pytest.approx(clipped, rel=1e-5)
  if config.dual_clip:
    assert beyond > 0
    found = float(metrics['dual_clip_fraction'].mean())
    assert found == pytest.approx(beyond, rel=1e-5)


def test_imitation_is_the_mean_log_loss_of_response_tokens():
  def numpy_loss(p):
    return -np.nanmean(numpy_log_probs(p, 1.0)[0])

  metrics = check_value_and_slope(Imitation(MODEL, R), turns(), numpy_loss)
  assert float(metrics['nll'].weight) == RESPONSE_N.sum()


def test_entropy_is_that_of_the_tempered_policy():
  config = dataclasses.replace(preset('dapo'), entropy_coefficient=0.05)
  metrics = check_value_and_slope(
    Policy(MODEL, config, TEMPERATURE),
    policy_rows(),
    lambda p: numpy_policy_loss(config, p)[0],
  )
  _, entropy = numpy_log_probs(float64_params(), TEMPERATURE)
  expected = np.nanmean(entropy[policy_rows().weight_N > 0])
  assert float(metrics['entropy'].mean()) == pytest.approx(expected, rel=1e-5)


def test_entropy_is_left_out_on_request_only():
  paper = Policy(
    MODEL,
    dataclasses.replace(preset('paper'), log_entropy=False),
    TEMPERATURE,
  )
  rows = policy_rows()
  _, metrics = jax.eval_shape(paper, params(), rows)
  assert 'entropy' not in metrics
  # An objective that needs the entropy cannot leave it out.
  with pytest.raises(ValueError, match='log_entropy is False'):
    dataclasses.replace(paper.grpo, entropy_coefficient=0.1)


def test_equal_objectives_are_one_static_argument():
  one, two = (
    Policy(MODEL, dataclasses.replace(preset('paper')), TEMPERATURE)
    for _ in range(2)
  )
  assert one == two and hash(one) == hash(two)
  assert one != dataclasses.replace(one, temperature=1.0)
