"""Engines turn documents into trajectories: the interface, and the default.

    Batch x G rollouts -> Engine.sample -> Trajectories
    Start              -> Engine.open   -> Session, fed as text comes

Trajectory n = b * G + g is rollout g of document b. Its keys depend only on the
seed, the example's id, the number of its reading and g, whatever the engine.
"""

import dataclasses
from typing import Protocol

import jax
import numpy as np

from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.session import WINDOW_CHUNKS, Session, Start
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.data.batch import Batch
from memagent_jax.structs import Documents, Params, Tokens


class Engine(Protocol):
  """Reads documents with a model; a frozen value, so that gin can bind it."""

  def open(self, agent: AgentConfig, params: Params, start: Start) -> Session:
    """Begins a reading of N trajectories."""

  def sample(
    self,
    agent: AgentConfig,
    params: Params,
    batch: Batch,
    *,
    rollouts: int = 1,
    seed: int = 0,
    first_memory: Tokens | None = None,
  ) -> Trajectories:
    """Reads every document of a batch `rollouts` times and asks at the end.

    Args:
      agent: static configuration.
      params: the model's params.
      batch: documents of any number of chunk slots.
      rollouts: G, trajectories per document.
      seed: seed of all sampling.
      first_memory: first memory of every document, B rows, M wide; None: the
        template's.
    """


@dataclasses.dataclass(frozen=True)
class Lockstep:
  """All rows take their turns together, on the devices of this run.

  Its sizes determine how much memory it needs; samples do not depend on them.
  """

  # Chunk slots scanned in one device call.
  window_chunks: int = WINDOW_CHUNKS
  # Maximum number of trajectories read at once; 0: the whole batch.
  trajectories_at_once: int = 0
  # Maximum number of prompts prefilled at once; 0: all. Fewer need less memory,
  # and equal prompts are then read once.
  prefill_prompts: int = 0

  def __post_init__(self) -> None:
    for name, least in (
      ('window_chunks', 1),
      ('trajectories_at_once', 0),
      ('prefill_prompts', 0),
    ):
      if getattr(self, name) < least:
        raise ValueError(
          f'Lockstep: {name} is {getattr(self, name)}; expected {least} or more.'
        )

  def open(self, agent: AgentConfig, params: Params, start: Start) -> Session:
    """Begins a reading of N trajectories; see `Engine`."""
    return Session(
      dataclasses.replace(agent, prefill_prompts=self.prefill_prompts),
      params,
      start,
      self.window_chunks,
    )

  def part_size(self, trajectories: int) -> int:
    """The number of trajectories read at once.

    Raises:
      ValueError: the trajectories do not divide into such parts.
    """
    size = min(self.trajectories_at_once or trajectories, trajectories)
    if trajectories % size:
      raise ValueError(
        f'{trajectories} trajectories do not divide into parts of '
        f'trajectories_at_once {size}.'
      )
    return size

  def sample(
    self,
    agent: AgentConfig,
    params: Params,
    batch: Batch,
    *,
    rollouts: int = 1,
    seed: int = 0,
    first_memory: Tokens | None = None,
  ) -> Trajectories:
    """Trajectories of a batch; see `Engine`.

    Raises:
      ValueError: the trajectories do not divide into parts.
    """
    documents, first_memory = jax.tree.map(
      np.asarray, (batch.documents, first_memory)
    )
    question, first_memory = jax.tree.map(
      lambda x: np.repeat(x, rollouts, axis=0),
      (documents.question, first_memory),
    )
    chunk = jax.tree.map(
      lambda x: np.repeat(x, rollouts, axis=1), documents.chunk
    )
    names = [name for name in batch.ids for _ in range(rollouts)]
    readings = np.asarray(batch.readings)[:, None]
    number_N = (rollouts * readings + np.arange(rollouts)).reshape(-1)
    size = self.part_size(len(names))
    parts = []
    for start in range(0, len(names), size):
      part = slice(start, start + size)
      begin = Start(
        jax.tree.map(lambda x, p=part: x[p], question),
        names[part],
        number_N[part],
        seed,
        jax.tree.map(lambda x, p=part: x[p], first_memory),
      )
      session = self.open(agent, params, begin)
      first = session.carried
      turns = session.read(jax.tree.map(lambda x, p=part: x[:, p], chunk))
      parts.append((first, turns, session.answer()))
    firsts, read, answers = zip(*parts, strict=True)
    return Trajectories(
      documents=Documents(question=question, chunk=chunk),
      first=jax.tree.map(lambda *x: np.concatenate(x), *firsts),
      turns=jax.tree.map(lambda *x: np.concatenate(x, axis=1), *read),
      answer=jax.tree.map(lambda *x: np.concatenate(x), *answers),
      rollouts=rollouts,
    )
