"""Scores and metrics of a hand-made batch."""

import dataclasses

import numpy as np
import pytest

from memagent_jax.agent.memory_rules import Overwrite
from memagent_jax.agent.trajectories import Trajectories, Verdicts
from memagent_jax.data.batch import Batch
from memagent_jax.rl import scoring
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.structs import (
  EOS,
  LENGTH,
  SKIPPED,
  MemoryState,
  Response,
  Tokens,
  Turns,
)

PLAIN = GrpoConfig(kl_coefficient=0.0)
# Two chunk slots, two documents with two rollouts each; the second document has
# one chunk.
MEMORY_FINISH = [[EOS, LENGTH, EOS, EOS], [LENGTH, EOS, SKIPPED, SKIPPED]]
MEMORY_LENGTH = [[3, 6, 2, 4], [6, 1, 0, 0]]
ANSWER_FINISH = [LENGTH, EOS, EOS, EOS]
ANSWER_LENGTH = [5, 2, 3, 1]
BATCH = Batch(
  documents=None,
  ids=('a', 'b'),
  tasks=('t', 't'),
  answers=(('42',), ('7',)),
  rewards=('em', 'em'),
  metrics=('f1', 'f1'),
  readings=(0, 0),
)


class AGENT:
  """The only parts of an agent in use: its rule and its caps."""

  rule = Overwrite()
  memory = SamplingConfig(6)
  answer = SamplingConfig(5)


def response(finish, length, width):
  shape = (*np.shape(finish), width)
  return Response(
    ids_NxR=np.full(shape, 65, np.int32),
    logprob_NxR=np.zeros(shape, np.float32),
    length_N=np.array(length, np.int32),
    finish_N=np.array(finish, np.int32),
  )


def trajectories() -> Trajectories:
  written = response(MEMORY_FINISH, MEMORY_LENGTH, 6)
  nothing = np.zeros((2, 4), np.int32)
  memory = Tokens(written.ids_NxR, written.length_N)
  return Trajectories(
    documents=None,
    first=MemoryState(Tokens(written.ids_NxR[0], np.zeros(4, np.int32))),
    turns=Turns(written, MemoryState(memory), nothing, nothing),
    answer=response(ANSWER_FINISH, ANSWER_LENGTH, 5),
    rollouts=2,
  )


def verdicts(reward_BxG, metric_BxG=((0, 0), (0, 0))) -> Verdicts:
  return Verdicts(
    np.array(reward_BxG, np.float32),
    np.array(metric_BxG, np.float32),
    {'correct': 3, 'wrong': 1},
    ('',) * 4,
  )


@pytest.fixture
def measured(tiny_tokenizer):
  """Metrics of rewards and evaluation metrics that differ."""
  return scoring.measure(
    tiny_tokenizer,
    AGENT,
    BATCH,
    trajectories(),
    verdicts([[1, 0], [1, 1]], [[1, 1], [0, 0.25]]),
    np.array([False, True]),
  )


def test_reward_and_metric_are_two_numbers(measured):
  assert measured['reward/mean'] == 0.75
  assert measured['reward/metric'] == 0.5625


def test_truncation_is_of_the_turns_that_read_something(measured):
  """Two of six memory turns; over all slots it would be two of eight."""
  assert measured['truncated/memory'] == pytest.approx(2 / 6)
  assert measured['truncated/answer'] == 0.25


def test_turns_and_tokens_that_were_sampled_are_counted(measured):
  assert measured['sequences/generated'] == 6 + 4
  assert measured['sampled_tokens'] == (3 + 6 + 2 + 4 + 6 + 1) + (5 + 2 + 3 + 1)


def test_groups_and_outcomes_are_shares(measured):
  assert measured['groups/degenerate'] == 0.5
  # Between documents that 50 % and 100 % of their rollouts get right.
  assert measured['groups/pass_rate_p10'] == pytest.approx(0.55)
  assert measured['groups/pass_rate_p90'] == pytest.approx(0.95)
  outcomes = {k: v for k, v in measured.items() if k.startswith('outcome/')}
  assert outcomes == {
    'outcome/correct': 0.75,
    'outcome/wrong': 0.25,
    **dict.fromkeys(
      ('outcome/partial', 'outcome/no_box', 'outcome/empty'), 0.0
    ),
  }


def test_memory_health_is_among_the_metrics(measured):
  # Two of the six turns.
  assert measured['memory/saturated'] == pytest.approx(2 / 6)
  assert measured['memory/length_p50'] == 3.5


def scores(**changes):
  objective = dataclasses.replace(PLAIN, **changes)
  return scoring.scores(
    AGENT, objective, trajectories(), verdicts([[1, 0], [0.5, 1]])
  ).tolist()


def test_scores_are_rewards_without_overlong_responses():
  assert scores() == [[1, 0], [0.5, 1]]
  # Answers have up to 5 tokens, the last two of which are the buffer.
  assert scores(overlong_buffer_tokens=2) == [[0, 0], [0.5, 1]]
  assert scores(overlong_buffer_tokens=4) == [[0, -0.25], [0, 1]]


def test_the_longest_memory_of_a_trajectory_is_punished():
  """Lengths 6, 6, 2 and 4; the cap is 6, the buffer 4: free up to 2."""
  assert scores(overlong_memory_buffer_tokens=4) == [[0, -1], [0.5, 0.5]]
  both = scores(overlong_memory_buffer_tokens=4, overlong_buffer_tokens=2)
  assert both == [[-1, -1], [0.5, 0.5]]


def test_groups_apart_by_length_alone_are_degenerate_for_dynamic_sampling():
  score_BxG = np.array([[1, 0.5], [1, 1], [1, 0]])
  reward_BxG = np.array([[1, 1], [1, 1], [1, 0]])
  dynamic = dataclasses.replace(PLAIN, dynamic_sampling=True)
  for objective, expected in (
    (PLAIN, [False, True, False]),
    (dynamic, [True, True, False]),
  ):
    found = scoring.degenerate_groups(objective, score_BxG, reward_BxG)
    assert found.tolist() == expected
