"""What a batch of trajectories is worth, and how it went: functions of arrays.

Trajectories, Verdicts -> scores -> advantages;  measure -> metrics of a step
"""

import numpy as np

from memagent_jax.agent import memory_health
from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.trajectories import Trajectories, Verdicts
from memagent_jax.data.batch import Batch
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.rewards import OUTCOMES
from memagent_jax.rl import grpo
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.structs import LENGTH, SKIPPED


def scores(
  agent: AgentConfig,
  objective: GrpoConfig,
  trajectories: Trajectories,
  verdicts: Verdicts,
) -> np.ndarray:
  """float32 [B, G]: the rewards minus penalties for overlong responses."""
  score_BxG = verdicts.reward_BxG
  for length_N, cap_tokens, buffer_tokens in (
    (
      trajectories.answer.length_N,
      agent.answer.max_tokens,
      objective.overlong_buffer_tokens,
    ),
    (
      # Skipped turns have no tokens.
      trajectories.turns.response.length_N.max(axis=0),
      agent.memory.max_tokens,
      objective.overlong_memory_buffer_tokens,
    ),
  ):
    if buffer_tokens:
      penalty_N = grpo.soft_overlong_penalty(
        length_N, cap_tokens, buffer_tokens
      )
      score_BxG = score_BxG + np.asarray(penalty_N).reshape(score_BxG.shape)
  return score_BxG


def degenerate_groups(
  objective: GrpoConfig, score_BxG: np.ndarray, reward_BxG: np.ndarray
) -> np.ndarray:
  """bool [B]: groups that teach nothing.

  With dynamic sampling these include groups whose scores differ only by length
  penalties.
  """
  degenerate_B = np.asarray(grpo.degenerate_groups(score_BxG))
  if objective.dynamic_sampling:
    degenerate_B = degenerate_B | np.asarray(grpo.degenerate_groups(reward_BxG))
  return degenerate_B


def measure(
  tokenizer: Tokenizer,
  agent: AgentConfig,
  batch: Batch,
  trajectories: Trajectories,
  verdicts: Verdicts,
  degenerate_B: np.ndarray,
) -> dict[str, float]:
  """Metrics of one batch: rewards, groups, truncation, outcomes, memory health."""
  reward_BxG = verdicts.reward_BxG
  memory_finish = trajectories.turns.response.finish_N
  answer_finish = trajectories.answer.finish_N
  read = memory_finish != SKIPPED
  return {
    'reward/mean': float(reward_BxG.mean()),
    'reward/metric': float(verdicts.metric_BxG.mean()),
    'groups/degenerate': float(degenerate_B.mean()),
    'groups/pass_rate_p10': float(np.percentile(reward_BxG.mean(1), 10)),
    'groups/pass_rate_p90': float(np.percentile(reward_BxG.mean(1), 90)),
    'truncated/memory': float(np.mean(memory_finish[read] == LENGTH)),
    'truncated/answer': float(np.mean(answer_finish == LENGTH)),
    'sequences/generated': int(read.sum()) + len(answer_finish),
    'sampled_tokens': float(
      trajectories.turns.response.length_N.sum()
      + trajectories.answer.length_N.sum()
    ),
    **{
      f'outcome/{name}': verdicts.outcomes.get(name, 0) / reward_BxG.size
      for name in OUTCOMES
    },
    **memory_health.measure(tokenizer, agent, batch.answers, trajectories),
  }
