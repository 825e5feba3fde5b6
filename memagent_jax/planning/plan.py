"""Memory, time and price of a run on a slice, before the slice is rented.

    Workload + topology -> compiled phases -> memory by kind, FLOPs against
      arithmetic, roofline seconds -> seconds of a step, chip-hours, dollars

All layers of a decoder are alike, so a deep model is compiled at two small
depths and every figure is extrapolated along the line through them. FLOPs are
exact that way, and from two layers on seconds are within 2 %; in a one-layer
model the compiler moves transfers out of loops, which it does not do in deeper
ones. Memory was within 1 % at the 28 layers of Qwen2.5-7B, and 15 % too low at
six layers of a small model, whose transfers overlap more: to see whether a run
barely fits, compile all of its layers.
"""

from collections.abc import Sequence
import dataclasses

from jax.sharding import Mesh

from memagent_jax import sharding
from memagent_jax.models import flops as flops_lib
from memagent_jax.planning import chips, hlo, programs
from memagent_jax.planning.hlo import Cost
from memagent_jax.planning.programs import Workload
from memagent_jax.sharding import MeshConfig

# Numbers of layers to compile and to extrapolate from.
DEPTHS = (2, 3)
# What a compiler says when a program does not fit.
_TOO_LARGE = ('RESOURCE_EXHAUSTED', 'Ran out of memory')


@dataclasses.dataclass(frozen=True)
class Phase:
  """One program, and how often a step of the run calls it."""

  name: str
  calls: float
  cost: Cost  # one call on one device
  model_flops: float  # one call on one device, by arithmetic
  # Bytes on a device while it runs: weights, optimizer, cache, activations.
  memory: dict[str, int]

  @property
  def waste(self) -> float:
    """FLOPs of the program for each FLOP that the model needs."""
    return self.cost.flops / self.model_flops

  @property
  def seconds(self) -> float:
    """Seconds of all calls in a step, each instruction at the chip's peak."""
    return self.calls * self.cost.seconds

  @property
  def bytes(self) -> int:
    """Bytes on a device, all kinds together."""
    return sum(self.memory.values())


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a workload takes on a topology."""

  topology: str
  mesh: tuple[int, int, int]
  phases: tuple[Phase, ...]
  trained_tokens: int  # per step, all caps reached

  @property
  def devices(self) -> int:
    """Number of chips in the slice."""
    data, fsdp, tensor = self.mesh
    return data * fsdp * tensor

  @property
  def step_seconds(self) -> float:
    """Seconds of a GRPO step at the chip's peak."""
    return sum(phase.seconds for phase in self.phases)

  @property
  def fits(self) -> bool:
    """Whether every phase fits in the HBM of a device."""
    return self.bytes <= chips.chip(self.topology).hbm_bytes

  @property
  def bytes(self) -> int:
    """Bytes on a device in the largest phase."""
    return max(phase.bytes for phase in self.phases)

  def chip_hours(self, steps: int) -> float:
    """Chip-hours that the given number of steps takes."""
    return steps * self.step_seconds * self.devices / 3600

  def dollars(self, steps: int) -> float:
    """On-demand price of the given number of steps, in US dollars."""
    price = chips.chip(self.topology).dollars_per_hour
    return self.chip_hours(steps) * price


def plan(
  workload: Workload,
  topology: str,
  mesh: MeshConfig,
  depths: Sequence[int] | None = None,
) -> Plan | None:
  """The plan of a workload on a topology; None if a phase does not fit in HBM.

  Args:
    workload: what the run does.
    topology: a name such as `v5p:4x4x4`.
    mesh: how the run splits its work.
    depths: two numbers of layers to compile; None: all layers of the model.

  Raises:
    ValueError: an impossible topology or mesh (see `chips`, `sharding`), or
      depths that do not rise.
  """
  if depths is not None and (len(depths) != 2 or not 0 < depths[0] < depths[1]):
    raise ValueError(f'depths are {depths}; expected two rising numbers.')
  devices = sharding.make_mesh(mesh, chips.devices(topology))
  layers = workload.model.num_layers
  try:
    phases = [
      [
        _phase(name, _at_depth(workload, depth), devices, topology)
        for depth in depths or (layers,)
      ]
      for name in workload.phases
    ]
  except Exception as e:
    if any(sign in str(e) for sign in _TOO_LARGE):
      return None
    raise
  return Plan(
    topology,
    tuple(devices.shape.values()),
    tuple(
      _extrapolated(at_depth, (layers - depths[0]) / (depths[1] - depths[0]))
      if depths
      else at_depth[0]
      for at_depth in phases
    ),
    trained_tokens=workload.turns * workload.row_tokens,
  )


def smallest(
  workload: Workload,
  topology: str,
  mesh: MeshConfig,
  depths: Sequence[int] = DEPTHS,
) -> Plan | None:
  """The plan on the smallest slice of a generation that fits, or None.

  Slices that do not fit the mesh, or whose HBM does not hold even the resident
  bytes, are skipped without compiling.
  """
  limit = chips.chip(topology).hbm_bytes
  for other in chips.slices(topology):
    try:
      devices = sharding.make_mesh(mesh, chips.devices(other))
      resident = programs.resident_bytes(workload, devices)
    except ValueError:
      continue
    if sum(resident.values()) > limit:
      continue
    try:
      candidate = plan(workload, other, mesh, depths)
    except ValueError:
      continue
    if candidate is not None and candidate.fits:
      return candidate
  return None


def _at_depth(workload: Workload, layers: int) -> Workload:
  model = dataclasses.replace(workload.model, num_layers=layers)
  return dataclasses.replace(workload, model=model)


def _extrapolated(two: Sequence[Phase], share: float) -> Phase:
  """The phase at another depth, on the line through two."""

  def line(a: float, b: float) -> float:
    return a + (b - a) * share

  a, b = two
  return dataclasses.replace(
    a,
    cost=dataclasses.replace(
      b.cost,
      flops=line(a.cost.flops, b.cost.flops),
      hbm_bytes=line(a.cost.hbm_bytes, b.cost.hbm_bytes),
      link_bytes=line(a.cost.link_bytes, b.cost.link_bytes),
      seconds=line(a.cost.seconds, b.cost.seconds),
    ),
    model_flops=line(a.model_flops, b.model_flops),
    # A shallow program may be scheduled to need less with one more layer; a
    # deep one never needs less.
    memory={
      kind: int(max(line(size, b.memory[kind]), size, b.memory[kind]))
      for kind, size in a.memory.items()
    },
  )


def _phase(name: str, workload: Workload, mesh: Mesh, topology: str) -> Phase:
  compiled = programs.compile_phase(name, workload, mesh)
  resident = programs.resident_bytes(workload, mesh)
  compiled_bytes = (
    compiled.argument_bytes + compiled.output_bytes + compiled.temporary_bytes
  )
  # Resident in every phase; `arguments` is the part that the program is given.
  optimizer = resident['optimizer']
  weights = resident['params'] + resident['reference']
  arguments, cache = 0, 0
  if name == 'update':
    arguments = resident['params'] + optimizer
  elif name == 'reference':
    # With adapters the reference is the model without them.
    arguments = resident['reference'] or resident['params']
  else:
    arguments = resident['rollout weights']
    weights += arguments
    cache = programs.cache_bytes(workload, mesh, responses=name == 'decode')
  return Phase(
    name=name,
    calls=_calls(name, workload),
    cost=hlo.cost(compiled.hlo, chips.chip(topology).rates),
    model_flops=_model_flops(name, workload) / mesh.size,
    memory={
      'weights': weights,
      'optimizer': optimizer,
      'cache': cache,
      'activations': compiled_bytes - arguments - cache,
    },
  )


def _calls(name: str, workload: Workload) -> float:
  """Calls of a program per step, memory turns and answers at all caps."""
  parts = workload.trajectories / workload.sample_rows
  if name == 'prefill':
    answers = workload.answer_prompt_tokens / workload.memory_prompt_tokens
    return parts * (workload.chunks + answers)
  if name == 'decode':
    tokens = workload.chunks * workload.memory_tokens + workload.answer_tokens
    return parts * tokens
  return 1.0


def _model_flops(name: str, workload: Workload) -> float:
  """FLOPs of a call by arithmetic, a lower bound for any program."""
  model, rows = workload.model, workload.sample_rows
  prompt = workload.memory_prompt_tokens
  if name == 'prefill':
    return rows * flops_lib.forward_flops(model, prompt, head_tokens=1)
  if name == 'decode':
    # One more token after a prompt and half of its response.
    seen = prompt + workload.memory_tokens // 2
    more = flops_lib.forward_flops(model, seen + 1, head_tokens=1)
    return rows * (more - flops_lib.forward_flops(model, seen, head_tokens=0))
  flops = (
    flops_lib.update_flops if name == 'update' else flops_lib.forward_flops
  )
  row, response = workload.row_tokens, workload.response_tokens
  return workload.turns * flops(model, row, head_tokens=response)
