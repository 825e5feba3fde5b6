"""Cells, table and page of rows that are written down here."""

import pytest

from memagent_jax import length_report


def rows(model, chunks, scores):
  return [
    {
      'model': model,
      'chunks': chunks,
      'tokens': 190 * chunks + i,
      'own_tokens': 250 * chunks + i,
      'score': score,
    }
    for i, score in enumerate(scores)
  ]


ROWS = [
  *rows('before', 2, [1.0, 0.0, 0.0, 0.0]),
  *rows('before', 1, [1.0, 1.0, 1.0, 0.0]),
  *rows('after <1>', 1, [1.0, 1.0]),
]


def test_cells_have_counts_means_and_wilson_intervals():
  one, two, after = length_report.cells(ROWS)
  assert (one.model, one.chunks, one.count, one.score) == ('before', 1, 4, 0.75)
  # Median of 190 ... 193, rounded to even.
  assert (one.tokens, one.own_tokens) == (192, 252)
  # Wilson for 3 of 4: (0.75 + z2/8 -+ z sqrt(...)) / (1 + z2/4), z2 = 3.8415.
  assert one.low == pytest.approx(0.3006, abs=1e-4)
  assert one.high == pytest.approx(0.9544, abs=1e-4)
  assert (two.chunks, two.score) == (2, 0.25)
  assert (after.model, after.high) == ('after <1>', 1.0)


def test_the_table_has_a_line_a_length_and_leaves_out_what_was_not_run():
  header, one, two = length_report.table(length_report.cells(ROWS))
  assert header[-2:] == ['before', 'after <1>']
  assert one == ['1', '192', '252', '4/2', '75.0 [30.1, 95.4]', one[-1]]
  assert two[-1] == '' and two[0] == '2'
  text = length_report.markdown([header, one, two])
  assert text.splitlines()[1] == '| --- | --- | --- | --- | --- | --- |'


def test_page_and_plots_are_written_and_escape_names(tmp_path):
  length_report.write(tmp_path, ROWS, trained_chunks=1, title='a & b')
  page = (tmp_path / 'report.html').read_text(encoding='utf-8')
  assert 'after &lt;1&gt;' in page and '<h1>a &amp; b</h1>' in page
  assert page.count('<svg') == 1 and 'src=' not in page
  assert (tmp_path / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  assert (tmp_path / 'table.md').read_text().count('\n') == 4
