"""The live display of a series of rewards."""

import io

import pytest
import rich.console

from memagent_jax.commands import live


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


def test_without_a_terminal_it_prints_the_first_and_last_of_quick_steps(capsys):
  metrics = {'reward/mean': 0.5, 'seconds/step': 1234.5, 'entropy': 1.0}
  with live.LiveReward() as display:
    for step in range(1000, 1009):
      display(step, metrics | {'memory/evidence_kept': 1.0})
  lines = capsys.readouterr().out.splitlines()
  # The head, two steps, and the summary on two lines.
  assert len(lines) == 5 and max(map(len, lines)) <= 80
  assert lines[1].startswith('step 1001  reward 0.50')
  assert lines[2].startswith('step 1009  reward 0.50')
  assert lines[3].startswith('reward 0.50 at first')


def test_on_a_terminal_one_panel_is_drawn_again(monkeypatch):
  out = io.StringIO()
  console = rich.console.Console(file=out, force_terminal=True, width=120)
  monkeypatch.setattr(rich.console, 'Console', lambda: console)
  with live.LiveReward() as display:
    for step in range(3):
      display(step, {'reward/mean': step / 2, 'seconds/step': 1.0})
  shown = out.getvalue()
  assert (
    'reward of GRPO, step by step' in shown and 'step 3  reward 1.00' in shown
  )
  assert ' ▄█' in shown and 'slope +5.000 in 10 steps' in shown


def test_a_run_without_rewards_has_nothing_to_show():
  with (
    live.LiveReward() as display,
    pytest.raises(ValueError, match='leave the flag out'),
  ):
    display(0, {'loss': 1.0})
