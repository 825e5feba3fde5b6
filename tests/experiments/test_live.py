"""What the live display says of a row of rewards."""

from experiments import live


def test_sparkline_spans_zero_to_one_and_averages_long_rows():
  assert live.sparkline([0.0, 0.5, 1.0]) == ' ▄█'
  assert live.sparkline([0.0, 1.0] * 60, width=60) == '▄' * 60


def test_summary_tells_slope_and_interval():
  assert live.summary([]) == 'no steps'
  text = live.summary([0.1 * i for i in range(10)])
  assert text == (
    '0.00 at first, 0.90 at last; slope +1.000 in 10 steps, 95 % interval '
    '[+1.000, +1.000]'
  )


def test_without_a_terminal_it_prints_a_line_a_step(capsys):
  with live.LiveReward() as display:
    for step in range(2):
      display(step, {'reward/mean': 0.5, 'seconds/step': 1.0})
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 and lines[1].startswith('step 1  reward 0.50')
