"""Reports an evaluation grid: a page, pictures, tables.

The grid need not be finished.

  memagent report --workdir=runs/eval_quick
  memagent report --workdir=A --compare=B   # paired bootstrap
  memagent report --workdir=A --scorer=boxed_em

Writes WORKDIR/report/, or report_SCORER/: report.html (self-contained), PNG and
SVG, tables.md, points.csv.
"""

from collections.abc import Sequence

from absl import app, flags

_WORKDIR = flags.DEFINE_string('workdir', None, 'Workdir of memagent evaluate.')
_TITLE = flags.DEFINE_string(
  'title', 'Accuracy against document length', 'Title of the page.'
)
_AXIS = flags.DEFINE_string(
  'axis', 'SmolLM2 tokens', 'What the tokens of the records are called.'
)
_TRAINED_TOKENS = flags.DEFINE_integer(
  'trained_tokens', None, 'Longest document of training, shaded in the plot.'
)
_LEAST_TOKENS = flags.DEFINE_integer(
  'least_tokens', 0, 'Where the drop to the longest documents is counted from.'
)
_COMPARE = flags.DEFINE_string(
  'compare', None, 'Workdir of another run on the same examples.'
)
_SCORER = flags.DEFINE_string(
  'scorer',
  None,
  'Scores the answers anew, such as boxed_em, the reward of training. '
  "[the task's metric]",
)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1 or _WORKDIR.value is None:
    raise app.UsageError('--workdir is needed, and no other arguments.')
  from memagent_jax.commands import runs

  with runs.clear_errors():
    from memagent_jax.evals import records
    from memagent_jax.evals.report import page, tables
    from memagent_jax.evals.report import series as series_lib

    path = page.write(
      _WORKDIR.value,
      title=_TITLE.value,
      axis=_AXIS.value,
      trained_tokens=_TRAINED_TOKENS.value,
      least_tokens=_LEAST_TOKENS.value,
      compared=_COMPARE.value,
      scorer=_SCORER.value,
    )
    read = records.read_records(_WORKDIR.value, _SCORER.value)
    for sampling, group in series_lib.by_sampling(read).items():
      scored = f'{_SCORER.value}, ' if _SCORER.value else ''
      print(f'{sampling}, {scored}{_AXIS.value}')
      table = tables.accuracy_table(series_lib.points(group))
      print(tables.text(table))
    print(f'page: {path}')
