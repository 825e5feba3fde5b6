"""Measures how often a turn loses what a memory holds.

  memagent measure-retention \\
    --gin_file=gin_configs/eval/tiny_retention.gin --workdir=runs/tiny_retention

Checks hundreds of thousands of turns. Counts go to WORKDIR/turns.jsonl;
repeating the command resumes. The hardware is at the top of the gin file, the
expected numbers are in docs/results.md.
"""

from collections.abc import Sequence

from absl import flags

from memagent_jax.commands import runs

flags.adopt_module_key_flags(runs)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything goes.')


def main(argv: Sequence[str]) -> None:
  runs.main(argv, _WORKDIR.value)
