"""Training sequences: each is one turn, a conversation of its own.

    prompt ids + response ids -> one sequence -> micro-batches of a few widths

A sequence's ids are its prompt and its response without a gap. `micro_batches` sorts
sequences by length into a few widths and cuts each width into micro-batches of a
token budget: shapes are static, however ragged the turns are.
"""

from collections.abc import Sequence
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.structs import Array

# Token ids of one text, on the host.
Ids = Sequence[int] | np.ndarray


class Sequences(struct.PyTreeNode):
  """N turns of S slots each; a turn of response length 0 is a dummy."""

  ids_NxS: Array  # int32
  prompt_length_N: Array  # int32
  response_length_N: Array  # int32, including the ending control id


class PolicySequences(struct.PyTreeNode):
  """Sequences with everything that a policy loss needs."""

  turns: Sequences
  sampler_logprob_NxR: Array  # float32, as recorded while sampling
  old_logprob_NxR: Array  # float32, of the policy before the update
  reference_logprob_NxR: Array | None  # float32; None without a reference
  advantage_N: Array  # float32
  weight_N: Array  # float32; 0 for turns that do not count


class MicroBatches(struct.PyTreeNode):
  """Sequences of one width; only the first `count` micro-batches are used."""

  sequences: (
    Any  # Sequences or PolicySequences, with axes [micro-batch, row, ...]
  )
  count: Array  # int32


def response_mask(turns: Sequences, response_tokens: int) -> jax.Array:
  """bool [N, R]: the tokens of the responses."""
  return jnp.arange(response_tokens)[None] < turns.response_length_N[:, None]


def micro_batches(
  sequences: Sequences | PolicySequences,
  *,
  widths: Sequence[int],
  micro_tokens: int,
  capacity: int,
) -> tuple[MicroBatches, ...]:
  """Sequences sorted into widths and cut into micro-batches, on the host.

  Sequences without a response or of weight 0 change nothing and are left out.
  Shapes depend only on the other arguments.

  Args:
    sequences: N sequences of NumPy arrays.
    widths: widths in slots, rising; the last is that of the given sequences.
    micro_tokens: budget in slots: a micro-batch of width w has
      micro_tokens // w sequences, but at least 1 and at most `capacity`; on a
      mesh, rounded up to a multiple of its row shards.
    capacity: maximum number of sequences that can ever be given.

  Returns:
    one MicroBatches per width, on the current mesh; their dummies have no
    prompt and no response.

  Raises:
    ValueError: more sequences than `capacity`, or widths that do not rise to
      the width of the sequences.
  """
  turns = (
    sequences.turns if isinstance(sequences, PolicySequences) else sequences
  )
  full = turns.ids_NxS.shape[1]
  if list(widths) != sorted(set(widths)) or not widths or widths[-1] != full:
    raise ValueError(f'widths are {widths}; expected rising ones up to {full}.')
  counts_N = turns.response_length_N > 0
  if isinstance(sequences, PolicySequences):
    counts_N = counts_N & (sequences.weight_N > 0)
  if counts_N.sum() > capacity:
    raise ValueError(f'{counts_N.sum()} sequences; the capacity is {capacity}.')
  shards = sharding.num_shards('rows')
  length_N = turns.prompt_length_N + turns.response_length_N
  width_N = np.searchsorted(np.asarray(widths), length_N)
  result = []
  for w, width in enumerate(widths):
    size = min(max(1, micro_tokens // width), capacity)
    size = -(-size // shards) * shards
    chosen = np.flatnonzero(counts_N & (width_N == w))
    slots = -(-capacity // size)

    def split(
      x: np.ndarray,
      chosen: Any = chosen,
      size: int = size,
      slots: int = slots,
      width: int = width,
    ) -> np.ndarray:
      x = np.asarray(x)[chosen]
      if x.ndim == 2 and x.shape[1] == full:
        x = x[:, :width]
      padded = np.zeros((slots * size, *x.shape[1:]), x.dtype)
      padded[: len(x)] = x
      return padded.reshape(slots, size, *x.shape[1:])

    count = np.int32(-(-len(chosen) // size))
    parts = sharding.shard_rows(jax.tree.map(split, sequences), axis=1)
    result.append(MicroBatches(parts, count))
  return tuple(result)


def demonstration_sequences(
  pairs: Sequence[tuple[Ids, Ids]], width: int
) -> Sequences:
  """Host lists of (prompt ids, response ids) as sequences of `width` slots.

  Raises:
    ValueError: a pair is longer than the width.
  """
  joined = tokens_lib.pad_rows([[*p, *r] for p, r in pairs], width)
  lengths = np.asarray([[len(p), len(r)] for p, r in pairs], np.int32)
  return Sequences(
    joined.ids_NxW, jnp.asarray(lengths[:, 0]), jnp.asarray(lengths[:, 1])
  )
