"""What of a run's metrics is in its files, and on the terminal."""

import glob
import time

import tensorflow as tf

from memagent_jax.train.metric_log import MetricLog, read_metrics


def events(directory):
  """(step, name, value) of all event files, and the steps that they begin at."""
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
  with MetricLog(tmp_path, shown=('loss', 'absent')) as log:
    for step in range(3):
      log.write(step, {'loss': step / 2, 'kl': 1.0})
  scalars, starts = events(tmp_path)
  assert scalars == [
    (step, name, value)
    for step in range(3)
    for name, value in (('loss', step / 2), ('kl', 1.0))
  ]
  # What a run that was killed left of these steps is not drawn.
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
