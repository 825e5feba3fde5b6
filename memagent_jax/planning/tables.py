"""Plans as Markdown and as JSON."""

from typing import Any

from memagent_jax.planning import chips
from memagent_jax.planning.chips import GIB
from memagent_jax.planning.plan import Plan
from memagent_jax.planning.programs import Workload
from memagent_jax.sharding import MESH_AXES, MeshConfig

_KINDS = ('weights', 'optimizer', 'cache', 'activations')


def workload(work: Workload) -> str:
  """What a step does, in words."""
  c = work.model
  return (
    f'{c.architecture}, {c.num_layers} layers of width {c.embed_dim}; '
    f'{work.documents} documents x {work.rollouts} rollouts x '
    f'{work.chunks} chunks; prompts of {work.memory_prompt_tokens:,} tokens, '
    f'rows of {work.row_tokens:,}; {work.sample_rows:,} trajectories sampled at '
    f'once; {"layers computed again" if c.remat else "no layer computed again"} '
    'for the gradient'
  )


def plan(result: Plan, steps: int) -> str:
  """One plan in full."""
  limit = chips.chip(result.topology).hbm_bytes
  mesh = ' x '.join(
    f'{axis} {size}' for axis, size in zip(MESH_AXES, result.mesh, strict=True)
  )
  lines = [
    '',
    f'{result.topology}, {result.devices} chips, mesh {mesh}',
    '',
    '| HBM of a chip, GiB | ' + ' | '.join(_KINDS) + ' | together | limit |',
    '|---' * (len(_KINDS) + 3) + '|',
  ]
  for phase in result.phases:
    sizes = [phase.memory[kind] for kind in _KINDS]
    cells = [f'{size / GIB:.2f}' for size in (*sizes, phase.bytes, limit)]
    lines.append(f'| {phase.name} | ' + ' | '.join(cells) + ' |')
  lines += [
    '',
    '| of a call and chip | TFLOP | of the model | GB of HBM | GB of links '
    '| ms | calls a step | s a step |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for phase in result.phases:
    cost = phase.cost
    lines.append(
      f'| {phase.name} | {cost.flops / 1e12:.3f} | x {phase.waste:.2f} | '
      f'{cost.hbm_bytes / 1e9:.1f} | {cost.link_bytes / 1e9:.2f} | '
      f'{1e3 * cost.seconds:.1f} | {phase.calls:,.0f} | {phase.seconds:.1f} |'
    )
  seconds = result.step_seconds
  lines += [
    '',
    f'{"fits" if result.fits else "DOES NOT FIT"}. At the peak of the chip: '
    f'{seconds:.0f} s a step, {result.trained_tokens / seconds:,.0f} trained '
    f'tokens/s; {steps:,} steps take {result.chip_hours(steps):,.0f} chip-hours, '
    f'${result.dollars(steps):,.0f} on demand.',
  ]
  return '\n'.join(lines)


def smallest(result: Plan | None, topology: str, steps: int) -> str:
  """The result of `plan.smallest` in a sentence."""
  generation = topology.partition(':')[0]
  if result is None:
    return f'\nNo slice of {generation} fits this mesh and batch.'
  return (
    f'\nSmallest slice of {generation} that fits: {result.topology}, '
    f'{result.bytes / GIB:.1f} GiB a chip, {result.step_seconds:.0f} s a step, '
    f'${result.dollars(steps):,.0f}.'
  )


def sweep_head(topology: str) -> str:
  """The head of a table with one plan per row."""
  return (
    f'\n| mesh on {topology} | micro-batch tokens | rows at once | GiB a chip | '
    'prefill s | decode s | update s | step s |\n|---|---|---|---|---|---|---|---|'
  )


def sweep_row(work: Workload, mesh: MeshConfig, result: Plan | None) -> str:
  """One plan as a row of that table; `result` None means out of memory."""
  place = f'data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor}'
  row = f'| {place} | {work.micro_tokens:,} | {work.sample_rows:,} | '
  if result is None:
    return row + 'out of memory | | | | |'
  by_name = {phase.name: phase.seconds for phase in result.phases}
  # The reference's forward pass is part of learning.
  update = by_name['update'] + by_name.get('reference', 0.0)
  size = f'{result.bytes / GIB:.1f}' + ('' if result.fits else ' (too much)')
  return row + (
    f'{size} | {by_name["prefill"]:.1f} | {by_name["decode"]:.1f} | '
    f'{update:.1f} | {result.step_seconds:.1f} |'
  )


def as_json(result: Plan, steps: int) -> dict[str, Any]:
  """Every figure of a plan, for JSON."""
  return {
    'topology': result.topology,
    'mesh': dict(zip(MESH_AXES, result.mesh, strict=True)),
    'fits': result.fits,
    'step_seconds': result.step_seconds,
    'trained_tokens': result.trained_tokens,
    'chip_hours': result.chip_hours(steps),
    'dollars': result.dollars(steps),
    'phases': {
      phase.name: {
        'memory_bytes': phase.memory,
        'flops': phase.cost.flops,
        'model_flops': phase.model_flops,
        'waste': phase.waste,
        'hbm_bytes': phase.cost.hbm_bytes,
        'link_bytes': phase.cost.link_bytes,
        'largest_gather': phase.cost.largest_gather,
        'call_seconds': phase.cost.seconds,
        'calls': phase.calls,
      }
      for phase in result.phases
    },
  }
