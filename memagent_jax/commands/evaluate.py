"""Runs an evaluation grid; repeating the command resumes.

  memagent evaluate --gin_file=gin_configs/eval/eval_quick.gin \\
    --workdir=runs/eval_quick
  memagent evaluate ... --processes=2
  memagent evaluate ... --shard=0/4        # on each of four machines
  memagent evaluate ... --merge=OTHER_WORKDIR --merge=...

Records go to WORKDIR/records.jsonl as batches finish. `memagent report` draws
them, whether the grid is finished or not. The top of each gin file states what
it is for, and on which hardware.
"""

from collections.abc import Sequence
import ctypes
import functools
import os
import signal
import subprocess
import sys
from typing import Any

from absl import flags

from memagent_jax.commands import runs

flags.adopt_module_key_flags(runs)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything goes.')
_SEED = flags.DEFINE_integer(
  'seed', None, "Seed of documents that are generated. [the gin file's]"
)
_SHARD = flags.DEFINE_string('shard', '0/1', 'This part of how many: i/n.')
_PROCESSES = flags.DEFINE_integer(
  'processes', 1, 'Processes on this machine; each has its own cores.'
)
_MERGE = flags.DEFINE_multi_string(
  'merge', None, 'Join the records of these workdirs with those here, and stop.'
)
_RETRY_FAILED = flags.DEFINE_bool(
  'retry_failed', False, 'Compute failed examples again.'
)
# Option of prctl(2): the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> None:
  if _SEED.value is not None:
    runs.GIN_BINDINGS.value.append(f'SEED = {_SEED.value}')
  if _PROCESSES.value > 1:
    _run_processes()
    given: dict[str, Any] = {'merge': ()}
  elif _MERGE.value:
    given = {'merge': _MERGE.value}
  else:
    given = {'shard': _shard(), 'retry_failed': _RETRY_FAILED.value}
  runs.main(argv, _WORKDIR.value, **given)
  assert _WORKDIR.value is not None  # `runs.main` requires it
  if given.get('shard', (0, 1)) == (0, 1):
    _print_cells(_WORKDIR.value)


def _print_cells(workdir: str) -> None:
  """Prints the score at every length, over all tasks and by task."""
  from memagent_jax.evals import records
  from memagent_jax.evals.report import series, tables

  read = records.read_records(workdir)
  for sampling, group in series.by_sampling(read).items():
    found = series.points(group) + series.points(group, by_task=True)
    for task in dict.fromkeys(point.task for point in found):
      print(f'{task}, {sampling}: right answers, % [95 % interval]')
      points = [point for point in found if point.task == task]
      print(tables.text(tables.accuracy_table(points)))


def _shard() -> tuple[int, int]:
  try:
    index, count = map(int, _SHARD.value.split('/'))
  except ValueError:
    sys.exit(f'error: --shard is {_SHARD.value!r}; expected i/n, such as 0/4.')
  return index, count


def _run_processes() -> None:
  """Starts this command once per process, on different cores; waits for all."""
  cores = sorted(os.sched_getaffinity(0))
  count = _PROCESSES.value
  if count > len(cores):
    sys.exit(f'error: --processes is {count}; this machine has {len(cores)}.')
  command = [sys.executable, '-m', 'memagent_jax', 'evaluate', *sys.argv[1:]]
  children = [
    subprocess.Popen(
      [*command, '--processes=1', f'--shard={i}/{count}'],
      preexec_fn=functools.partial(_settle, cores[i::count]),
    )
    for i in range(count)
  ]
  codes = [child.wait() for child in children]
  if any(codes):
    sys.exit(
      f'error: processes ended with {codes}; repeat the command to resume.'
    )


def _settle(cores: Sequence[int]) -> None:
  """Pins this process to its cores, and ends it when its parent dies."""
  os.sched_setaffinity(0, cores)
  # SIGKILL, which no library can handle: whoever repeats the command at once
  # finds the locks free.
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
