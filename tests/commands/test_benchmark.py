"""`experiments.benchmark` end to end, at sizes that only test its mechanics."""

import json

import pytest

from memagent_jax.commands.benchmarks import update


@pytest.fixture
def run(run_command, tmp_path):
  def benchmark(*flags):
    out = tmp_path / 'out.json'
    done = run_command('benchmark', '--repeats=1', f'--out={out}', *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(out.read_text(encoding='utf-8'))

  return benchmark


@pytest.fixture
def without_torch(tmp_path):
  """An interpreter that can import nothing."""
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\nexit 1\n', encoding='utf-8')
  python.chmod(0o755)
  return python


@pytest.mark.slow
def test_decode_suite_measures_ours_where_torch_is_missing(
  run, without_torch, tiny_model_dir
):
  printed, result = run(
    f'--model={tiny_model_dir}',
    f'--torch_python={without_torch}',
    '--batch=1,2',
    '--prompt_tokens=16',
    '--new_tokens=2',
  )
  assert 'has no torch: measuring ours alone' in printed
  assert [(row['side'], row['batch']) for row in result['rows']] == [
    ('jax', 1),
    ('jax', 2),
  ]
  assert all(row['decode_seconds'] > 0 for row in result['rows'])


@pytest.mark.slow
def test_reading_suite_reads_the_chunks_that_it_says(run):
  printed, result = run('--suite=reading', '--chunks=1,2,3')
  assert [row['chunks'] for row in result['rows']] == [1, 2, 3]
  assert all(row['peak_bytes'] > 2**20 for row in result['rows'])
  assert all('second_half_bytes' in row for row in result['rows'])
  assert 'in peak memory' in printed


@pytest.mark.slow
def test_update_suite_makes_the_same_steps_at_every_micro_batch(
  run, without_torch, tiny_model_dir
):
  printed, result = run(
    '--suite=update',
    f'--model={tiny_model_dir}',
    f'--torch_python={without_torch}',
    '--micro_batch=1,4',
    '--rows=6',
    '--prompt_tokens=24',
    '--response_tokens=8',
  )
  assert 'has no torch: measuring ours alone' in printed
  # 2 steps each: the one that compiles, and one for --repeats=1.
  assert 'losses differ by at most' in printed
  rows = result['rows']
  assert [(row['micro_batch'], row['step']) for row in rows] == [
    (1, 0),
    (1, 1),
    (4, 0),
    (4, 1),
  ]
  # At the first step all ratios are 1, so the loss is minus the mean advantage,
  # as all responses are equally long.
  ids, advantage_N = update.Workload(6, 24, 8).draw(vocab_size=200)
  assert ids.shape == (6, 32)
  assert rows[0]['loss'] == pytest.approx(-advantage_N.mean(), abs=1e-6)
  assert all(row['gradient_norm'] > 0 for row in rows)
  assert all(row['peak_bytes'] > 2**20 for row in rows)


@pytest.mark.parametrize(
  ('change', 'agrees'),
  [
    ({}, True),
    ({'gradient_norm': 2.001}, True),
    ({'gradient_norm': 2.01}, False),
    ({'gradient_norm': float('nan')}, False),
    ({'loss': 0.002}, False),
    # Another step may have another loss.
    ({'loss': 0.002, 'step': 1}, True),
  ],
)
def test_sides_that_compute_something_else_are_refused(change, agrees, capsys):
  row = {'step': 0, 'loss': 0.0, 'gradient_norm': 2.0}
  rows = [row, row | change]
  if agrees:
    update.check_agreement(rows)
    assert 'gradient norms by' in capsys.readouterr().out
  else:
    with pytest.raises(RuntimeError, match='expected at most'):
      update.check_agreement(rows)
