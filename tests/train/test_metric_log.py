"""The metrics of a run in its files, and on the terminal."""

import glob
import time

import tensorflow as tf

from memagent_jax.train.metric_log import MetricLog, PacedLines, read_metrics


def events(directory):
  """(step, name, value) in all event files, and the steps at which they begin."""
  scalars, starts = [], []
  for path in sorted(glob.glob(f'{directory}/events.*')):
    for event in tf.compat.v1.train.summary_iterator(path):
      if event.HasField('session_log'):
        starts.append(event.step)
      scalars += [
        (event.step, value.tag, value.simple_value)
        for value in event.summary.value
      ]
  return scalars, starts


def test_every_metric_is_in_the_event_file_and_in_the_log(tmp_path, capsys):
  shown = ('loss', 'absent')
  with MetricLog(tmp_path, shown=shown, shown_every_seconds=0.0) as log:
    for step in range(3):
      log.write(step, {'loss': step / 2, 'kl': 1.0})
  scalars, starts = events(tmp_path)
  assert scalars == [
    (step, name, value)
    for step in range(3)
    for name, value in (('loss', step / 2), ('kl', 1.0))
  ]
  # What a killed run left of these steps is not drawn.
  assert starts == [0]
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  assert rows == [{'step': s, 'loss': s / 2, 'kl': 1.0} for s in range(3)]
  assert capsys.readouterr().out.splitlines() == [
    *('step 0  loss 0', 'step 1  loss 0.5', 'step 2  loss 1'),
  ]


def test_a_resumed_run_drops_the_steps_it_repeats(tmp_path):
  for first_step in (0, 2):
    with MetricLog(tmp_path, first_step=first_step) as log:
      for step in range(first_step, 4):
        log.write(step, {'loss': float(10 * first_step + step)})
    time.sleep(1.1)  # event files are named by the second
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  assert [row['loss'] for row in rows] == [0.0, 1.0, 22.0, 23.0]
  assert events(tmp_path)[1] == [0, 2]


def test_the_terminal_has_the_first_and_the_last_of_quick_steps(
  tmp_path, capsys
):
  with MetricLog(tmp_path, shown=('loss',)) as log:
    for step in range(100):
      log.write(step, {'loss': float(step)})
  assert capsys.readouterr().out.splitlines() == [
    *('step 0  loss 0', 'step 99  loss 99'),
  ]
  assert len(read_metrics(tmp_path / 'metrics.jsonl')) == 100


def test_many_metrics_take_more_lines_that_fit_the_terminal(tmp_path, capsys):
  metrics = {f'group/metric_{i}': 1234.5 for i in range(9)}
  with MetricLog(tmp_path, shown=tuple(metrics)) as log:
    log.write(1040, metrics)
  lines = capsys.readouterr().out.splitlines()
  # 'step 1040' and three metrics of 2 + 14 + 1 + 4 columns are 72 columns.
  assert [line.count('group/') for line in lines] == [3, 3, 3]
  assert max(map(len, lines)) == 72 and lines[1].startswith(' ' * 11 + 'group')


def test_lines_keep_their_distance_and_the_last_is_shown_once():
  seconds, shown = iter([0.0, 1.0, 4.9, 5.0, 9.0, 20.0]), []
  lines = PacedLines(shown.append, 5.0, lambda: next(seconds))
  for name in 'abcde':
    lines.add(name)
  assert shown == ['a', 'd']
  lines.finish()
  lines.finish()
  assert shown == ['a', 'd', 'e']
  lines.add('f')
  lines.finish()
  assert shown == ['a', 'd', 'e', 'f']
