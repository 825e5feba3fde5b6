"""Tables of records spelled out here, as text and as Markdown."""

import subprocess
import sys

from memagent_jax.evals.report import series, tables
from tests.evals.report.fake_records import record, records


def test_a_length_is_a_line_and_a_series_a_column():
  points = series.points(
    [*records('a', 100, [1, 0]), record('b', 100, 0, error='x')]
  )
  table = tables.accuracy_table(points, 'bytes')
  assert table[0] == ['bytes', 'own tokens', 'chunks', 'n', 'a', 'b']
  assert table[1][3:] == [
    *('2/1', '50.0 [9.5, 90.5]', '100.0 [20.7, 100.0], 1 failed'),
  ]


def test_a_table_is_columns_or_markdown():
  table = [['', 'tokens'], ['window', '7']]
  assert tables.text(table) == '        tokens\nwindow       7'
  assert tables.markdown(table) == (
    '|  | tokens |\n| --- | --- |\n| window | 7 |\n'
  )


def test_of_an_even_number_the_median_is_the_higher_one():
  given = records('a', 100, [1, 1, 1, 1])
  labels = {series.Series('a', 'MemAgent'): 'a'}
  (_, line) = tables.health_table(given, labels, '')
  # Tokens are 100 ... 103.
  assert line[:4] == ['a', '102', '18 / 20 / 24', '33.3%']


def test_tables_come_without_matplotlib():
  code = (
    'import sys, memagent_jax.evals.report.tables; '
    "sys.exit('matplotlib' in sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], timeout=120, check=True)
