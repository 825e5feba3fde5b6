"""Compiles ahead of time, for devices that are described and not here.

Knows nothing of this project: programs of others compile as well.
"""

import dataclasses
from pathlib import Path
import tempfile
from typing import Any

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program, and what the compiler says of it."""

  # Optimised HLO: what a device runs.
  hlo: str
  # Bytes on a device: arguments, results that take no argument's place, and what
  # is there in between.
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int


def compile_program(
  mesh: Mesh, program: jax.stages.Wrapped, *arguments: Any
) -> Compiled:
  """A jitted function, compiled for abstract arguments on a mesh.

  Args:
    mesh: a mesh of devices, or of their descriptions.
    program: the result of `jax.jit`.
    *arguments: its arguments; arrays as ShapeDtypeStructs with shardings.
  """
  with jax.set_mesh(mesh):
    lowered = program.lower(*arguments)
    with tempfile.TemporaryDirectory() as folder:
      # The text of the executable itself cannot be read back from every backend.
      executable = lowered.compile(
        compiler_options={
          'xla_dump_to': folder,
          'xla_dump_hlo_as_text': True,
        }
      )
      hlo = _optimised(Path(folder))
  memory = executable.memory_analysis()
  assert memory is not None
  return Compiled(
    hlo=hlo,
    argument_bytes=memory.argument_size_in_bytes,
    output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
  )


def _optimised(folder: Path) -> str:
  paths = sorted(folder.glob('*after_optimizations.txt'))
  if not paths:
    paths = sorted(folder.glob('*after_codegen.txt'))
  return max((path.read_text() for path in paths), key=len)
