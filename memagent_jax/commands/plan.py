"""Prices a run on TPUs by compiling it; needs no TPU.

  TPU_SKIP_MDS_QUERY=1 memagent plan --topology=v5p:4x4x4 \\
    --gin_file=gin_configs/train/qwen2p5_7b_hotpotqa.gin

Prints memory, FLOPs, time and price. Compiles the run's programs with the
chip's own compiler (extra [tpu_aot]) and reads the costs from them: see
`memagent_jax.planning`. Assumes that every memory and answer reaches its cap.

Hardware: any; two depths of a 7B model take four minutes on two CPU cores, all
layers (--depths=) half an hour.
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path

from absl import app, flags

from memagent_jax.commands import runs

flags.adopt_module_key_flags(runs)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'Slice, such as v5p:4x4x4, v5e:16x16 or v6e:8x8.'
)
_DEPTHS = flags.DEFINE_list(
  'depths', ['2', '3'], 'Two numbers of layers to draw on from; none: all.'
)
_DOCUMENT_TOKENS = flags.DEFINE_integer(
  'document_tokens', 28_000, 'Tokens of a training document.'
)
_SWEEP = flags.DEFINE_bool(
  'sweep', False, 'Compare meshes and micro-batches instead.'
)
_SMALLEST = flags.DEFINE_bool(
  'smallest', True, 'Look for the smallest slice of the generation that fits.'
)
_OUT = flags.DEFINE_string('out', None, 'JSON with every figure.')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not runs.GIN_FILE.value or _TOPOLOGY.value is None:
    raise app.UsageError('--gin_file and --topology are needed.')
  # Only the compiler is for TPUs; what runs here runs on the CPU.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  # Several plans may run at once: none uses a TPU.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  with runs.clear_errors():
    runs.parse()
    _plan(_TOPOLOGY.value, [int(depth) for depth in _DEPTHS.value] or None)


def _plan(topology: str, depths: list[int] | None) -> None:
  from memagent_jax.planning import plan, tables, workloads

  work, mesh, steps = workloads.of_run(runs.bound, _DOCUMENT_TOKENS.value)
  print(tables.workload(work), flush=True)
  if _SWEEP.value:
    print(tables.sweep_head(topology))
    for variant, variant_mesh in workloads.variants(work, mesh):
      try:
        made = plan.plan(variant, topology, variant_mesh, depths or plan.DEPTHS)
      except ValueError as e:
        print(f'mesh {variant_mesh}: {e}', flush=True)
        continue
      print(tables.sweep_row(variant, variant_mesh, made), flush=True)
    return
  made = plan.plan(work, topology, mesh, depths)
  if made is None:
    print(f'\ndoes not fit on {topology}: the compiler ran out of HBM.')
  else:
    print(tables.plan(made, steps))
  if _SMALLEST.value:
    small = plan.smallest(work, topology, mesh, depths or plan.DEPTHS)
    print(tables.smallest(small, topology, steps))
  if _OUT.value and made is not None:
    Path(_OUT.value).write_text(
      json.dumps(tables.as_json(made, steps), indent=2) + '\n'
    )
