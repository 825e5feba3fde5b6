"""The method: a model reads chunk after chunk and rewrites a bounded memory.

`read` scans a window of C chunk slots under jit, carrying the memory; `answer`
answers from the memory alone. Every turn is a conversation of its own with a
fresh KV cache, so device memory depends neither on the document nor on the
number of windows.

    memory_0 -> [chunk_1] -> memory_1 -> [chunk_2] -> memory_2 ... -> answer

The memory rule decides what becomes of a response. Only `agent.session` calls
`read` and `answer`. Source: MemAgent, arXiv 2507.02259, section 3.
"""

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import memory_rules
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.memory_rules import WrittenTurn
from memagent_jax.sampling import decode
from memagent_jax.structs import (
  EOS,
  SKIPPED,
  MemoryState,
  Params,
  Response,
  Tokens,
  Turns,
)

# The answer's turn number in its sampling key; memory turns count from 0.
ANSWER_TURN = 2**31 - 1


def first_state(
  agent: AgentConfig, rows: int, memory: Tokens | None = None
) -> MemoryState:
  """The state that a reading carries before its first chunk.

  Args:
    agent: static configuration.
    rows: N, the number of rows.
    memory: N rows, M wide; None: the template's "no memory yet" text.
  """
  if memory is None:
    memory = memory_rules.empty_memory(agent, rows)
  return MemoryState(memory, agent.rule.start(memory))


@functools.partial(jax.jit, static_argnums=0)
def read(
  agent: AgentConfig,
  params: Params,
  question: Tokens,
  state: MemoryState,
  chunks: Tokens,
  key_N: jax.Array,
  first_turn_N: jax.Array,
) -> tuple[MemoryState, Turns]:
  """The state after a window of chunks, and every turn on the way.

  Args:
    agent: static configuration.
    params: the model's params.
    question: N rows, Q wide.
    state: state from `first_state`, or from the previous window.
    chunks: C chunk slots, ids CxNxK and lengths CxN; an empty chunk leaves its
      row's memory as it is; a slot that is empty in every row costs nothing.
    key_N: typed keys of the rows, from `decode.row_keys`.
    first_turn_N: int32, the turn number of the window's first slot in each row.
  """

  def turn(
    state: MemoryState, chunk: Tokens, turn_N: jax.Array
  ) -> tuple[MemoryState, Turns]:
    fields = agent.rule.prompt_fields(state)
    response = decode.generate(
      agent.model,
      params,
      prompts_lib.assemble(
        agent.prompts.memory_turn,
        {'question': question, 'chunk': chunk, **fields},
      ),
      agent.memory,
      agent.control_ids,
      jax.vmap(jax.random.fold_in)(key_N, turn_N),
      active_N=chunk.length_N > 0,
      prefill_prompts=agent.prefill_prompts,
    )
    skipped_N = response.finish_N == SKIPPED
    text, thought_N = written_text(agent, response)
    written = tokens_lib.where(skipped_N, state.memory, text)
    after, outcome_N = agent.rule.update(
      agent, params, WrittenTurn(question, chunk, state, written)
    )
    after = _where(skipped_N, state, after)
    return after, Turns(response, after, thought_N, outcome_N)

  def skip(
    state: MemoryState, chunk: Tokens, turn_N: jax.Array
  ) -> tuple[MemoryState, Turns]:
    n, r = chunk.length_N.shape[0], agent.memory.max_tokens
    nothing_N = jnp.zeros((n,), jnp.int32)
    response = Response(
      ids_NxR=jnp.zeros((n, r), jnp.int32),
      logprob_NxR=jnp.zeros((n, r), jnp.float32),
      length_N=nothing_N,
      finish_N=jnp.full((n,), SKIPPED, jnp.int32),
    )
    return state, Turns(response, state, nothing_N, nothing_N)

  def slot(
    carry: tuple[MemoryState, jax.Array], chunk: Tokens
  ) -> tuple[Any, Turns]:
    state, turn_N = carry
    state, turns = lax.cond(
      jnp.any(chunk.length_N > 0), turn, skip, state, chunk, turn_N
    )
    return (state, turn_N + 1), turns

  (state, _), turns = lax.scan(slot, (state, first_turn_N), chunks)
  return state, turns


def compiled_programs() -> int:
  """The number of programs of `read` compiled by this process so far."""
  return read._cache_size()  # type: ignore[attr-defined]


@functools.partial(jax.jit, static_argnums=0)
def answer(
  agent: AgentConfig,
  params: Params,
  question: Tokens,
  memory: Tokens,
  key_N: jax.Array,
) -> Response:
  """The answer of every row, from its memory alone."""
  return decode.generate(
    agent.model,
    params,
    prompts_lib.answer_prompt(agent.prompts, question, memory),
    agent.answer,
    agent.control_ids,
    jax.vmap(jax.random.fold_in, (0, None))(key_N, ANSWER_TURN),
    prefill_prompts=agent.prefill_prompts,
  )


def written_text(
  agent: AgentConfig, response: Response
) -> tuple[Tokens, jax.Array]:
  """The text of a response, without its control id and thinking span.

  Returns:
    the text's ids, R wide, and the number of thinking tokens, int32 [N].
  """
  ended_N = response.finish_N == EOS
  text = Tokens(response.ids_NxR, response.length_N - ended_N)
  if agent.think_ids is None:
    return text, jnp.zeros_like(response.length_N)
  thinking_NxR = tokens_lib.thinking_span(text, agent.think_ids)
  thought_N = thinking_NxR.sum(axis=1).astype(jnp.int32)
  return tokens_lib.drop_tokens(text, thinking_NxR), thought_N


def _where(condition_N: jax.Array, x: Any, y: Any) -> Any:
  """Rows of x where the condition holds, else of y; leaves are [N, ...]."""

  def choose(x: jax.Array, y: jax.Array) -> jax.Array:
    shape = (-1,) + (1,) * (x.ndim - 1)
    return jnp.where(condition_N.reshape(shape), x, y)

  return jax.tree.map(choose, x, y)
