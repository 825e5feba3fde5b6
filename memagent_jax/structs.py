"""The axis legend and the structs that every layer passes to the next.

An array's name ends in its axes:

    B documents           G rollouts per document   N rows of a batch (B*G)
    C chunk slots         K chunk tokens            Q question tokens
    M memory tokens       R response tokens         W any shared row width
    T query positions of one forward pass           P prompt tokens
    S cache slots         V vocab                   E embed
    H query heads         J kv heads                D head dim
    F mlp                 L layers

Padding is known by length, never by token value: of row n of `ids_NxW` the
first `length_N[n]` tokens are real, and what follows is arbitrary.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

# A leaf of a struct: a jax.Array, an np.ndarray on the host, or the shape that
# stands for it where a program is only planned.
Array = Any
# A model's parameters: nested dicts of arrays by module and name; those from
# `abstract_params` are boxes that name their axes.
Params = dict[str, Any]

EOS = 0  # the row sampled a control id
LENGTH = 1  # the row reached its token cap
SKIPPED = 2  # the row had nothing to read: its memory was kept, nothing sampled
FINISH_REASONS = ('eos', 'length', 'skipped')


class Tokens(struct.PyTreeNode):
  """Right-padded rows of token ids."""

  ids_NxW: Array  # int32
  length_N: Array  # int32, tokens


class Documents(struct.PyTreeNode):
  """A batch of documents as C chunk slots, over which a reading scans.

  Slots after a document's last chunk have length 0.
  """

  question: Tokens  # [B, Q]
  chunk: Tokens  # ids [C, B, K], lengths [C, B]


class Response(struct.PyTreeNode):
  """What `decode.generate` sampled for each row."""

  ids_NxR: Array  # int32; includes the control id that ended the row
  logprob_NxR: Array  # float32; under the distribution that was sampled from
  length_N: Array  # int32; sampled tokens, including the ending control id
  finish_N: Array  # int32; EOS, LENGTH or SKIPPED


class MemoryState(struct.PyTreeNode):
  """What a reading carries from one turn to the next."""

  memory: Tokens  # [N, M]
  # What the memory rule keeps for each row, arrays of [N, ...]; the paper's
  # rule keeps nothing.
  carried: Any = ()


class Turns(struct.PyTreeNode):
  """Memory turns of a window of C chunk slots; C is each array's first axis."""

  response: Response
  state: MemoryState  # what each turn left behind
  thought_CxN: Array  # int32, thinking tokens kept out of the memory
  outcome_CxN: Array  # int32, index into the rule's `outcomes`

  @property
  def memory(self) -> Tokens:
    """The memory that each turn left behind: ids [C, N, M], lengths [C, N]."""
    return self.state.memory


class WeightedMean(struct.PyTreeNode):
  """A mean kept as sum and weight, so that parts of a batch can be added up.

  Losses and metrics keep this form until they are logged: the result then does
  not depend on how rows were split over devices or micro-batches.
  """

  sum: Array  # float32 scalar: sum of weight * value
  weight: Array  # float32 scalar: sum of the weights, each at least 0

  def __add__(self, other: 'WeightedMean') -> 'WeightedMean':
    return WeightedMean(self.sum + other.sum, self.weight + other.weight)

  def mean(self) -> jax.Array:
    """sum / weight; 0 where nothing had any weight."""
    some = self.weight > 0.0
    return jnp.where(some, self.sum / jnp.where(some, self.weight, 1.0), 0.0)
