"""Turns as training rows: each is a conversation of its own.

    (question, memory, chunk) -- the prompt that sampling used, assembled again
      + response -> one row;  C memory turns and the answer -> (C+1) rows
    Demonstration -> one row

A row's ids are its prompt and its response without a gap. `micro_batches` sorts
rows by length into a few widths and cuts each width into micro-batches of a token
budget: shapes are static, however ragged the turns are.
"""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.rollout import AgentConfig
from memagent_jax.structs import Documents, Response, Tokens, Turns


class TurnRows(struct.PyTreeNode):
  """N turns of S slots; a row of response length 0 is a dummy."""

  ids_NxS: jax.Array  # int32
  prompt_length_N: jax.Array  # int32
  response_length_N: jax.Array  # int32, the ending control id included


class PolicyRows(struct.PyTreeNode):
  """Turn rows with all that `grpo.policy_loss` wants to know of them."""

  turns: TurnRows
  sampler_logprob_NxR: jax.Array  # float32, as recorded while sampling
  old_logprob_NxR: jax.Array  # float32, of the policy before the update
  reference_logprob_NxR: jax.Array | None  # float32; None without a reference
  advantage_N: jax.Array  # float32
  weight_N: jax.Array  # float32; 0 for turns that do not count


class MicroBatches(struct.PyTreeNode):
  """Rows of one width, split; only the first `count` micro-batches are used."""

  rows: Any  # TurnRows or PolicyRows, with axes [micro-batch, row, ...]
  count: jax.Array  # int32


def response_mask(turns: TurnRows, response_tokens: int) -> jax.Array:
  """bool [N, R]: the tokens of the responses."""
  return jnp.arange(response_tokens)[None] < turns.response_length_N[:, None]


def merge_equal(rows: PolicyRows) -> PolicyRows:
  """Rows whose turns are equal as one row each, on the host; the loss is the same.

  Rollouts of a document mostly write the same turn until one of them errs. For one
  sign of the advantage every term of `grpo.policy_loss` is linear in it and in the
  weight, so a row of their total weight and mean advantage stands for all of them.
  Log-probs are those of the first.

  Args:
    rows: N rows of NumPy arrays. Those of weight 0 are left out.
  """
  turns = rows.turns
  length_N = turns.prompt_length_N + turns.response_length_N
  first: dict[tuple, int] = {}
  weight_N = np.zeros_like(rows.weight_N)
  total_N = np.zeros(weight_N.shape, np.float64)
  for n in np.flatnonzero(rows.weight_N > 0):
    turn = (
      turns.ids_NxS[n, : length_N[n]].tobytes(),
      int(turns.prompt_length_N[n]),
      np.sign(rows.advantage_N[n]),
    )
    to = first.setdefault(turn, n)
    weight_N[to] += rows.weight_N[n]
    total_N[to] += float(rows.weight_N[n]) * float(rows.advantage_N[n])
  chosen = np.fromiter(first.values(), int, len(first))
  advantage_N = rows.advantage_N.copy()
  advantage_N[chosen] = total_N[chosen] / weight_N[chosen]
  merged = rows.replace(advantage_N=advantage_N, weight_N=weight_N)
  return jax.tree.map(lambda x: np.asarray(x)[chosen], merged)


def micro_batches(
  rows: TurnRows | PolicyRows,
  *,
  widths: Sequence[int],
  micro_tokens: int,
  capacity: int,
) -> tuple[MicroBatches, ...]:
  """Rows sorted into widths and cut into micro-batches, on the host.

  Rows without a response, and those of weight 0, change nothing and are left
  out. Shapes depend on the arguments beside `rows` alone.

  Args:
    rows: N rows of NumPy arrays.
    widths: slots of a row, rising; the last is as wide as the rows.
    micro_tokens: a micro-batch of width w has micro_tokens // w rows, but 1 at
      least and `capacity` at most; on a mesh, a multiple of its row shards.
    capacity: most rows that can ever come.

  Returns:
    one MicroBatches per width, on the mesh that is set; their dummies have no
    prompt and no response.

  Raises:
    ValueError: more rows than `capacity`, or widths that do not rise to the
      rows' own.
  """
  turns = rows.turns if isinstance(rows, PolicyRows) else rows
  full = turns.ids_NxS.shape[1]
  if list(widths) != sorted(set(widths)) or not widths or widths[-1] != full:
    raise ValueError(f'widths are {widths}; expected rising ones up to {full}.')
  counts_N = turns.response_length_N > 0
  if isinstance(rows, PolicyRows):
    counts_N = counts_N & (rows.weight_N > 0)
  if counts_N.sum() > capacity:
    raise ValueError(f'{counts_N.sum()} rows; the capacity is {capacity}.')
  shards = sharding.parts('rows')
  length_N = turns.prompt_length_N + turns.response_length_N
  width_N = np.searchsorted(np.asarray(widths), length_N)
  result = []
  for w, width in enumerate(widths):
    size = min(max(1, micro_tokens // width), capacity)
    size = -(-size // shards) * shards
    chosen = np.flatnonzero(counts_N & (width_N == w))
    slots = -(-capacity // size)

    def split(x, chosen=chosen, size=size, slots=slots, width=width):
      x = np.asarray(x)[chosen]
      if x.ndim == 2 and x.shape[1] == full:
        x = x[:, :width]
      padded = np.zeros((slots * size, *x.shape[1:]), x.dtype)
      padded[: len(x)] = x
      return padded.reshape(slots, size, *x.shape[1:])

    count = np.int32(-(-len(chosen) // size))
    split_rows = sharding.rows(jax.tree.map(split, rows), axis=1)
    result.append(MicroBatches(split_rows, count))
  return tuple(result)


def demonstration_rows(
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int
) -> TurnRows:
  """Host lists of (prompt ids, response ids) as rows of `width` slots.

  Raises:
    ValueError: a pair is longer than the width.
  """
  joined = tokens_lib.pad_rows([[*p, *r] for p, r in pairs], width)
  lengths = np.asarray([[len(p), len(r)] for p, r in pairs], np.int32)
  return TurnRows(
    joined.ids_NxW, jnp.asarray(lengths[:, 0]), jnp.asarray(lengths[:, 1])
  )


def trajectory_rows(
  agent: AgentConfig,
  documents: Documents,
  first_memory: Tokens,
  turns: Turns,
  answer: Response,
) -> tuple[TurnRows, jax.Array]:
  """Rows of all turns of N trajectories, and what was recorded for each token.

  Args:
    agent: of the rollout; static.
    documents: as the rollout read them, one document a trajectory.
    first_memory: what the first turn found.
    turns: of C chunk slots.
    answer: the answer turns.

  Returns:
    (C+1) * N rows, turn by turn, the answers last; and logprob_NxR. Skipped
    turns are dummies. R is the larger of the two caps.
  """
  c = documents.chunk.length_N.shape[0]
  before = jax.tree.map(
    lambda first, after: jnp.concatenate([first[None], after[: c - 1]]),
    first_memory,
    turns.memory,
  )
  prompt = jax.vmap(
    lambda memory, chunk: prompts_lib.memory_prompt(
      agent.prompts, documents.question, memory, chunk
    )
  )(before, documents.chunk)
  last = prompts_lib.answer_prompt(
    agent.prompts,
    documents.question,
    jax.tree.map(lambda x: x[-1], turns.memory),
  )
  parts = [
    _joined(_flat(prompt), _flat(turns.response)),
    _joined(last, answer),
  ]
  width = max(part.ids_NxS.shape[1] for part in parts)
  tokens = max(agent.memory.max_tokens, agent.answer.max_tokens)
  rows = jax.tree.map(
    lambda *x: jnp.concatenate(x),
    *[part.replace(ids_NxS=_widen(part.ids_NxS, width)) for part in parts],
  )
  logprob_NxR = jnp.concatenate(
    [
      _widen(_flat(turns.response).logprob_NxR, tokens),
      _widen(answer.logprob_NxR, tokens),
    ]
  )
  return rows, logprob_NxR


def _joined(prompt: Tokens, response: Response) -> TurnRows:
  ids = tokens_lib.concatenate(
    [prompt, Tokens(response.ids_NxR, response.length_N)]
  )
  return TurnRows(ids.ids_NxW, prompt.length_N, response.length_N)


def _flat(tree):
  """[C, N, ...] as [C*N, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _widen(x_NxW: jax.Array, width: int) -> jax.Array:
  return jnp.pad(x_NxW, ((0, 0), (0, width - x_NxW.shape[1])))
