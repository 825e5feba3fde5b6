"""Shared by commands that start from a gin file: flags, errors, and `run`."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import copy
import re
import sys
from typing import Any

from absl import app, flags
import gin

from memagent_jax.commands import extras, gin_errors, gin_files

GIN_FILE = flags.DEFINE_multi_string(
  'gin_file',
  None,
  'Run to start: a path, or a shipped file such as gin_configs/train/tiny_grpo.gin '
  'or tiny_grpo.',
)
GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings',
  [],
  'A changed binding, such as "trainer.train.num_steps = 10".',
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'This process is one of several in one run. On TPU pods, Slurm and GKE they '
  'find each other; elsewhere the next three flags say who they are.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of process 0, the same for all.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, from 0.'
)
# Included files are found as those of --gin_file are. gin's own readers would
# log every folder that lacks them.
gin.config._FILE_READERS[:] = [(gin_files.open_found, gin_files.is_found)]


@gin.configurable
def run(start: Callable = gin.REQUIRED, **given: Any) -> Any:
  """Calls `start`, a function of the library whose arguments the file binds."""
  return start(**given)


def main(argv: Sequence[str], workdir: str | None, **given: Any) -> None:
  """Starts what the flags name, or ends the process and says what is wrong.

  Args:
    argv: the command line without its flags: only the command's name.
    workdir: where everything goes.
    **given: further arguments of the run's function.
  """
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not GIN_FILE.value or workdir is None:
    raise app.UsageError('--gin_file and --workdir are needed.')
  with clear_errors():
    _join_processes()
    run(workdir=workdir, config_text=parse(), **given)


def _join_processes() -> None:
  """Makes one run of several processes, before any of them looks for devices."""
  told = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if not _DISTRIBUTED.value:
    if any(value is not None for value in told):
      raise ValueError(
        '--coordinator, --num_processes and --process_id are of --distributed; '
        'give it as well.'
      )
    return
  if any(value is None for value in told) and any(
    value is not None for value in told
  ):
    raise ValueError(
      f'--coordinator, --num_processes and --process_id are {told}; expected all '
      'three, or none where they are found out.'
    )
  import jax

  jax.distributed.initialize(*told)


def parse() -> str:
  """Reads what the flags name; returns the text that identifies the run.

  Raises:
    ValueError: what is wrong with the files or the bindings.
  """
  files = GIN_FILE.value or []
  parse_files(files, GIN_BINDINGS.value or [])
  if 'start' not in gin.get_bindings(run, resolve_references=False):
    raise ValueError(
      f'{", ".join(files)}: nothing to start; expected a file that '
      'binds runs.run.start, as those of gin_configs/train and gin_configs/eval.'
    )
  return _config_text()


def parse_files(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
  """Reads gin files, and bindings after them.

  Raises:
    ValueError: what is wrong with them.
  """
  paths = [str(gin_files.find(name)) for name in files]
  try:
    gin.parse_config_files_and_bindings(paths, bindings)
  except Exception as e:  # gin raises errors of many types, all about the files
    if isinstance(e, ModuleNotFoundError) and extras.missing(e):
      raise
    raise ValueError(' '.join(str(e).split())) from e
  gin_errors.check_used(bindings)


def bound(argument: str, *path: str) -> Any:
  """What the files bind to an argument of the function that `run` starts.

  The value is what gin would pass: `@name` is a function, `@name()` its result.

  Args:
    argument: name of the argument.
    *path: names of arguments bound to functions, each an argument of the
      function before it; `argument` is then one of the last of them.

  Raises:
    ValueError: nothing is bound to it.
  """
  found = gin.query_parameter('memagent_jax.commands.runs.run.start')
  for name in (*path, argument):
    bindings = gin.get_bindings(
      '/'.join([*found.scopes, found.selector]), resolve_references=False
    )
    if name not in bindings:
      raise ValueError(
        f'the run starts {found}, to which no {name} is bound; got '
        f'{", ".join(bindings) or "nothing"}.'
      )
    found = bindings[name]
  return copy.deepcopy(found)


def _config_text() -> str:
  """All bindings; the same text in every process that reads the same files."""
  # gin keeps imports in a set: of a module imported under two names, the text
  # would have either one by chance.
  imports = gin.config._IMPORTS
  gin.config._IMPORTS = sorted(imports, key=lambda line: line.format())
  try:
    return gin.config_str()
  finally:
    gin.config._IMPORTS = imports


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
  """Ends the process with one line if something that the user gave is wrong."""
  try:
    yield
  except (ValueError, OSError) as e:
    sys.exit(f'error: {gin_errors.explain(e)}')
  except (RuntimeError, TypeError) as e:
    # About an argument that no file binds; any other such error is our own bug.
    if not re.match(r'Required bindings|\S+ missing \d+ required', str(e)):
      raise
    sys.exit(f'error: {gin_errors.explain(e)}')
