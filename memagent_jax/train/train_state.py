"""Parameters and optimizer as one donated state, and how it is made."""

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from memagent_jax import sharding
from memagent_jax.models import lora
from memagent_jax.structs import Array, Params

SCHEDULES = ('constant', 'cosine')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up. The paper: 1e-6, constant after warm-up."""

  learning_rate: float = 1e-6
  warmup_steps: int = 20
  # `constant`, or `cosine` down to 0 over `decay_steps`.
  schedule: str = 'constant'
  decay_steps: int = 0
  # Further cosines down to 0: (steps, initial share of learning_rate).
  # Source: SGDR, arXiv 1608.03983.
  restarts: tuple[tuple[int, float], ...] = ()
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  # Largest global norm of a gradient; 0 does not clip.
  clip_norm: float = 1.0

  def __post_init__(self) -> None:
    object.__setattr__(self, 'restarts', tuple(map(tuple, self.restarts)))
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f'schedule is {self.schedule!r}; choose from {", ".join(SCHEDULES)}.'
      )
    if self.schedule == 'cosine' and self.decay_steps <= self.warmup_steps:
      raise ValueError(
        f'decay_steps {self.decay_steps} must exceed warmup_steps '
        f'{self.warmup_steps}.'
      )
    if self.restarts and self.schedule != 'cosine':
      raise ValueError(
        f'restarts are {self.restarts} and schedule is {self.schedule!r}; only '
        'cosine has restarts.'
      )


class TrainState(struct.PyTreeNode):
  """What a training step takes, donates and returns."""

  step: Array  # int32, updates that changed the params
  params: Params  # float32; the params that learn
  opt_state: optax.OptState
  skipped: Array  # int32, updates that were not finite and were skipped
  # The other params, where only adapters learn; of any dtype.
  frozen: Params = struct.field(default_factory=dict)

  @property
  def all_params(self) -> dict:
    """All params of the model."""
    return lora.join(self.params, self.frozen)


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
  """The learning rate by update."""
  if config.schedule == 'cosine':
    begin, begins = config.decay_steps, []
    schedules = [
      optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        config.warmup_steps,
        config.decay_steps,
      )
    ]
    for steps, share in config.restarts:
      begins.append(begin)
      schedules.append(
        optax.cosine_decay_schedule(share * config.learning_rate, steps)
      )
      begin += steps
    return optax.join_schedules(schedules, begins)
  return optax.schedules.join_schedules(
    [
      optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
      optax.constant_schedule(config.learning_rate),
    ],
    [config.warmup_steps],
  )


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """The optimizer: clipping, then AdamW."""
  adamw = optax.adamw(
    learning_rate(config),
    b1=config.beta1,
    b2=config.beta2,
    eps=config.epsilon,
    weight_decay=config.weight_decay,
  )
  if config.clip_norm == 0.0:
    return adamw
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def init_state(
  config: OptimizerConfig, params: dict, shardings: TrainState | None = None
) -> TrainState:
  """The state before the first update, with float32 parameters.

  Args:
    config: settings of the optimizer.
    params: initial params; if they have adapters, only the adapters learn.
    shardings: shardings from `state_shardings`; None: those of the params.
  """

  def init(params: Params) -> TrainState:
    params, frozen = lora.split(params)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return TrainState(
      step=jnp.int32(0),
      params=params,
      opt_state=optimizer(config).init(params),
      skipped=jnp.int32(0),
      frozen=frozen,
    )

  return jax.jit(init, out_shardings=shardings)(params)


def state_shardings(
  config: OptimizerConfig, abstract_params: Params, mesh: Mesh
) -> TrainState:
  """A sharding for every leaf of the state; moments are laid out like params.

  Args:
    config: settings of the optimizer.
    abstract_params: boxes from `transformer.abstract_params`.
    mesh: a Mesh or AbstractMesh.

  Raises:
    ValueError: as in `sharding.param_shardings`.
  """
  tx = optimizer(config)
  abstract_params, frozen = lora.split(abstract_params)
  params = sharding.param_shardings(mesh, abstract_params)
  everywhere = NamedSharding(mesh, PartitionSpec())
  opt_state = optax.tree_utils.tree_map_params(
    tx,
    lambda moment, placed: placed,
    jax.eval_shape(tx.init, nn.meta.unbox(abstract_params)),
    params,
    transform_non_params=lambda leaf: everywhere,
  )
  return TrainState(
    everywhere,
    params,
    opt_state,
    everywhere,
    sharding.param_shardings(mesh, frozen),
  )


def apply_gradients(
  config: OptimizerConfig,
  state: TrainState,
  gradients: dict,
  anything: jax.Array | bool = True,
) -> tuple[TrainState, jax.Array]:
  """The state after one update, and the gradients' global norm.

  If the norm is not finite, parameters and optimizer stay as they were and
  `skipped` counts it. If `anything` is False they stay too, uncounted: no row
  had a weight, and momentum alone must not move the parameters.
  """
  norm = optax.tree.norm(gradients)
  finite = jnp.isfinite(norm)
  updates, opt_state = optimizer(config).update(
    gradients, state.opt_state, state.params
  )
  params = optax.apply_updates(state.params, updates)

  def chosen(new: Any, old: Any) -> Any:
    return jax.tree.map(
      lambda a, b: jnp.where(finite & anything, a, b), new, old
    )

  return TrainState(
    step=state.step + (finite & anything),
    params=chosen(params, state.params),
    opt_state=chosen(opt_state, state.opt_state),
    skipped=state.skipped + ~finite,
    frozen=state.frozen,
  ), norm
