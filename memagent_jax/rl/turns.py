"""Trajectories as training sequences: one per turn, with a common advantage.

(question, memory, chunk) -- the prompt that sampling used, assembled again
  + response -> one sequence;  C memory turns and the answer -> (C+1) of them
scores -> advantages -> every token of every turn
"""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.rl import grpo
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.structs import MemoryState, Response, Tokens
from memagent_jax.train.sequences import PolicySequences, Sequences


def trajectory_sequences(
  agent: AgentConfig, trajectories: Trajectories
) -> tuple[Sequences, jax.Array]:
  """Sequences of all turns of N trajectories, and the recorded log-probs.

  Args:
    agent: the configuration used for the rollout.
    trajectories: trajectories of C chunk slots.

  Returns:
    (C+1) * N sequences, turn by turn, the answers last; and logprob_NxR. Skipped
    turns are dummies. R is the larger of the two caps.
  """
  documents, turns = trajectories.documents, trajectories.turns
  answer = trajectories.answer
  before = jax.tree.map(
    lambda first, after: jnp.concatenate([first[None], after[:-1]]),
    trajectories.first,
    turns.state,
  )

  def memory_prompt(state: MemoryState, chunk: Tokens) -> Tokens:
    fields = {
      'question': documents.question,
      'chunk': chunk,
      **agent.rule.prompt_fields(state),
    }
    return prompts_lib.assemble(agent.prompts.memory_turn, fields)

  last = prompts_lib.answer_prompt(
    agent.prompts,
    documents.question,
    jax.tree.map(lambda x: x[-1], turns.memory),
  )
  parts = [
    _joined(
      _flat(jax.vmap(memory_prompt)(before, documents.chunk)),
      _flat(turns.response),
    ),
    _joined(last, answer),
  ]
  width = max(part.ids_NxS.shape[1] for part in parts)
  tokens = max(agent.memory.max_tokens, agent.answer.max_tokens)
  sequences = jax.tree.map(
    lambda *x: jnp.concatenate(x),
    *[part.replace(ids_NxS=_widen(part.ids_NxS, width)) for part in parts],
  )
  logprob_NxR = jnp.concatenate(
    [
      _widen(_flat(turns.response).logprob_NxR, tokens),
      _widen(answer.logprob_NxR, tokens),
    ]
  )
  return sequences, logprob_NxR


def policy_sequences(
  agent: AgentConfig,
  objective: GrpoConfig,
  trajectories: Trajectories,
  score_BxG: np.ndarray,
  *,
  learn_memory_turns: bool = True,
) -> PolicySequences:
  """All turns with advantage and weight: (C+1) * B * G of them, turn by turn.

  The old log-probs are the sampler's; those of a reference model are zeros until
  they are computed, and None where the objective needs none.

  Args:
    agent: the configuration used for the rollout.
    objective: decides the advantages, and which turns have a weight.
    trajectories: trajectories of B documents.
    score_BxG: score of each trajectory.
    learn_memory_turns: False: only the answer turns have a weight.
  """
  finish_TxN = np.concatenate(
    [
      trajectories.turns.response.finish_N,
      trajectories.answer.finish_N[None],
    ]
  )
  kept_N = grpo.kept_trajectories(objective, finish_TxN[:-1], finish_TxN[-1])
  advantage_TxN, weight = grpo.turn_advantages(
    grpo.advantages(score_BxG, objective), finish_TxN, kept_N
  )
  weight_TxN = np.array(weight)
  if not learn_memory_turns:
    weight_TxN[:-1] = 0.0
  turns, logprob = trajectory_sequences(agent, trajectories)
  logprob_NxR = np.asarray(logprob)
  return PolicySequences(
    turns=jax.device_get(turns),
    sampler_logprob_NxR=logprob_NxR,
    old_logprob_NxR=logprob_NxR,
    reference_logprob_NxR=np.zeros_like(logprob_NxR)
    if grpo.needs_reference(objective)
    else None,
    advantage_N=np.asarray(advantage_TxN).reshape(-1),
    weight_N=weight_TxN.reshape(-1),
  )


def by_group(
  sequences: PolicySequences, documents: int, rollouts: int
) -> list[PolicySequences]:
  """Splits sequences, ordered turn by turn, into one group per document."""
  by_turn = jax.tree.map(
    lambda x: x.reshape(-1, documents, rollouts, *x.shape[1:]), sequences
  )
  return [
    jax.tree.map(lambda x, b=b: x[:, b].reshape(-1, *x.shape[3:]), by_turn)
    for b in range(documents)
  ]


def merge_equal(sequences: PolicySequences) -> PolicySequences:
  """Merges equal turns into one sequence each, on the host, keeping the loss.

  Rollouts of a document mostly write the same turn until one of them errs. Among
  advantages of one sign, every term of `grpo.policy_loss` is linear in advantage
  and weight, so one sequence with their total weight and mean advantage stands
  for all of them. Its log-probs are those of the first.

  Args:
    sequences: N sequences of NumPy arrays; those of weight 0 are dropped.
  """
  turns = sequences.turns
  length_N = turns.prompt_length_N + turns.response_length_N
  first: dict[tuple, int] = {}
  weight_N = np.zeros_like(sequences.weight_N)
  total_N = np.zeros(weight_N.shape, np.float64)
  for n in np.flatnonzero(sequences.weight_N > 0):
    turn = (
      turns.ids_NxS[n, : length_N[n]].tobytes(),
      int(turns.prompt_length_N[n]),
      np.sign(sequences.advantage_N[n]),
    )
    to = first.setdefault(turn, int(n))
    weight_N[to] += sequences.weight_N[n]
    total_N[to] += float(sequences.weight_N[n]) * float(
      sequences.advantage_N[n]
    )
  chosen = np.fromiter(first.values(), int, len(first))
  advantage_N = sequences.advantage_N.copy()
  advantage_N[chosen] = total_N[chosen] / weight_N[chosen]
  merged = sequences.replace(advantage_N=advantage_N, weight_N=weight_N)
  return jax.tree.map(lambda x: np.asarray(x)[chosen], merged)


def widths(slots: int, shares: Sequence[float]) -> list[int]:
  """Widths that sequences are sorted into: shares of the widest, rising."""
  return sorted({math.ceil(share * slots) for share in shares})


def _joined(prompt: Tokens, response: Response) -> Sequences:
  ids = tokens_lib.concatenate(
    [prompt, Tokens(response.ids_NxR, response.length_N)]
  )
  return Sequences(ids.ids_NxW, prompt.length_N, response.length_N)


def _flat(tree: Any) -> Any:
  """[C, N, ...] as [C*N, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _widen(x_NxW: jax.Array, width: int) -> jax.Array:
  return jnp.pad(x_NxW, ((0, 0), (0, width - x_NxW.shape[1])))
