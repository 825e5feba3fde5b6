"""One reading of N trajectories: the only driver of the scan.

    question rows, keys, memory -> read(chunks), window by window -> turns on the host
                                -> answer() -> responses
                                -> state() <-> restore(): JSON, a few KB

The reader, training, validation and every evaluation that keeps a memory are thin
layers over it, so that they take the same turns with the same keys.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import rollout
from memagent_jax.agent.config import AgentConfig
from memagent_jax.sampling import decode
from memagent_jax.structs import MemoryState, Params, Response, Tokens, Turns

# Chunk slots scanned in one device call.
WINDOW_CHUNKS = 8


@dataclasses.dataclass(frozen=True)
class Start:
  """How N trajectories begin: their questions, and what fixes their samples.

  Like all arrays here, these hold the whole batch, on the host or, without a
  mesh, on the device.
  """

  # N rows, Q wide.
  question: Tokens
  # Example name of every row.
  names: Sequence[str]
  # Number of every row among its example's readings; None: all 0.
  rollouts: Sequence[int] | np.ndarray | None = None
  # Seed of all sampling.
  seed: int = 0
  # First memories, N rows, M wide; None: the template's empty one.
  memory: Tokens | None = None


class Session:
  """A reading of N trajectories, fed with chunks as they come.

  Attributes:
    agent: static configuration.
    turns_read: number of chunk slots that the memories have seen.
  """

  def __init__(
    self,
    agent: AgentConfig,
    params: Params,
    start: Start,
    window_chunks: int = WINDOW_CHUNKS,
  ) -> None:
    """Starts a reading before its first chunk.

    Args:
      agent: static configuration.
      params: the model's params.
      start: questions, names, seed and first memories of the rows.
      window_chunks: chunk slots scanned in one device call.

    Raises:
      ValueError: a number of rows that the mesh does not divide, or a window
        below 1.
    """
    if window_chunks < 1:
      raise ValueError(f'window_chunks is {window_chunks}; expected 1 or more.')
    self.agent, self.turns_read = agent, 0
    self._params, self._window_chunks = params, window_chunks
    self._question = sharding.shard_rows(start.question)
    examples = [decode.example_number(name) for name in start.names]
    rollouts = start.rollouts
    if rollouts is None:
      rollouts = [0] * len(start.names)
    self._key_N = decode.row_keys(
      start.seed,
      sharding.shard_rows(np.asarray(examples, np.uint32)),
      sharding.shard_rows(np.asarray(rollouts, np.int32)),
    )
    self._state = self._begun(start.memory)

  @property
  def memory(self) -> Tokens:
    """The current memory of every row, on the host."""
    return sharding.to_host(self._state.memory)

  @property
  def carried(self) -> MemoryState:
    """What the next turn starts from, on the host."""
    return sharding.to_host(self._state)

  def read(self, chunks: Tokens) -> Turns:
    """Reads chunk slots; returns every turn, on the host.

    State changes only after a whole window: an interrupt loses one at most.

    Args:
      chunks: ids [C, N, K], lengths [C, N]; a slot of length 0 skips its row.
    """
    windows = []
    for window in self._windows(chunks):
      state, turns = self._scan(self._state, window, self.turns_read)
      windows.append(sharding.to_host(turns))
      self._state = state
      self.turns_read += window.length_N.shape[0]
    return jax.tree.map(lambda *x: np.concatenate(x), *windows)

  def answer(self, tail: Tokens | None = None) -> Response:
    """The answer of every row, on the host; the reading itself is unchanged.

    Args:
      tail: the document's last chunk slots, as for `read`; they are read into a
        copy of the memories. None: the document ends here.
    """
    state, turn = self._state, self.turns_read
    for window in () if tail is None else self._windows(tail):
      state, _ = self._scan(state, window, turn)
      turn += window.length_N.shape[0]
    return sharding.to_host(
      rollout.answer(
        self.agent, self._params, self._question, state.memory, self._key_N
      )
    )

  def state(self) -> dict[str, Any]:
    """What `restore` needs to resume here; JSON-able."""
    state = self.carried
    return {
      'turns_read': self.turns_read,
      'memory_ids': tokens_lib.lists(state.memory),
      'carried': [
        np.asarray(x).tolist() for x in jax.tree.leaves(state.carried)
      ],
    }

  def restore(self, state: Mapping[str, Any]) -> None:
    """Resumes exactly where `state` was taken, with the same rows.

    Raises:
      ValueError: another number of memories, or memories longer than the cap.
    """
    rows = self._question.length_N.shape[0]
    if len(state['memory_ids']) != rows:
      raise ValueError(
        f'a reading of {len(state["memory_ids"])} rows was saved; this one has '
        f'{rows}.'
      )
    memory = tokens_lib.pad_rows(
      state['memory_ids'], self.agent.memory.max_tokens
    )
    begun = self._begun(memory)
    leaves, structure = jax.tree.flatten(begun.carried)
    carried = [
      sharding.shard_rows(np.asarray(saved, leaf.dtype))
      for saved, leaf in zip(state['carried'], leaves, strict=True)
    ]
    self._state = begun.replace(carried=jax.tree.unflatten(structure, carried))
    self.turns_read = int(state['turns_read'])

  def _begun(self, memory: Tokens | None) -> MemoryState:
    rows = self._question.length_N.shape[0]
    begun = rollout.first_state(self.agent, rows, memory)
    return sharding.shard_rows(begun)

  def _windows(self, chunks: Tokens) -> Iterator[Tokens]:
    for start in range(0, chunks.length_N.shape[0], self._window_chunks):
      part = slice(start, start + self._window_chunks)
      yield jax.tree.map(lambda x, part=part: x[part], chunks)

  def _scan(
    self, state: MemoryState, window: Tokens, turn: int
  ) -> tuple[MemoryState, Turns]:
    rows = self._question.length_N.shape[0]
    return rollout.read(
      self.agent,
      self._params,
      self._question,
      state,
      sharding.shard_rows(window, axis=1),
      self._key_N,
      sharding.shard_rows(jnp.full((rows,), turn, jnp.int32)),
    )


def slots(
  rows: Sequence[Sequence[Sequence[int]]], count: int, width: int
) -> Tokens:
  """Every row's chunks in order, as chunk slots [count, N, width] on the host.

  Args:
    rows: the chunks of every row, at most `count`; empty slots follow those of
      shorter rows.
    count: C.
    width: K, at least as wide as every chunk.
  """
  ids_CxNxK = np.zeros((count, len(rows), width), np.int32)
  length_CxN = np.zeros((count, len(rows)), np.int32)
  for n, chunks in enumerate(rows):
    for c, chunk in enumerate(chunks):
      ids_CxNxK[c, n, : len(chunk)] = chunk
      length_CxN[c, n] = len(chunk)
  return Tokens(ids_CxNxK, length_CxN)
