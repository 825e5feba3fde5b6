"""Shortens the log of a training run, and draws it.

  memagent training-curve --workdir=runs/tiny_warmup \\
    --out=docs/results/tiny_warmup --every=100
"""

from collections.abc import Sequence

from absl import app, flags

_WORKDIR = flags.DEFINE_string('workdir', None, 'Workdir of memagent train.')
_OUT = flags.DEFINE_string(
  'out', None, 'Folder that gets curve.jsonl and curve.png.'
)
_EVERY = flags.DEFINE_integer('every', 1, 'Steps that one row stands for.')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1 or _WORKDIR.value is None or _OUT.value is None:
    raise app.UsageError('--workdir and --out are needed, and nothing else.')
  from memagent_jax.commands import runs

  with runs.clear_errors():
    from memagent_jax.evals.report import curve

    curve.write(_WORKDIR.value, _OUT.value, _EVERY.value)
