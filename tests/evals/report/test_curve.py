"""The shortened log of a run, and its picture."""

import json

import pytest

from memagent_jax.evals.report import curve

METRICS = [
  {'step': 0, 'accuracy/a': 0.0, 'seconds/evaluate': 3600.0, 'nll': 4.0},
  {'step': 1, 'nll': 2.0, 'seconds/step': 360.0, 'seconds/evaluate': 0.0},
  {'step': 2, 'nll': 1.0, 'seconds/step': 360.0, 'lost': None},
  {'step': 3, 'nll': 6.0, 'seconds/step': 360.0},
  {'step': 4, 'accuracy/a': 0.5, 'seconds/evaluate': 720.0},
]


def test_records_are_means_and_hours_are_all_work_so_far():
  assert curve.thin(METRICS, 2) == [
    {'step': 0, 'hours': 1.0, 'accuracy/a': 0.0, 'nll': 4.0},
    {'step': 2, 'hours': 1.2, 'nll': 1.5},
    # A measurement ends a record; it is never averaged with another.
    {'step': 4, 'hours': 1.5, 'nll': 6.0, 'accuracy/a': 0.5},
  ]


def test_a_record_for_every_step_at_most():
  assert len(curve.thin(METRICS, 1)) == len(METRICS)
  with pytest.raises(ValueError, match='every is 0'):
    curve.thin(METRICS, 0)


def test_files_and_lines_of_the_picture(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(
    ''.join(json.dumps(step) + '\n' for step in METRICS)
  )
  curve.write(tmp_path, tmp_path / 'out', every=2)
  lines = (tmp_path / 'out' / 'curve.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in lines] == curve.thin(METRICS, 2)
  assert (tmp_path / 'out' / 'curve.png').read_bytes()[:4] == b'\x89PNG'
  upper, lower = curve.draw(curve.thin(METRICS, 2)).axes
  assert upper.lines[0].get_xydata().tolist() == [[1.0, 0.0], [1.5, 50.0]]
  assert lower.lines[0].get_ydata().tolist() == [4.0, 1.5, 6.0]


def test_a_folder_without_metrics_is_said(tmp_path):
  with pytest.raises(ValueError, match=r'no metrics\.jsonl'):
    curve.write(tmp_path, tmp_path / 'out', every=1)
