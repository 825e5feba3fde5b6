"""Memory rules: what a turn leaves in memory, as values to plug into the scan.

    WrittenTurn -> rule.update -> MemoryState, outcome

`Overwrite` is the paper's method. A rule is a frozen dataclass, static under
jit; `RULES` names those that a saved reading can hold.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any, ClassVar, Protocol

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.prompts import Prompts
from memagent_jax.models import flops as flops_lib
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.sampling.log_probs import log_probs_after
from memagent_jax.structs import MemoryState, Params, Tokens


class Writer(Protocol):
  """What a rule sees of the agent that writes; an `AgentConfig` has it all."""

  @property
  def model(self) -> ModelConfig:
    """The model that writes."""

  @property
  def prompts(self) -> Prompts:
    """The wording of its turns."""

  @property
  def end_id(self) -> int:
    """The id that ends a response."""

  @property
  def memory(self) -> SamplingConfig:
    """How memories are drawn; its max_tokens is M."""


class WrittenTurn(struct.PyTreeNode):
  """A memory turn of N rows, before a rule decides what becomes of it."""

  question: Tokens
  chunk: Tokens
  before: MemoryState
  # The response without control id and thinking span, M wide; the old memory in
  # rows that had no chunk.
  written: Tokens


class MemoryRule(Protocol):
  """Decides what a turn leaves in memory; frozen and hashable."""

  @property
  def fields(self) -> tuple[str, ...]:
    """Fields of the memory turn's prompt, including `question` and `chunk`."""

  @property
  def outcomes(self) -> tuple[str, ...]:
    """Names of a turn's outcomes, by code; shown in traces and health."""

  def bind(self, tokenizer: Tokenizer) -> 'MemoryRule':
    """The rule with the token ids it compares with; itself if it needs none."""

  def start(self, memory: Tokens) -> Any:
    """What the rule carries besides the first memory: a pytree of [N, ...]."""

  def prompt_fields(self, state: MemoryState) -> Mapping[str, Tokens]:
    """The prompt fields that come from the carried state."""

  def update(
    self, writer: Writer, params: Params, turn: WrittenTurn
  ) -> tuple[MemoryState, jax.Array]:
    """The state carried on after a turn, and the outcome's code, int32 [N].

    The new memory is M wide. Rows without a chunk are left to the caller.
    """

  def turn_flops(
    self, model: ModelConfig, prompt_tokens: int, response_tokens: int
  ) -> float:
    """FLOPs of reading a prompt and writing a response."""


@dataclasses.dataclass(frozen=True)
class Overwrite:
  """The response is the memory. Source: MemAgent, arXiv 2507.02259, section 3."""

  fields: ClassVar[tuple[str, ...]] = ('question', 'memory', 'chunk')
  outcomes: ClassVar[tuple[str, ...]] = ('written',)

  def bind(self, tokenizer: Tokenizer) -> 'Overwrite':
    """The rule itself, which compares with nothing."""
    del tokenizer
    return self

  def start(self, memory: Tokens) -> tuple[()]:
    """An empty tuple: nothing is carried besides the memory."""
    del memory
    return ()

  def prompt_fields(self, state: MemoryState) -> Mapping[str, Tokens]:
    """The memory alone."""
    return {'memory': state.memory}

  def update(
    self, writer: Writer, params: Params, turn: WrittenTurn
  ) -> tuple[MemoryState, jax.Array]:
    """The written memory, in every row."""
    del writer, params
    return MemoryState(turn.written), jnp.zeros_like(turn.written.length_N)

  def turn_flops(
    self, model: ModelConfig, prompt_tokens: int, response_tokens: int
  ) -> float:
    """FLOPs of the language model."""
    return flops_lib.turn_flops(model, prompt_tokens, response_tokens)


@dataclasses.dataclass(frozen=True)
class Guarded(Overwrite):
  """The response becomes the memory only where it is well founded.

  A response is well founded if it is at least `ratio` times as likely as the
  old memory, both as responses to the turn's prompt, or if its probability is
  at least one half when an empty memory replaces the old one in the prompt. A
  model that copies what it keeps then hardly ever loses a memory to a slip.
  """

  ratio: float = 1.0

  outcomes: ClassVar[tuple[str, ...]] = ('written', 'refused')

  def __post_init__(self) -> None:
    if not 0 < self.ratio < math.inf:
      raise ValueError(
        f'Guarded: ratio is {self.ratio}; expected a finite number above 0.'
      )

  def update(
    self, writer: Writer, params: Params, turn: WrittenTurn
  ) -> tuple[MemoryState, jax.Array]:
    """The written memory where its `support` suffices, else the old memory.

    Rows whose memory changed are judged one at a time on each device. This
    costs nothing where no memory changed: after most chunks, if a model copies.
    """
    changed_N = ~tokens_lib.equal(turn.written, turn.before.memory)
    rows, changed_SxB = sharding.split_by_shard((turn, changed_N))
    order_SxB = jnp.argsort(~changed_SxB, axis=1, stable=True)

    def judge(i: jax.Array, taken_SxB: jax.Array) -> jax.Array:
      row_S = order_SxB[:, i]
      picked = sharding.take_rows(rows, row_S)
      taken_S = self.takes(*support(writer, params, picked))
      return sharding.put_rows(taken_SxB, row_S, taken_S)

    taken_SxB = lax.fori_loop(
      0, changed_SxB.sum(axis=1).max(), judge, jnp.zeros_like(changed_SxB)
    )
    taken_N = taken_SxB.reshape(-1)
    memory = tokens_lib.where(taken_N, turn.written, turn.before.memory)
    refused_N = changed_N & ~taken_N
    return MemoryState(memory), refused_N.astype(jnp.int32)

  def takes(self, log_ratio_N: jax.Array, given_N: jax.Array) -> jax.Array:
    """bool [N]: whether memories with this `support` are accepted."""
    return given_N | (log_ratio_N >= math.log(self.ratio))


def memory_log_probs(
  writer: Writer, params: Params, prompt: Tokens, memory: Tokens
) -> jax.Array:
  """Log-probs of a memory in response to a prompt, and of ending there.

  Returns:
    float32 [N, M + 1]; 0 after the end.
  """
  end = tokens_lib.repeat_ids((writer.end_id,), memory.length_N.shape[0])
  response = tokens_lib.concatenate([memory, end])
  return log_probs_after(
    writer.model,
    params,
    prompt,
    response,
    temperature=writer.memory.temperature,
  )


def support(
  writer: Writer,
  params: Params,
  turn: WrittenTurn,
  log_probs: Callable[..., jax.Array] = memory_log_probs,
) -> tuple[jax.Array, jax.Array]:
  """How well founded the memory written by a turn is.

  Args:
    writer: static configuration.
    params: the model's params.
    turn: a memory turn of N rows.
    log_probs: a function like `memory_log_probs`.

  Returns:
    float32 [N], the log of the new memory's probability relative to the old
    one's, both as responses to the turn's prompt; and bool [N], whether the new
    memory is not empty and has a probability of at least one half when an empty
    memory replaces the old one in the prompt.
  """
  before, written = turn.before.memory, turn.written
  empty = empty_memory(writer, before.length_N.shape[0])
  pairs = [(before, written), (before, before), (empty, written)]
  shown, response = (
    jax.tree.map(lambda *x: jnp.concatenate(x), *tokens)
    for tokens in zip(*pairs, strict=True)
  )
  question, chunk = jax.tree.map(
    lambda x: jnp.concatenate([x] * len(pairs)), (turn.question, turn.chunk)
  )
  prompt = prompts_lib.memory_prompt(writer.prompts, question, shown, chunk)
  written_N, before_N, alone_N = jnp.split(
    log_probs(writer, params, prompt, response).sum(axis=1), len(pairs)
  )
  given_N = (alone_N >= math.log(0.5)) & ~_is_empty(writer, written)
  return written_N - before_N, given_N


def empty_memory(writer: Writer, rows: int) -> Tokens:
  """The template's "no memory yet" text in every row, M wide."""
  ids = writer.prompts.empty_memory
  memory = tokens_lib.repeat_ids(ids, rows)
  unused = writer.memory.max_tokens - len(ids)
  return memory.replace(ids_NxW=jnp.pad(memory.ids_NxW, ((0, 0), (0, unused))))


def _is_empty(writer: Writer, memory: Tokens) -> jax.Array:
  """bool [N]: whether a memory is the template's text for no memory."""
  found_N = jnp.zeros(memory.length_N.shape, bool)
  prompts = writer.prompts
  for ids in (prompts.empty_memory, prompts.spaced_empty_memory):
    if len(ids) <= memory.ids_NxW.shape[1]:
      same_N = (memory.ids_NxW[:, : len(ids)] == jnp.array(ids)).all(axis=1)
      found_N |= same_N & (memory.length_N == len(ids))
  return found_N


# The rules that a saved reading can name.
RULES = {rule.__name__: rule for rule in (Overwrite, Guarded)}


def to_json(rule: MemoryRule) -> dict[str, Any]:
  """The rule as a name with its settings; read back by `from_json`."""
  settings: Any = rule  # a frozen dataclass
  return {'name': type(rule).__name__, **dataclasses.asdict(settings)}


def from_json(fields: Mapping[str, Any]) -> MemoryRule:
  """The rule that `to_json` wrote.

  Raises:
    ValueError: an unknown name, or settings that are not the rule's.
  """
  settings = dict(fields)
  name = settings.pop('name', None)
  if name not in RULES:
    raise ValueError(
      f'memory rule {name!r} is unknown; choose from {", ".join(RULES)}.'
    )
  try:
    return RULES[name](**settings)
  except TypeError as e:
    raise ValueError(f'memory rule {name}: {e}') from e
