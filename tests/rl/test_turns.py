"""Hand-made trajectories as training sequences, against lists of ids."""

import math

import jax
import numpy as np
import pytest

from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.memory_rules import Overwrite
from memagent_jax.agent.prompts import Prompts
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.rl import turns as turns_lib
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.structs import (
  EOS,
  LENGTH,
  SKIPPED,
  Documents,
  MemoryState,
  Response,
  Tokens,
  Turns,
)
from memagent_jax.train.sequences import PolicySequences, Sequences
from tests import tiny_runs

END = 0
AGENT = AgentConfig(
  model=tiny_runs.CONFIG,
  prompts=Prompts(
    memory_turn=((1,), 'question', 'memory', (2,), 'chunk', (3,)),
    answer_turn=((4,), 'question', 'memory', (5,)),
    empty_memory=(9,),
    spaced_empty_memory=(8,),
  ),
  rule=Overwrite(),
  control_ids=(END,),
  end_id=END,
  think_ids=None,
  memory=SamplingConfig(3),
  answer=SamplingConfig(2),
  chunk_tokens=4,
  question_tokens=2,
)
PLAIN = GrpoConfig(kl_coefficient=0.0)
# Two documents with two rollouts each. The second rollout of the first document
# has no memory turns; those of the second document have one.
QUESTIONS = [[31], [31], [32, 33], [32, 33]]
CHUNKS = [
  [[50, 51], [], [60, 61, 62, 63], [64]],
  [[52, 53, 54], [], [], []],
]
# Responses of the two memory turns and of the answer, including their ends.
RESPONSES = [
  [[71, 72, END], [], [73, END], [74, 75, 76]],
  [[77, END], [], [], []],
  [[81, END], [82, 83], [84, END], [END]],
]
FINISH = [
  [EOS, SKIPPED, EOS, LENGTH],
  [EOS, SKIPPED, SKIPPED, SKIPPED],
  [EOS, LENGTH, EOS, EOS],
]
# The memory before the first turn, and after each memory turn.
FIRST = [[9], [9], [9], [9]]
MEMORIES = [
  [[71, 72], [9], [73], [74, 75, 76]],
  [[77], [9], [73], [74, 75, 76]],
]


def padded(rows, width) -> Tokens:
  """Rows of ids, padded with 99."""
  ids = np.full((len(rows), width), 99, np.int32)
  for n, row in enumerate(rows):
    ids[n, : len(row)] = row
  return Tokens(ids, np.array([len(row) for row in rows], np.int32))


def stacked(slots, width) -> Tokens:
  return jax.tree.map(
    lambda *x: np.stack(x), *[padded(rows, width) for rows in slots]
  )


def log_probs(n, t):
  """A different number for every turn and every token."""
  return [-(10 * t + n + (r + 1) / 10) for r in range(3)]


def response(t, width) -> Response:
  tokens = padded(RESPONSES[t], width)
  logprob = [log_probs(n, t)[:width] for n in range(4)]
  return Response(
    tokens.ids_NxW,
    np.array(logprob, np.float32),
    tokens.length_N,
    np.array(FINISH[t], np.int32),
  )


def trajectories() -> Trajectories:
  nothing = np.zeros((2, 4), np.int32)
  return Trajectories(
    documents=Documents(padded(QUESTIONS, 2), stacked(CHUNKS, 4)),
    first=MemoryState(padded(FIRST, 3)),
    turns=Turns(
      jax.tree.map(lambda *x: np.stack(x), response(0, 3), response(1, 3)),
      MemoryState(stacked(MEMORIES, 3)),
      nothing,
      nothing,
    ),
    answer=response(2, 2),
    rollouts=2,
  )


def test_sequences_are_the_prompts_and_responses_of_all_turns():
  """Turn by turn, answers last; the memory in a prompt is the previous one."""
  found, logprob_NxR = turns_lib.trajectory_sequences(AGENT, trajectories())
  before = [FIRST, *MEMORIES]
  for t in range(3):
    for n in range(4):
      row = 4 * t + n
      if t < 2:
        prompt = [1, *QUESTIONS[n], *before[t][n], 2, *CHUNKS[t][n], 3]
      else:
        prompt = [4, *QUESTIONS[n], *before[t][n], 5]
      ids = [*prompt, *RESPONSES[t][n]]
      assert found.ids_NxS[row, : len(ids)].tolist() == ids
      assert int(found.prompt_length_N[row]) == len(prompt)
      length = len(RESPONSES[t][n])
      assert int(found.response_length_N[row]) == length
      np.testing.assert_allclose(
        logprob_NxR[row, :length], log_probs(n, t)[:length]
      )


REWARDS = np.array([[1.0, 0.0], [0.0, 3.0]], np.float32)


@pytest.mark.parametrize('normalise_std', [False, True])
def test_advantages_are_of_trajectories_whatever_their_turns(normalise_std):
  """Rewards 1 and 0, for 3 turns and 1, have the standard deviation sqrt(1/2).

  Counted by turn, as 1 1 1 0, they would have 1/2, giving the advantages 1 and
  -1; their mean would give 1/4 and -3/4.
  """
  objective = GrpoConfig(kl_coefficient=0.0, normalise_std=normalise_std)
  found = turns_lib.policy_sequences(AGENT, objective, trajectories(), REWARDS)
  divisors = [math.sqrt(0.5), 3 * math.sqrt(0.5)] if normalise_std else [1, 1]
  expected = [
    *(0.5 / divisors[0], -0.5 / divisors[0]),
    *(-1.5 / divisors[1], 1.5 / divisors[1]),
  ]
  np.testing.assert_allclose(
    found.advantage_N.reshape(3, 4), [expected] * 3, rtol=1e-5
  )
  assert found.weight_N.reshape(3, 4).tolist() == [
    [1, 0, 1, 1],
    [1, 0, 0, 0],
    [1, 1, 1, 1],
  ]


def test_only_answers_have_a_weight_where_memories_are_not_learned():
  found = turns_lib.policy_sequences(
    AGENT, PLAIN, trajectories(), REWARDS, learn_memory_turns=False
  )
  assert found.weight_N.reshape(3, 4).tolist() == [[0] * 4, [0] * 4, [1] * 4]


@pytest.mark.parametrize(
  ('overlong', 'kept'), [('answer', [1, 0, 1, 1]), ('any_turn', [1, 0, 1, 0])]
)
def test_trajectories_that_were_cut_have_no_weight_in_any_turn(overlong, kept):
  objective = GrpoConfig(kl_coefficient=0.0, overlong_filter=overlong)
  found = turns_lib.policy_sequences(AGENT, objective, trajectories(), REWARDS)
  assert found.weight_N.reshape(3, 4).max(axis=0).tolist() == kept


def test_the_old_policy_is_the_sampler_and_a_reference_is_made_on_request():
  for coefficient in (0.0, 0.1):
    found = turns_lib.policy_sequences(
      AGENT, GrpoConfig(kl_coefficient=coefficient), trajectories(), REWARDS
    )
    np.testing.assert_array_equal(
      found.old_logprob_NxR, found.sampler_logprob_NxR
    )
    assert (found.reference_logprob_NxR is None) == (coefficient == 0.0)


def test_a_group_is_all_turns_of_its_document():
  found = turns_lib.policy_sequences(AGENT, PLAIN, trajectories(), REWARDS)
  groups = turns_lib.by_group(found, documents=2, rollouts=2)
  for b, group in enumerate(groups):
    own = [4 * t + n for t in range(3) for n in (2 * b, 2 * b + 1)]
    np.testing.assert_array_equal(group.turns.ids_NxS, found.turns.ids_NxS[own])
    np.testing.assert_array_equal(group.advantage_N, found.advantage_N[own])


def sequences(rows) -> PolicySequences:
  """Sequences from (prompt, response, advantage, weight) of each."""
  tokens = padded([[*p, *r] for p, r, _, _ in rows], 5)
  logprob = np.arange(3.0 * len(rows), dtype=np.float32).reshape(-1, 3)
  return PolicySequences(
    turns=Sequences(
      tokens.ids_NxW,
      np.array([len(p) for p, _, _, _ in rows], np.int32),
      np.array([len(r) for _, r, _, _ in rows], np.int32),
    ),
    sampler_logprob_NxR=logprob,
    old_logprob_NxR=logprob,
    reference_logprob_NxR=None,
    advantage_N=np.array([a for _, _, a, _ in rows], np.float32),
    weight_N=np.array([w for _, _, _, w in rows], np.float32),
  )


def test_equal_turns_are_one_of_their_weight_and_mean_advantage():
  merged = turns_lib.merge_equal(
    sequences(
      [
        ([1, 2], [3], 0.5, 1.0),
        ([1, 2], [3], 2.0, 2.0),
        # An advantage of the other sign is clipped on the other side.
        ([1, 2], [3], -1.0, 1.0),
        # The same ids, but the last two were sampled.
        ([1], [2, 3], 0.5, 1.0),
        # A row without weight changes nothing.
        ([1, 2], [3], 9.0, 0.0),
        ([1, 2], [3], 0.5, 1.0),
      ]
    )
  )
  found = [
    (int(p), float(a), float(w))
    for p, a, w in zip(
      merged.turns.prompt_length_N,
      merged.advantage_N,
      merged.weight_N,
      strict=True,
    )
  ]
  # (0.5 + 2 * 2.0 + 0.5) / 4
  assert found == [(2, 1.25, 4.0), (2, -1.0, 1.0), (1, 0.5, 1.0)]
  # The log-probs are those of the first row.
  assert merged.old_logprob_NxR[:, 0].tolist() == [0.0, 6.0, 9.0]


def test_what_stands_behind_a_turn_keeps_nothing_apart():
  rows = sequences([([1], [2], 1.0, 1.0), ([1], [2], 1.0, 1.0)])
  rows.turns.ids_NxS[1, 2:] = 7
  assert len(turns_lib.merge_equal(rows).weight_N) == 1
