"""The programs of a run, compiled for devices that are not present.

    Workload + mesh -> prefill, decode, update -> compiled by the chip's compiler

Arguments are abstract, and laid out as `trainer` lays them out; the functions
are those that training calls.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from memagent_jax import sharding
from memagent_jax.models import lora, transformer
from memagent_jax.models.configs import ModelConfig
from memagent_jax.planning import aot
from memagent_jax.rl import grpo
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.policy import Policy
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import Prefilled
from memagent_jax.structs import Array, Params, Tokens
from memagent_jax.train import train_state, update
from memagent_jax.train.sequences import (
  MicroBatches,
  PolicySequences,
  Sequences,
)
from memagent_jax.train.train_state import OptimizerConfig

PHASES = ('prefill', 'decode', 'reference', 'update')


@dataclasses.dataclass(frozen=True)
class Workload:
  """What one step of a run does: the numbers that decide its shapes."""

  model: ModelConfig  # with the dtype and remat of training
  objective: GrpoConfig
  optimizer: OptimizerConfig
  # Tokens in the prompt of a memory turn and of an answer turn, at all caps.
  memory_prompt_tokens: int
  answer_prompt_tokens: int
  # Caps on a memory and on an answer.
  memory_tokens: int
  answer_tokens: int
  # Chunks per document.
  chunks: int
  # Documents per step (B), and rollouts per document (G).
  documents: int
  rollouts: int
  # Trajectories that are sampled at once.
  sample_rows: int
  # Slots per micro-batch.
  micro_tokens: int
  # How many of `sample_rows` prompts are prefilled at once; 0: all.
  prefill_prompts: int = 0
  temperature: float = 1.0
  # Dtype in which the params that adapters leave frozen are loaded.
  frozen_dtype: str = 'float32'

  @property
  def response_tokens(self) -> int:
    """R, the larger cap."""
    return max(self.memory_tokens, self.answer_tokens)

  @property
  def row_tokens(self) -> int:
    """S, the width of the widest training row."""
    return max(
      self.memory_prompt_tokens + self.memory_tokens,
      self.answer_prompt_tokens + self.answer_tokens,
    )

  @property
  def trajectories(self) -> int:
    """B * G."""
    return self.documents * self.rollouts

  @property
  def turns(self) -> int:
    """Number of training rows in a step."""
    return self.trajectories * (self.chunks + 1)

  @property
  def phases(self) -> tuple[str, ...]:
    """The members of PHASES that a step has."""
    if grpo.needs_reference(self.objective):
      return PHASES
    return tuple(phase for phase in PHASES if phase != 'reference')

  def micro_rows(self, row_shards: int) -> int:
    """Rows per micro-batch, as `sequences.micro_batches` makes them."""
    size = max(1, self.micro_tokens // self.row_tokens)
    return -(-size // row_shards) * row_shards


def compile_phase(phase: str, workload: Workload, mesh: Mesh) -> aot.Compiled:
  """Compiles one phase of a workload for the devices of a mesh.

  `update` is a whole step: all turns of all trajectories, each at full width,
  in micro-batches.

  Args:
    phase: one of PHASES.
    workload: what the run does.
    mesh: a mesh of devices, or of their descriptions.

  Raises:
    ValueError: sizes that the mesh does not divide; see `sharding`.
  """
  # Built without the mesh: what JAX computes on the way needs real devices.
  program, *arguments = _PROGRAMS[phase](workload, mesh)
  return aot.compile_program(mesh, program, *arguments)


def resident_bytes(workload: Workload, mesh: Mesh) -> dict[str, int]:
  """Bytes on a device that outlive a phase, by kind.

  The kinds are `params` as training has them, `optimizer`, `reference` params
  (none with adapters: the model without them is the reference), and `rollout
  weights`, the copy in the dtype and layout of rollouts.
  """
  state, shardings = _state(workload, mesh)
  params = _device_bytes(state.all_params, shardings.all_params)
  copied = (
    grpo.needs_reference(workload.objective) and workload.model.lora is None
  )
  return {
    'params': params,
    'reference': params if copied else 0,
    'optimizer': _device_bytes(state.opt_state, shardings.opt_state),
    'rollout weights': _device_bytes(*_rollout_params(workload, mesh)),
  }


def cache_bytes(
  workload: Workload, mesh: Mesh, *, responses: bool = True
) -> int:
  """Bytes on a device for the KV cache of prompts and, if asked, responses."""
  slots = [workload.memory_prompt_tokens]
  if responses:
    slots.append(workload.memory_tokens)
  trees = [_kv(workload, mesh, count) for count in slots]
  return _device_bytes(trees, jax.tree.map(lambda x: x.sharding, trees))


def _device_bytes(tree: Any, shardings: Any) -> int:
  def one(leaf: Any, placed: Any) -> int:
    shape = placed.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize

  return sum(jax.tree.leaves(jax.tree.map(one, tree, shardings)))


# --- prefill and decode ---------------------------------------------------------


def _prefill(workload: Workload, mesh: Mesh) -> tuple:
  params = _placed(*_rollout_params(workload, mesh))
  n, p = workload.sample_rows, workload.memory_prompt_tokens
  prompt = Tokens(_rows(mesh, (n, p)), _rows(mesh, (n,)))
  program = jax.jit(decode.prefill, static_argnums=(0, 3))
  return program, workload.model, params, prompt, workload.prefill_prompts


def _decode(workload: Workload, mesh: Mesh) -> tuple:
  return (
    jax.jit(decode.step, static_argnums=0, donate_argnums=4),
    workload.model,
    _placed(*_rollout_params(workload, mesh)),
    _rows(mesh, (workload.sample_rows,)),
    _prefilled(workload, mesh),
    _kv(workload, mesh, workload.memory_tokens),
    jax.ShapeDtypeStruct((), jnp.int32),
  )


def _prefilled(workload: Workload, mesh: Mesh) -> Prefilled:
  c, n = workload.model, workload.sample_rows
  return Prefilled(
    _kv(workload, mesh, workload.memory_prompt_tokens),
    _rows(mesh, (n,)),
    _rows(mesh, (n, c.head_dim // 2), jnp.float32),
    _rows(mesh, (n, c.vocab_size), jnp.float32),
  )


def _kv(workload: Workload, mesh: Mesh, slots: int) -> Any:
  c = workload.model
  shape = workload.sample_rows, c.num_kv_heads, c.head_dim, slots
  axes = [sharding.ACTIVATIONS[axis] for axis in ('rows', 'kv_heads')]
  one = _array(mesh, shape, c.dtype, *axes)
  return tuple((one, one) for _ in range(c.num_layers))


def _rollout_params(workload: Workload, mesh: Mesh) -> tuple[Params, Any]:
  """Abstract params as `make_reshard` leaves them, and their shardings."""
  boxes = transformer.abstract_params(workload.model)
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype if len(x.shape) < 2 else workload.model.dtype
    ),
    nn.meta.unbox(boxes),
  )
  return params, sharding.param_shardings(mesh, boxes, sharding.ROLLOUTS)


# --- reference and update -----------------------------------------------------------


def _reference(workload: Workload, mesh: Mesh) -> tuple:
  state, shardings = _state(workload, mesh)
  rows, count = _policy_rows(workload, mesh)

  def one(params: Params, rows: Any) -> jax.Array:
    batch = MicroBatches(rows, np.int32(count))
    return update.log_probs(workload.model, workload.temperature, params, batch)

  return jax.jit(one), _placed(state.all_params, shardings.all_params), rows


def _update(workload: Workload, mesh: Mesh) -> tuple:
  state, shardings = _state(workload, mesh)
  rows, count = _policy_rows(workload, mesh)
  policy = Policy(workload.model, workload.objective, workload.temperature)
  step = update.make_update(shardings)

  def one(state: Any, rows: Any) -> Any:
    # A constant count, so that the compiler knows how often its loop runs.
    batches = (MicroBatches(rows, np.int32(count)),)
    return step(policy, workload.optimizer, state, batches)

  program = jax.jit(one, donate_argnums=0, out_shardings=(shardings, None))
  return program, _placed(state, shardings), rows


def _policy_rows(workload: Workload, mesh: Mesh) -> tuple[PolicySequences, int]:
  """Abstract rows [micro-batch, row, ...], and the number of micro-batches."""
  size = workload.micro_rows(sharding.num_shards('rows', mesh))
  s, r = workload.row_tokens, workload.response_tokens
  count = -(-workload.turns // size)

  def rows(*shape: int, dtype: Any = jnp.int32) -> Array:
    axes = None, sharding.ACTIVATIONS['rows']
    return _array(mesh, (count, size, *shape), dtype, *axes)

  def floats(*shape: int) -> Array:
    return rows(*shape, dtype=jnp.float32)

  needed = grpo.needs_reference(workload.objective)
  batch = PolicySequences(
    turns=Sequences(rows(s), rows(), rows()),
    sampler_logprob_NxR=floats(r),
    old_logprob_NxR=floats(r),
    reference_logprob_NxR=floats(r) if needed else None,
    advantage_N=floats(),
    weight_N=floats(),
  )
  return batch, count


def _state(workload: Workload, mesh: Mesh) -> tuple[Any, Any]:
  """The abstract train state, and the shardings of its leaves."""
  boxes = transformer.abstract_params(workload.model)
  shardings = train_state.state_shardings(workload.optimizer, boxes, mesh)
  learned, frozen = lora.split(nn.meta.unbox(boxes))
  frozen = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, workload.frozen_dtype), frozen
  )
  state = jax.eval_shape(
    lambda params: train_state.init_state(workload.optimizer, params),
    lora.join(learned, frozen),
  )
  return state, shardings


def _placed(tree: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda leaf, placed: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=placed
    ),
    tree,
    shardings,
  )


def _rows(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.int32) -> Array:
  return _array(mesh, shape, dtype, sharding.ACTIVATIONS['rows'])


def _array(mesh: Mesh, shape: tuple[int, ...], dtype: Any, *axes: Any) -> Array:
  placed = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)


# Each returns a jitted function and its arguments.
_PROGRAMS: dict[str, Callable] = {
  'prefill': _prefill,
  'decode': _decode,
  'reference': _reference,
  'update': _update,
}
