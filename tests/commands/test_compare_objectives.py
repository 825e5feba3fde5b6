"""The command that prints the difference between two presets."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_differs_is_a_line_each(run_command):
  def lines(*names):
    done = run_command(
      'compare_objectives',
      *(f'--gin_file=gin_configs/objectives/{name}.gin' for name in names),
      cwd=ROOT,
    )
    return done.stdout.splitlines()

  assert lines('paper', 'released_script') == [
    *('clip_high: 0.28 -> 0.2', 'dual_clip: 0.0 -> 3.0'),
  ]
  assert lines('dapo', 'dapo') == ['no difference']
