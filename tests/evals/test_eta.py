"""Progress lines: what they say, when, and how wide they are."""

import pytest

from memagent_jax.evals import eta
from memagent_jax.evals.eta import Eta
from memagent_jax.evals.grid import GridBatch
from memagent_jax.evals.records import Cell, CellExample


def batch(method='MemAgent', model='tiny', tokens=65_536, flops=1e12):
  cell = Cell(model, method, 'vt', tokens, 0)
  return GridBatch('name', (CellExample(cell, 0),), 4, tokens, flops)


def test_a_line_names_the_batch_and_estimates_by_the_rate_of_its_method():
  lines = []
  progress = Eta(lines.append)
  alike, shorter = batch(), batch(tokens=512, flops=1e11)
  # 1e12 FLOPs take 600 s: one more batch takes 10 minutes, a tenth of it 1.
  progress.on_finished(batch(), [alike, shorter], '4/12', '3/4 right', 600.0)
  assert lines == [
    '4/12 MemAgent tiny 65,536 tokens 3/4 right | left 10:00, all 11:00'
  ]


def test_a_method_without_a_rate_has_the_mean_rate():
  lines = []
  progress = Eta(lines.append)
  progress.on_finished(batch(), [], '4/12', '4/4 right', 100.0)
  other = batch(method='window', flops=1e12)
  progress.on_finished(other, [], '8/12', '4/4 right', 300.0)
  third = batch(method='BM25', flops=2e12)
  # 400 s for 2e12 FLOPs so far; 8,000 s for what took the first batch 100 s.
  progress.on_finished(batch(), [third], '9/12', '4/4 right', 0.0)
  assert lines[-1].endswith(' | left 0:00, all 4:27')


def test_a_running_batch_has_a_line_a_minute(monkeypatch):
  lines = []
  progress = Eta(lines.append)
  running = batch(tokens=3_500_000)
  progress.on_progress(running, [], '0/12', 0.25, 1800.0)
  assert lines == []
  monkeypatch.setattr(eta, '_LINE_EVERY_SECONDS', 0.0)
  progress.on_progress(running, [], '0/12', 0.0, 1800.0)
  assert lines == []
  progress.on_progress(running, [], '0/12', 0.25, 1800.0)
  # A quarter took half an hour.
  assert lines == [
    '0/12 MemAgent tiny 3,500,000 tokens 25 % | left 1:30:00, all 1:30:00'
  ]


def test_what_is_left_of_a_length_gives_way_to_the_name():
  lines = []
  progress = Eta(lines.append)
  running = batch('MemAgent guarded', 'after RL')
  progress.on_finished(running, [running], '120/312', '16/16 right', 4000.0)
  assert lines == [
    '120/312 MemAgent guarded after RL 65,536 tokens 16/16 right | all 1:06:40'
  ]


@pytest.mark.parametrize('seconds', [1.0, 1000.0, 100_000.0])
@pytest.mark.parametrize(
  ('method', 'model'),
  [
    ('MemAgent', 'after RL'),
    ('MemAgent guarded', 'after the full run'),
    ('no document', 'SmolLM2-135M'),
  ],
)
def test_a_line_fits_80_columns(method, model, seconds):
  lines = []
  long = batch(method, model, tokens=3_500_000)
  progress = Eta(lines.append)
  outcome = '14/16 right, 2 failed'
  progress.on_finished(long, [long], '1200/11936', outcome, seconds)
  assert len(lines[0]) <= 80
  assert ' 3,500,000 tokens 14/16 right, 2 failed | ' in lines[0]
  assert lines[0].startswith(f'1200/11936 {method[:6]}')
