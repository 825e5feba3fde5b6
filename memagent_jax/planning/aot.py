"""Compiles ahead of time, for devices that are described but not present.

It knows nothing of this project and compiles any program.
"""

import dataclasses
from pathlib import Path
import tempfile
from typing import Any

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A program, and what the compiler says about it."""

  # Optimised HLO: what a device runs.
  hlo: str
  # Bytes on a device: arguments, results that reuse no argument's memory, and
  # temporaries.
  argument_bytes: int
  output_bytes: int
  temporary_bytes: int


def compile_program(
  mesh: Mesh, program: jax.stages.Wrapped, *arguments: Any
) -> Compiled:
  """Compiles a jitted function for abstract arguments on a mesh.

  Args:
    mesh: a mesh of devices, or of their descriptions.
    program: the result of `jax.jit`.
    *arguments: its arguments; arrays as ShapeDtypeStructs with shardings.
  """
  with jax.set_mesh(mesh):
    lowered = program.lower(*arguments)
    with tempfile.TemporaryDirectory() as folder:
      # Not every backend can give the text of the executable itself.
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
