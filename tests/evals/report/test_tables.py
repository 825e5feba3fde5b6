"""Tables of rows that are written down here, as text and as Markdown."""

import subprocess
import sys

from memagent_jax.evals.report import series, tables
from tests.evals.report.rows import row, rows


def test_a_length_is_a_line_and_a_series_a_column():
  found = series.points([*rows('a', 100, [1, 0]), row('b', 100, 0, error='x')])
  table = tables.accuracy_table(found, 'bytes')
  assert table[0] == ['bytes', 'own tokens', 'chunks', 'n', 'a', 'b']
  assert table[1][3:] == [
    *('2/1', '50.0 [9.5, 90.5]', '100.0 [20.7, 100.0], 1 failed'),
  ]


def test_a_table_is_columns_or_markdown():
  table = [['', 'tokens'], ['memory', '7']]
  assert tables.text(table) == '        tokens\nmemory       7'
  assert tables.markdown(table) == (
    '|  | tokens |\n| --- | --- |\n| memory | 7 |\n'
  )


def test_of_an_even_number_the_median_is_the_higher_one():
  made = rows('a', 100, [1, 1, 1, 1])
  (_, line) = tables.health_table(made, {series.Series('a', 'memory'): 'a'}, '')
  # Tokens are 100 ... 103.
  assert line[:4] == ['a', '102', '18 / 20 / 24', '33.3%']


def test_tables_come_without_matplotlib():
  code = (
    'import sys, memagent_jax.evals.report.tables; '
    "sys.exit('matplotlib' in sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], timeout=120, check=True)
