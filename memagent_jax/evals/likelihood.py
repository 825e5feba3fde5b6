"""Measures how much better a text is predicted given the memory of its past.

    novel -> chunks -> Session.read -> memories
      -> log p(chunk | memory before it) and log p(chunk | empty memory)

It is the read term of the factorisation p(c_k | m_{k-1}) p(m_k | c_k, m_{k-1}).
Source: MemAgent, arXiv 2507.02259, section 3.
"""

import dataclasses
import functools

import jax
import numpy as np

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts
from memagent_jax.agent import session as session_lib
from memagent_jax.agent.config import AgentConfig, ReadingConfig, make_agent
from memagent_jax.agent.engine import Engine, Lockstep
from memagent_jax.agent.session import Start
from memagent_jax.data.benchmarks import haystack
from memagent_jax.data.chunks import ChunkCutter
from memagent_jax.evals.statistics import paired_bootstrap
from memagent_jax.models.model import Model
from memagent_jax.sampling.log_probs import log_probs_after
from memagent_jax.structs import Params, Tokens


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
  """The text to read, and how to read it."""

  # Files or folders of one text.
  essays: tuple[str, ...]
  # Question that the memory is written for.
  question: str = 'What has happened so far?'
  reading: ReadingConfig = dataclasses.field(default_factory=ReadingConfig)
  engine: Engine = dataclasses.field(default_factory=Lockstep)
  # Parts of the text, read side by side: the beginnings of equal pieces.
  parts: int = 8
  # Chunks of each part; the first has no memory yet and is not counted.
  chunks: int = 9

  def __post_init__(self) -> None:
    object.__setattr__(self, 'essays', tuple(self.essays))
    if self.parts < 1 or self.chunks < 2:
      raise ValueError(
        f'parts is {self.parts} and chunks is {self.chunks}; expected at least 1 '
        'and 2.'
      )


def measure(model: Model, config: LikelihoodConfig) -> dict:
  """Mean log-probabilities of a chunk's tokens; JSON-able.

  Returns:
    `chunks`, their number; `with_memory` and `without_memory`, means over chunks
    of the mean over their tokens (nats); `difference`, with less without, and
    its 95 % interval from resampled chunks.

  Raises:
    ValueError: a text too short, or caps beyond the model's window.
  """
  agent = make_agent(model, config.reading)
  chunks = _chunks(model, config)
  question = tokens_lib.pad_rows(
    [model.tokenizer.encode(config.question)] * config.parts,
    config.reading.question_tokens,
  )
  session = config.engine.open(
    agent,
    model.params,
    Start(
      question,
      [f'part {part}' for part in range(config.parts)],
      seed=config.reading.seed,
    ),
  )
  empty = session.memory
  turns = session.read(chunks)
  scores: dict[str, list[np.ndarray]] = {'with': [], 'without': []}
  for c in range(1, config.chunks):
    chunk = jax.tree.map(lambda x, c=c: x[c], chunks)
    before = jax.tree.map(lambda x, c=c: x[c - 1], turns.memory)
    for name, memory in (('with', before), ('without', empty)):
      scores[name].append(
        np.asarray(_score(agent, model.params, question, memory, chunk))
      )
  given, without = (np.concatenate(scores[k]) for k in ('with', 'without'))
  return {
    'chunks': len(given),
    'with_memory': float(given.mean()),
    'without_memory': float(without.mean()),
    'difference': list(paired_bootstrap(without, given)),
  }


@functools.partial(jax.jit, static_argnums=0)
def _score(
  agent: AgentConfig,
  params: Params,
  question: Tokens,
  memory: Tokens,
  chunk: Tokens,
) -> jax.Array:
  """Mean log-probability of every row's chunk, float32 [N]."""
  before = prompts.before_chunk(agent.prompts, question, memory)
  logprob_NxK = log_probs_after(
    agent.model, params, before, chunk, temperature=1.0
  )
  return logprob_NxK.sum(axis=1) / chunk.length_N


def _chunks(model: Model, config: LikelihoodConfig) -> Tokens:
  """Chunk slots [C, N, K] of all parts."""
  text = haystack.essays(*config.essays).text
  reading = config.reading
  cutter = ChunkCutter(model.tokenizer, reading.chunk_tokens, reading.chunk_cut)
  size = len(text) // config.parts
  parts = []
  for start in range(0, config.parts * size, max(size, 1)):
    # No token has more characters on average than this.
    piece = text[
      start : start + min(size, 12 * reading.chunk_tokens * config.chunks)
    ]
    parts.append(cutter.split(model.tokenizer.encode(piece))[: config.chunks])
  if len(parts) < config.parts or min(map(len, parts)) < config.chunks:
    raise ValueError(
      f'{", ".join(config.essays)}: {len(text):,} characters do not hold '
      f'{config.parts} parts of {config.chunks} chunks of {reading.chunk_tokens} '
      'tokens. Lower parts or chunks.'
    )
  return session_lib.slots(parts, config.chunks, reading.chunk_tokens)
