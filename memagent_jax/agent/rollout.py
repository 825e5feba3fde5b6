"""The method: a model reads chunk after chunk and rewrites a bounded memory.

`read` scans a window of C chunk slots under jit, carrying (memory ids, memory
lengths); `answer` asks from the memory alone. Every turn is a conversation of
its own with a fresh KV cache, so device memory depends neither on the document
nor on how many windows it takes.

    memory_0 -> [chunk_1] -> memory_1 -> [chunk_2] -> memory_2 ... -> answer

Source: MemAgent, arXiv 2507.02259, section 3.
"""

import dataclasses
import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.prompts import Prompts, Template
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.model import Model
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.sampling.log_probs import log_probs_after
from memagent_jax.structs import EOS, SKIPPED, Response, Tokens, Turns

# The answer's turn number in its sampling key; memory turns count from 0.
ANSWER_TURN = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class AgentConfig:
  """All that is static in a rollout; hashable."""

  model: ModelConfig
  prompts: Prompts
  # Ids that end a turn and never enter a memory, and one that ends a response.
  control_ids: tuple[int, ...]
  end_id: int
  # `<think>` and `</think>`, or None.
  think_ids: tuple[int, int] | None
  # memory.max_tokens is the memory's cap M.
  memory: SamplingConfig
  answer: SamplingConfig
  # Caps of the chunk and of the question in tokens.
  chunk_tokens: int
  question_tokens: int
  # Prompts that are read side by side, see `decode.prefill`.
  prefill_rows: int = 0
  # See ReadingConfig.
  least_ratio: float = 0.0

  def __post_init__(self):
    if not 0 <= self.least_ratio < math.inf:
      raise ValueError(
        f'least_ratio is {self.least_ratio}; expected at least 0 and finite.'
      )
    if len(self.prompts.empty_memory) > self.memory.max_tokens:
      raise ValueError(
        f'the first memory has {len(self.prompts.empty_memory)} tokens; '
        f'memory_tokens is {self.memory.max_tokens}.'
      )
    for name, value in (
      ('chunk_tokens', self.chunk_tokens),
      ('question_tokens', self.question_tokens),
    ):
      if value < 1:
        raise ValueError(f'{name} is {value}; expected at least 1.')
    turns = {
      'memory turn': {
        'template': self.prompts.memory_turn_tokens,
        'question_tokens': self.question_tokens,
        'memory_tokens': self.memory.max_tokens,
        'chunk_tokens': self.chunk_tokens,
        'new memory': self.memory.max_tokens,
      },
      'answer turn': {
        'template': self.prompts.answer_turn_tokens,
        'question_tokens': self.question_tokens,
        'memory_tokens': self.memory.max_tokens,
        'answer_tokens': self.answer.max_tokens,
      },
    }
    for turn, parts in turns.items():
      total = sum(parts.values())
      if total > self.model.max_positions:
        terms = ' + '.join(f'{v} ({k})' for k, v in parts.items())
        raise ValueError(
          f'a {turn} needs {terms} = {total} tokens; the model sees '
          f'{self.model.max_positions}. Lower one of the caps.'
        )


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
  """How a document is read. The paper's caps are 5000, 1024, 1024 and 1024."""

  # Budget of a chunk.
  chunk_tokens: int = 1024
  # Cap on the memory.
  memory_tokens: int = 256
  # Cap on the answer.
  answer_tokens: int = 128
  # Longest question that is accepted.
  question_tokens: int = 1024
  # 0 is greedy.
  temperature: float = 0.0
  top_p: float = 1.0
  # With a temperature above 0: same seed, same samples.
  seed: int = 0
  # Where a chunk ends: `sentence`, or `token` as in the paper.
  chunk_cut: str = 'sentence'
  # Prompts of a batch that are read side by side, at most; 0: all of them. Fewer
  # take less memory, and as many are decoded together.
  prefill_rows: int = 0
  # A turn's memory is taken only if it is at least so many times as likely as the
  # memory before, both as responses to that turn's prompt, or if the chunk gives it to
  # an empty memory as well, with half of the probability; 0, as in the paper: every
  # turn's is. Of use for a model that copies what it keeps: a memory is hardly ever
  # lost to a slip of the copying.
  least_ratio: float = 0.0


def make_agent(
  model: Model,
  template: Template,
  config: ReadingConfig,
  *,
  question_tokens: int | None = None,
) -> AgentConfig:
  """What a model needs to read as `config` says.

  Args:
    model: its config and tokenizer are used, not its params.
    template: wording of the turns.
    config: caps and sampling.
    question_tokens: width of the question rows; None: the config's cap.

  Raises:
    ValueError: the caps together exceed the model's window.
  """
  tokenizer = model.tokenizer
  if question_tokens is None:
    question_tokens = config.question_tokens
  memory, answer = (
    SamplingConfig(cap, temperature=config.temperature, top_p=config.top_p)
    for cap in (config.memory_tokens, config.answer_tokens)
  )
  return AgentConfig(
    model=model.config,
    prompts=prompts_lib.compile_template(template, tokenizer),
    control_ids=tokenizer.control_ids,
    end_id=tokenizer.eos_ids[0],
    think_ids=tokenizer.think_ids,
    memory=memory,
    answer=answer,
    chunk_tokens=config.chunk_tokens,
    question_tokens=question_tokens,
    prefill_rows=config.prefill_rows,
    least_ratio=config.least_ratio,
  )


def first_memory(agent: AgentConfig, rows: int) -> Tokens:
  """The template's "no memory yet" text in every row, M wide."""
  ids = agent.prompts.empty_memory
  memory = tokens_lib.repeat_ids(ids, rows)
  spare = agent.memory.max_tokens - len(ids)
  return memory.replace(ids_NxW=jnp.pad(memory.ids_NxW, ((0, 0), (0, spare))))


def carried_memory(
  agent: AgentConfig, response: Response, memory: Tokens
) -> tuple[Tokens, jax.Array]:
  """What a response leaves in memory.

  The ending control id and a thinking span are dropped; a skipped row keeps its
  memory.

  Returns:
    the new memory, and the thinking tokens that were dropped, int32 [N].
  """
  ended_N = response.finish_N == EOS
  fresh = Tokens(response.ids_NxR, response.length_N - ended_N)
  thought_N = jnp.zeros_like(response.length_N)
  if agent.think_ids is not None:
    gone_NxM = tokens_lib.thinking_span(fresh, agent.think_ids)
    thought_N = gone_NxM.sum(axis=1).astype(jnp.int32)
    fresh = tokens_lib.drop_tokens(fresh, gone_NxM)
  kept_N = response.finish_N == SKIPPED
  return _where(kept_N, memory, fresh), thought_N


def memory_log_probs(
  agent: AgentConfig, params, prompt: Tokens, memory: Tokens
) -> jax.Array:
  """Log-probs of writing a memory in response to a prompt, and of ending there.

  Returns:
    float32 [N, M + 1]; 0 behind the end.
  """
  end = tokens_lib.repeat_ids((agent.end_id,), memory.length_N.shape[0])
  response = tokens_lib.concatenate([memory, end])
  return log_probs_after(
    agent.model,
    params,
    prompt,
    response,
    temperature=agent.memory.temperature,
  )


def support(
  agent: AgentConfig,
  params,
  question: Tokens,
  memory: Tokens,
  chunk: Tokens,
  fresh: Tokens,
) -> tuple[jax.Array, jax.Array]:
  """How well the memory that a turn made is founded.

  Returns:
    float32 [N], the log of how much likelier `fresh` is than `memory`, both as
    responses to the turn's prompt; and bool [N], whether the chunk gives `fresh`
    to an empty memory as well: with half of the probability, and it is not empty.
  """
  empty = first_memory(agent, memory.length_N.shape[0])
  pairs = [(memory, fresh), (memory, memory), (empty, fresh)]
  before, after = (
    jax.tree.map(lambda *x: jnp.concatenate(x), *tokens)
    for tokens in zip(*pairs, strict=True)
  )
  question, chunk = jax.tree.map(
    lambda x: jnp.concatenate([x] * len(pairs)), (question, chunk)
  )
  prompt = prompts_lib.memory_prompt(agent.prompts, question, before, chunk)
  fresh_N, memory_N, alone_N = jnp.split(
    memory_log_probs(agent, params, prompt, after).sum(axis=1), len(pairs)
  )
  given_N = (alone_N >= math.log(0.5)) & ~_is_empty(agent, fresh)
  return fresh_N - memory_N, given_N


def likely_memory(
  agent: AgentConfig,
  params,
  question: Tokens,
  memory: Tokens,
  chunk: Tokens,
  fresh: Tokens,
) -> Tokens:
  """`fresh` where `least_ratio` and its `support` let it be, elsewhere `memory`.

  Rows whose memory changed are judged one by one (of every device one), which costs
  nothing where there are none: with a model that copies, beside most chunks.
  """
  changed_N = ~_equal(fresh, memory)
  rows, changed_SxB = sharding.by_part(
    ((question, memory, chunk, fresh), changed_N)
  )
  order_SxB = jnp.argsort(~changed_SxB, axis=1, stable=True)

  def judge(i, taken_SxB):
    row_S = order_SxB[:, i]
    picked = sharding.take_rows(rows, row_S)
    ratio_S, given_S = support(agent, params, *picked)
    taken_S = given_S | (ratio_S >= math.log(agent.least_ratio))
    return sharding.put_rows(taken_SxB, row_S, taken_S)

  taken_SxB = lax.fori_loop(
    0, changed_SxB.sum(axis=1).max(), judge, jnp.zeros_like(changed_SxB)
  )
  return _where(taken_SxB.reshape(-1), fresh, memory)


def _is_empty(agent: AgentConfig, memory: Tokens) -> jax.Array:
  """bool [N]: whether it is the template's text for no memory."""
  found_N = jnp.zeros(memory.length_N.shape, bool)
  prompts = agent.prompts
  for ids in (prompts.empty_memory, prompts.spaced_empty_memory):
    if len(ids) <= memory.ids_NxW.shape[1]:
      same_N = (memory.ids_NxW[:, : len(ids)] == jnp.array(ids)).all(axis=1)
      found_N |= same_N & (memory.length_N == len(ids))
  return found_N


def _equal(x: Tokens, y: Tokens) -> jax.Array:
  """bool [N]: whether two rows hold the same tokens; both as wide."""
  # Slots behind a row's tokens hold anything.
  real_NxW = jnp.arange(x.ids_NxW.shape[1]) < x.length_N[:, None]
  differs_NxW = real_NxW & (x.ids_NxW != y.ids_NxW)
  return (x.length_N == y.length_N) & ~differs_NxW.any(axis=1)


def _where(condition_N: jax.Array, x: Tokens, y: Tokens) -> Tokens:
  return Tokens(
    jnp.where(condition_N[:, None], x.ids_NxW, y.ids_NxW),
    jnp.where(condition_N, x.length_N, y.length_N),
  )


@functools.partial(jax.jit, static_argnums=0)
def read(
  agent: AgentConfig,
  params,
  question: Tokens,
  memory: Tokens,
  chunks: Tokens,
  key_N: jax.Array,
  first_turn_N: jax.Array,
) -> tuple[Tokens, Turns]:
  """The memory after a window of chunks, and every turn on the way.

  Args:
    agent: static configuration.
    params: the model's.
    question: N rows, Q wide.
    memory: N rows, M wide.
    chunks: with a leading axis C: ids CxNxK and lengths CxN; an empty chunk
      leaves its row's memory as it is, and a slot that is empty in every row
      costs nothing.
    key_N: typed keys of the rows, from `decode.row_keys`.
    first_turn_N: int32, the turn number of the window's first slot in each row.
  """

  def turn(memory, chunk, turn_N):
    prompt = prompts_lib.memory_prompt(agent.prompts, question, memory, chunk)
    response = decode.generate(
      agent.model,
      params,
      prompt,
      agent.memory,
      agent.control_ids,
      jax.vmap(jax.random.fold_in)(key_N, turn_N),
      active_N=chunk.length_N > 0,
      prefill_prompts=agent.prefill_rows,
    )
    new_memory, thought_N = carried_memory(agent, response, memory)
    if agent.least_ratio:
      new_memory = likely_memory(
        agent, params, question, memory, chunk, new_memory
      )
    return new_memory, Turns(response, new_memory, thought_N)

  def skip(memory, chunk, turn_N):
    n, r = chunk.length_N.shape[0], agent.memory.max_tokens
    nothing_N = jnp.zeros((n,), jnp.int32)
    response = Response(
      ids_NxR=jnp.zeros((n, r), jnp.int32),
      logprob_NxR=jnp.zeros((n, r), jnp.float32),
      length_N=nothing_N,
      finish_N=jnp.full((n,), SKIPPED, jnp.int32),
    )
    return memory, Turns(response, memory, nothing_N)

  def slot(carry, chunk):
    memory, turn_N = carry
    memory, turns = lax.cond(
      jnp.any(chunk.length_N > 0), turn, skip, memory, chunk, turn_N
    )
    return (memory, turn_N + 1), turns

  (memory, _), turns = lax.scan(slot, (memory, first_turn_N), chunks)
  return memory, turns


@functools.partial(jax.jit, static_argnums=0)
def answer(
  agent: AgentConfig,
  params,
  question: Tokens,
  memory: Tokens,
  key_N: jax.Array,
) -> Response:
  """The answer of every row, from its memory alone."""
  prompt = prompts_lib.answer_prompt(agent.prompts, question, memory)
  return decode.generate(
    agent.model,
    params,
    prompt,
    agent.answer,
    agent.control_ids,
    jax.vmap(jax.random.fold_in, (0, None))(key_N, ANSWER_TURN),
    prefill_prompts=agent.prefill_rows,
  )
