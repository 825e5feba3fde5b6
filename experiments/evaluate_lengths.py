"""Accuracy against document length, for one or more models; table, plot and page.

  python -m experiments.evaluate_lengths \\
    --gin_file=gin_configs/runs/tiny_lengths.gin --workdir=runs/tiny_lengths

Rows go to WORKDIR/rows.jsonl as they are finished; repeating the command goes on.
Hardware, time and expected numbers stand at the top of each gin file.
"""

from absl import app, flags

from experiments import runs

flags.adopt_module_key_flags(runs)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything goes.')
_TRAINED_CHUNKS = flags.DEFINE_integer(
  'trained_chunks', 8, 'Longest document of training, marked in the plot.'
)
_TITLE = flags.DEFINE_string(
  'title', 'Needles in a novel, read chunk by chunk', 'Of plot and page.'
)


def main(argv):
  runs.main(argv, _WORKDIR.value)
  from memagent_jax import length_grid, length_report

  rows = length_grid.read_rows(_WORKDIR.value)
  length_report.write(
    _WORKDIR.value,
    rows,
    trained_chunks=_TRAINED_CHUNKS.value,
    title=_TITLE.value,
  )
  lines = length_report.table(length_report.cells(rows))
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  for line in lines:
    print('  '.join(t.rjust(w) for t, w in zip(line, widths, strict=True)))
  print(f'plot and page: {_WORKDIR.value}/accuracy.png, report.html')


if __name__ == '__main__':
  app.run(main)
