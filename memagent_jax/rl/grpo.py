"""GRPO over conversations: advantages, and the policy loss of a batch of turns.

    reward_BxG -> advantages -> turn_advantages -> policy_loss -> (sum, weight)

A trajectory is C memory turns and an answer turn, each a conversation and a row
of its own. Only the answer is scored; the trajectory's advantage goes to every
token of all its turns. GRPO, Dr. GRPO, DAPO and the paper's objective are values
of one `GrpoConfig`, written down in `gin_configs/objectives/`.
Source: MemAgent, arXiv 2507.02259, section 3, equation 5.
"""

import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax.structs import LENGTH, SKIPPED, Array, WeightedMean

AGGREGATIONS = ('token_mean', 'sequence_mean', 'constant')
KL_ESTIMATORS = ('k1', 'k2', 'k3')
OVERLONG_FILTERS = ('off', 'answer', 'any_turn')
OLD_LOG_PROBS = ('sampler', 'trainer')
# exp() of a log-ratio stops growing here, at 5e8 and far beyond every clip: the
# gradient of an infinite ratio, 0 * inf, would be NaN.
_LARGEST_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class GrpoConfig:
  """The objective by value; hashable. The defaults are the `paper` preset."""

  # Divide advantages by their group's sample standard deviation (G - 1).
  normalise_std: bool = False
  # Added to that standard deviation.
  std_epsilon: float = 1e-6
  # The ratio to the old policy is clipped to [1 - clip_low, 1 + clip_high].
  clip_low: float = 0.2
  clip_high: float = 0.28
  # A token of negative advantage A loses at most dual_clip * |A|; 0 is off.
  dual_clip: float = 0.0
  # token_mean: every token counts the same. sequence_mean: every row does.
  # constant: sum over tokens / (rows * constant_tokens), as in Dr. GRPO.
  aggregation: str = 'token_mean'
  # Divisor of `constant`, the cap of a response in tokens; else 0.
  constant_tokens: int = 0
  # Weight of the KL divergence to the reference model; 0 needs no such model.
  kl_coefficient: float = 1e-3
  # One of KL_ESTIMATORS; see `kl_estimate`.
  kl_estimator: str = 'k3'
  # Make the estimate's gradient that of KL(policy || reference).
  kl_corrected: bool = False
  # Weight of the entropy bonus; 0 needs no entropies.
  entropy_coefficient: float = 0.0
  # Drop groups whose scores are all alike ...
  dynamic_sampling: bool = False
  # ... and sample at most this many more batches to replace them.
  max_refills: int = 0
  # Whose turns get no weight: `off`; `answer`: trajectories whose answer was cut
  # at its cap; `any_turn`: those with any turn cut.
  overlong_filter: str = 'off'
  # Tokens below the answer's cap over which the score loses 0 to 1; 0 is off.
  overlong_buffer_tokens: int = 0
  # The same for the trajectory's longest memory; 0 is off.
  overlong_memory_buffer_tokens: int = 0
  # Log-probs that the ratio is relative to: as the sampler recorded them, or as
  # the trainer recomputes them before the first update.
  old_log_probs: str = 'sampler'
  # Log the policy's entropy at every token: a second use of the logits.
  log_entropy: bool = True
  # Truncated importance sampling where sampler and trainer disagree: the cap on
  # the weights of the policy-gradient term; 0 is off.
  importance_cap: float = 0.0

  def __post_init__(self) -> None:
    _check_types(self)
    for name, choices in (
      ('aggregation', AGGREGATIONS),
      ('kl_estimator', KL_ESTIMATORS),
      ('overlong_filter', OVERLONG_FILTERS),
      ('old_log_probs', OLD_LOG_PROBS),
    ):
      value = getattr(self, name)
      if value not in choices:
        raise ValueError(
          f'{name} is {value!r}; choose one of {", ".join(choices)}.'
        )
    for name, holds, expected in (
      ('std_epsilon', self.std_epsilon >= 0, 'at least 0'),
      ('clip_low', 0 < self.clip_low <= 1, 'more than 0 and at most 1'),
      ('clip_high', self.clip_high > 0, 'more than 0'),
      ('dual_clip', self.dual_clip == 0 or self.dual_clip > 1, '0 or above 1'),
      ('constant_tokens', self.constant_tokens >= 0, 'at least 0'),
      ('kl_coefficient', self.kl_coefficient >= 0, 'at least 0'),
      ('entropy_coefficient', self.entropy_coefficient >= 0, 'at least 0'),
      ('max_refills', self.max_refills >= 0, 'at least 0'),
      (
        'overlong_buffer_tokens',
        self.overlong_buffer_tokens >= 0,
        'at least 0',
      ),
      (
        'overlong_memory_buffer_tokens',
        self.overlong_memory_buffer_tokens >= 0,
        'at least 0',
      ),
      (
        'importance_cap',
        self.importance_cap == 0 or self.importance_cap >= 1,
        '0 or at least 1',
      ),
    ):
      if not holds:
        raise ValueError(
          f'{name} is {getattr(self, name)}; expected {expected}.'
        )
    if (self.aggregation == 'constant') != (self.constant_tokens > 0):
      raise ValueError(
        f'aggregation is {self.aggregation!r} and constant_tokens is '
        f'{self.constant_tokens}; constant needs the cap of a response in '
        'tokens, the others need 0.'
      )
    if self.importance_cap and self.old_log_probs != 'trainer':
      raise ValueError(
        f'importance_cap is {self.importance_cap} and old_log_probs is '
        f'{self.old_log_probs!r}: the weights would all be 1. Set '
        "old_log_probs to 'trainer', or importance_cap to 0."
      )
    if self.entropy_coefficient and not self.log_entropy:
      raise ValueError(
        f'entropy_coefficient is {self.entropy_coefficient} and log_entropy is '
        'False; set log_entropy to True.'
      )
    if self.max_refills and not self.dynamic_sampling:
      raise ValueError(
        f'max_refills is {self.max_refills} and dynamic_sampling is False; '
        'nothing would be refilled. Set one of them.'
      )


def _check_types(config: GrpoConfig) -> None:
  """Raises ValueError for a value whose type is not its field's."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    kind: Any = field.type
    accepted = (int, float) if kind is float else kind
    # In Python a bool is an int.
    confused = isinstance(value, bool) and kind is not bool
    if confused or not isinstance(value, accepted):
      raise ValueError(
        f'{field.name} is {value!r}, a {type(value).__name__}; expected a '
        f'{kind.__name__}.'
      )
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f'{field.name} is {value}; expected a finite number.')


def check_caps(
  config: GrpoConfig, *, memory_tokens: int, answer_tokens: int
) -> None:
  """Refuses overlong buffers that are longer than the responses may be.

  Raises:
    ValueError: a buffer exceeds its cap; the message has both, in tokens.
  """
  for name, cap_name, cap in (
    ('overlong_buffer_tokens', 'answer_tokens', answer_tokens),
    ('overlong_memory_buffer_tokens', 'memory_tokens', memory_tokens),
  ):
    if getattr(config, name) > cap:
      raise ValueError(
        f'{name} is {getattr(config, name)}; expected at most {cap_name}, {cap}.'
      )


def preset_difference(a: GrpoConfig, b: GrpoConfig) -> dict[str, tuple]:
  """Name -> (value in a, value in b) of every field that differs."""
  names = [field.name for field in dataclasses.fields(GrpoConfig)]
  pairs = {name: (getattr(a, name), getattr(b, name)) for name in names}
  return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def needs_reference(config: GrpoConfig) -> bool:
  """Whether the loss needs log-probs of a reference model."""
  return config.kl_coefficient > 0


def needs_entropy(config: GrpoConfig) -> bool:
  """Whether the loss needs entropies."""
  return config.entropy_coefficient > 0


def degenerate_groups(score_BxG: Array) -> jax.Array:
  """bool [B]: groups whose scores are all alike, which teach nothing.

  For dynamic sampling the scores are the verifier's: a length penalty would
  make every group look different. The result's mean is their share.
  """
  score_BxG = jnp.asarray(score_BxG)
  return score_BxG.max(axis=1) == score_BxG.min(axis=1)


def soft_overlong_penalty(
  length_tokens: Array, cap_tokens: int, buffer_tokens: int
) -> jax.Array:
  """0 up to cap - buffer tokens, then linearly down to -1 at the cap; float32.

  Source: DAPO, arXiv 2503.14476, equation 13.

  Raises:
    ValueError: a buffer that is empty or longer than the cap.
  """
  if not 0 < buffer_tokens <= cap_tokens:
    raise ValueError(
      f'the overlong buffer has {buffer_tokens} tokens and the cap is '
      f'{cap_tokens}; expected a buffer of 1 to {cap_tokens} tokens.'
    )
  excess = jnp.asarray(length_tokens) - (cap_tokens - buffer_tokens)
  return -jnp.clip(excess.astype(jnp.float32) / buffer_tokens, 0.0, 1.0)


def advantages(reward_BxG: Array, config: GrpoConfig) -> jax.Array:
  """float32 [B, G]: each trajectory's reward relative to its group's mean.

  Exactly 0 in a group whose rewards are all alike, however the mean is rounded.
  Computed once per trajectory, so its number of turns plays no part.

  Raises:
    ValueError: not a matrix, or groups of one, which have no baseline.
  """
  reward_BxG = jnp.asarray(reward_BxG, jnp.float32)
  if reward_BxG.ndim != 2 or reward_BxG.shape[1] < 2:
    raise ValueError(
      f'rewards have shape {reward_BxG.shape}; expected [documents, rollouts '
      'per document] with 2 rollouts or more: one alone has no baseline.'
    )
  result = reward_BxG - reward_BxG.mean(axis=1, keepdims=True)
  if config.normalise_std:
    std_Bx1 = reward_BxG.std(axis=1, ddof=1, keepdims=True)
    result = result / (std_Bx1 + config.std_epsilon)
  return jnp.where(degenerate_groups(reward_BxG)[:, None], 0.0, result)


def kept_trajectories(
  config: GrpoConfig, memory_finish_CxN: Array, answer_finish_N: Array
) -> jax.Array:
  """bool [N]: trajectories that `overlong_filter` does not exclude."""
  cut_N = jnp.zeros(answer_finish_N.shape, bool)
  if config.overlong_filter != 'off':
    cut_N = answer_finish_N == LENGTH
  if config.overlong_filter == 'any_turn':
    cut_N = cut_N | jnp.any(memory_finish_CxN == LENGTH, axis=0)
  return ~cut_N


def turn_advantages(
  advantage_BxG: jax.Array,
  finish_CxN: Array,
  kept_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Advantage and weight of every turn, float32 [C, N] each, N = B * G.

  Trajectory n = b * G + g passes its advantage to all its turns. A turn weighs
  1, or 0 where the row was skipped or its trajectory is not kept. Flattened,
  with the answers last, these are the rows of `turns.trajectory_sequences`.

  Args:
    advantage_BxG: from `advantages`.
    finish_CxN: finish reasons of C turns: memory turns, answers, or both.
    kept_N: from `kept_trajectories`; None keeps all.
  """
  advantage_CxN = jnp.broadcast_to(advantage_BxG.reshape(-1), finish_CxN.shape)
  live_CxN = finish_CxN != SKIPPED
  if kept_N is not None:
    live_CxN = live_CxN & kept_N
  return advantage_CxN, live_CxN.astype(jnp.float32)


def kl_estimate(
  config: GrpoConfig,
  logprob: jax.Array,
  reference_logprob: jax.Array,
  ratio: jax.Array,
) -> jax.Array:
  """Per-token estimate of KL(policy || reference), elementwise.

  With x = log reference - log policy of the sampled token:

      k1 = -x           k2 = x^2 / 2          k3 = e^x - 1 - x

  Values: k1 and k3 have the right mean on-policy, k3 with less variance; k2 is
  biased. Gradients, on-policy and uncorrected: k1's has mean 0; k2's mean is
  the gradient of KL(policy || reference); k3's is that of the other direction,
  KL(reference || policy). Off-policy, none of the three has either gradient.

  `kl_corrected` multiplies by the ratio policy / old policy. The gradient flows
  through the ratio for k1 and k3, whose mean then *is* the divergence at every
  policy, but not for k2, whose own gradient only needs the right weights. The
  mean gradient is then that of KL(policy || reference) for all three, on- and
  off-policy; "mean" is over a token given the prefix that was sampled.

  Source: k1 to k3, J. Schulman, "Approximating KL divergence", 2020; gradients,
  arXiv 2510.01555; k3 with the ratio, DeepSeek-V3.2, arXiv 2512.02556, eq. 7.
  """
  x = reference_logprob - logprob
  if config.kl_estimator == 'k1':
    estimate = -x
  elif config.kl_estimator == 'k2':
    estimate = 0.5 * x * x
  else:
    estimate = _k3(x)
  if not config.kl_corrected:
    return estimate
  if config.kl_estimator == 'k2':
    ratio = lax.stop_gradient(ratio)
  return ratio * estimate


def policy_loss(
  config: GrpoConfig,
  *,
  logprob_NxR: jax.Array,
  old_logprob_NxR: jax.Array,
  advantage_N: jax.Array,
  mask_NxR: jax.Array,
  entropy_NxR: jax.Array | None = None,
  reference_logprob_NxR: jax.Array | None = None,
  sampler_logprob_NxR: jax.Array | None = None,
  row_weight_N: jax.Array | None = None,
) -> tuple[WeightedMean, dict[str, WeightedMean]]:
  """The loss to minimise and its metrics, as sums and weights.

  Rows may be split in any way: add the `sum`s (or their gradients) of all
  parts, divide once by the added `weight`s. Tokens outside the mask and rows of
  weight 0 may hold anything, NaN included; they change nothing.

  Args:
    config: the objective; static.
    logprob_NxR: log-probs of the policy; the only argument besides entropy_NxR
      through which gradients flow.
    old_logprob_NxR: log-probs of the policy that the ratio is relative to.
    advantage_N: one advantage per row, from `turn_advantages`.
    mask_NxR: bool, the response's tokens; all False in a dummy row.
    entropy_NxR: entropy of the policy's distribution at each token.
    reference_logprob_NxR: log-probs of the reference model.
    sampler_logprob_NxR: log-probs that the sampler recorded.
    row_weight_N: weights of the rows, at least 0; None: 1.

  Returns:
    the loss, and means over the tokens that count: `ratio`, `ratio_deviation`
    (from 1) and `approx_kl` (k3) to the old policy, the fractions at each clip,
    and, where they can be computed, `reference_kl` (k3), `entropy`,
    `sampler_gap` (mean |log-prob difference| to the sampler, nats: before the
    first update of a batch, how far sampler and trainer are apart) and
    `importance_weight`.

  Raises:
    ValueError: an argument that the config needs is missing.
  """
  for field, argument, name in (
    ('kl_coefficient', reference_logprob_NxR, 'reference_logprob_NxR'),
    ('entropy_coefficient', entropy_NxR, 'entropy_NxR'),
    ('importance_cap', sampler_logprob_NxR, 'sampler_logprob_NxR'),
  ):
    if getattr(config, field) and argument is None:
      raise ValueError(
        f'{field} is {getattr(config, field)} and {name} is None; pass it, or '
        f'set {field} to 0.'
      )
  weight_NxR = mask_NxR.astype(jnp.float32)
  if row_weight_N is not None:
    weight_NxR = jnp.where(mask_NxR, row_weight_N[:, None], 0.0)

  def real(x: jax.Array) -> jax.Array:
    """x in float32, with 0 wherever the weight is 0."""
    return jnp.where(weight_NxR > 0.0, x.astype(jnp.float32), 0.0)

  def constant(x: jax.Array) -> jax.Array:
    return lax.stop_gradient(real(x))

  logprob, old_logprob = real(logprob_NxR), constant(old_logprob_NxR)
  advantage = constant(advantage_N[:, None])
  log_ratio = logprob - old_logprob
  ratio = _bounded_exp(log_ratio)
  loss = _surrogate(config, ratio, advantage)
  metrics = {
    'ratio': ratio,
    'ratio_deviation': jnp.abs(ratio - 1.0),
    'approx_kl': _k3(log_ratio),
    'clip_high_fraction': (advantage > 0) & (ratio > 1 + config.clip_high),
    'clip_low_fraction': (advantage < 0) & (ratio < 1 - config.clip_low),
  }
  if config.dual_clip:
    metrics['dual_clip_fraction'] = (advantage < 0) & (ratio > config.dual_clip)
  if sampler_logprob_NxR is not None:
    sampler_logprob = constant(sampler_logprob_NxR)
    metrics['sampler_gap'] = jnp.abs(logprob - sampler_logprob)
    if config.importance_cap:
      gap = old_logprob - sampler_logprob
      weight = jnp.minimum(_bounded_exp(gap), config.importance_cap)
      metrics['importance_weight'] = weight
      loss = weight * loss
  if reference_logprob_NxR is not None:
    reference = constant(reference_logprob_NxR)
    metrics['reference_kl'] = _k3(reference - logprob)
    if needs_reference(config):
      kl = kl_estimate(config, logprob, reference, ratio)
      loss = loss + config.kl_coefficient * kl
  if entropy_NxR is not None:
    metrics['entropy'] = real(entropy_NxR)
    if needs_entropy(config):
      loss = loss - config.entropy_coefficient * metrics['entropy']

  def token_mean(x_NxR: jax.Array) -> WeightedMean:
    return WeightedMean((weight_NxR * x_NxR).sum(), weight_NxR.sum())

  means = {name: token_mean(value) for name, value in metrics.items()}
  return _aggregate(config, loss, weight_NxR), lax.stop_gradient(means)


def _bounded_exp(x: jax.Array) -> jax.Array:
  return jnp.exp(jnp.minimum(x, _LARGEST_LOG_RATIO))


def _k3(x: jax.Array) -> jax.Array:
  x = jnp.minimum(x, _LARGEST_LOG_RATIO)
  return jnp.expm1(x) - x


def _surrogate(
  config: GrpoConfig, ratio: jax.Array, advantage: jax.Array
) -> jax.Array:
  """Clipped policy-gradient loss per token.

  Source: clip, arXiv 1707.06347; its two bounds, DAPO, arXiv 2503.14476; dual
  clip, arXiv 1912.09729.
  """
  clipped = jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)
  loss = jnp.maximum(-advantage * ratio, -advantage * clipped)
  if config.dual_clip:
    bounded = jnp.minimum(loss, -config.dual_clip * advantage)
    loss = jnp.where(advantage < 0, bounded, loss)
  return loss


def _aggregate(
  config: GrpoConfig, loss_NxR: jax.Array, weight_NxR: jax.Array
) -> WeightedMean:
  """Sum and weight of the token losses under `config.aggregation`."""
  if config.aggregation == 'token_mean':
    return WeightedMean((weight_NxR * loss_NxR).sum(), weight_NxR.sum())
  # All tokens of a row weigh the same; a row without tokens weighs nothing.
  rows = weight_NxR.max(axis=1).sum()
  if config.aggregation == 'constant':
    return WeightedMean(
      (weight_NxR * loss_NxR).sum(), rows * config.constant_tokens
    )
  tokens_Nx1 = (weight_NxR > 0.0).sum(axis=1, keepdims=True)
  mean_NxR = loss_NxR / jnp.maximum(tokens_Nx1, 1)
  return WeightedMean((weight_NxR * mean_NxR).sum(), rows)
