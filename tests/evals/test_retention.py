"""Turns of the shipped warm-up model, which loses about every other memory."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.agent import prompts
from memagent_jax.agent.config import ReadingConfig
from memagent_jax.agent.memory_rules import Guarded
from memagent_jax.evals import retention, statistics
from memagent_jax.evals.retention import RetentionConfig
from memagent_jax.models.weights import pretrained

MODEL = 'memagent-tiny-warmup'
# As in gin_configs/tasks/tiny_needles.gin.
TEMPLATE = prompts.Template(
  '{question}\nMemory: {memory}\n{chunk}\nNew memory:',
  '{question}\nMemory: {memory}\nAnswer:',
  'none',
)
READING = ReadingConfig(
  chunk_tokens=96,
  memory_tokens=64,
  answer_tokens=48,
  question_tokens=32,
  template=TEMPLATE,
)
CONFIG = RetentionConfig(turns=40, batch_size=8, chunks_per_key=3)


@pytest.fixture(scope='module')
def settings():
  return {
    'model': pretrained.load_model(MODEL),
    'reading': READING,
    'essays': ['tale_of_two_cities'],
  }


def test_losses_that_come_together_say_less():
  def bound(lost, lost_keys, lost_squared):
    counts = {'turns': 1600, 'keys': 100, 'changed': 0, 'lost': lost}
    counts |= {'lost_keys': lost_keys, 'lost_squared': lost_squared}
    return retention._totals([{'counts': {'number': counts}}])['bound']

  # Eight keys lost once each count as eight of 1,600 turns,
  assert bound(8, 8, 8) == statistics.upper_bound(8, 1600)
  # one key lost eight times counts as one of 200,
  assert bound(8, 1, 64) == statistics.upper_bound(1, 200)
  # and none at all counts as none of 100 keys.
  assert bound(0, 0, 0) == statistics.upper_bound(0, 100)


@pytest.mark.parametrize('near_miss_share', [0.0, 1.0])
@pytest.mark.slow
def test_teacher_forcing_counts_what_decoding_every_turn_counts(
  settings, tmp_path, near_miss_share
):
  config = dataclasses.replace(CONFIG, near_miss_share=near_miss_share)
  quick = retention.measure(workdir=tmp_path / 'a', config=config, **settings)
  # No probability is high enough to be certain.
  config = dataclasses.replace(config, certain_probability=1.0)
  slow = retention.measure(workdir=tmp_path / 'b', config=config, **settings)
  assert quick['turns'] == slow['turns'] >= 40
  assert 0 < quick['lost'] == slow['lost'] < quick['turns']
  assert quick['changed'] == slow['changed'] < slow['turns'] - slow['lost']
  for name in ('turns', 'lost', 'keys', 'lost_keys'):
    kinds = [quick[f'{kind}/{name}'] for kind in ('number', 'uuid')]
    assert sum(kinds) == quick[name]
  lines = _lines(tmp_path / 'a')
  losses = [loss for line in lines for loss in line['losses']]
  assert len(losses) == quick['lost_keys'] < quick['keys']
  assert sum(loss['lost'] for loss in losses) == quick['lost']
  squared = sum(loss['lost'] ** 2 for loss in losses)
  assert quick['lost_squared'] == squared
  assert all(loss['memory'] != loss['became'] for loss in losses)


@pytest.mark.slow
def test_what_turns_lose_and_take_says_what_a_guard_does(settings, tmp_path):
  usual = retention.measure(workdir=tmp_path / 'a', config=CONFIG, **settings)
  losses, taken = _support(tmp_path / 'a')
  assert len(losses) == usual['lost'] and len(taken) == usual['keys']
  # This model slips, but turns that take up a needle have far larger ratios.
  ratios = [ratio for ratio, _ in losses]
  assert max(ratios) < min(taken)
  for least in (float(np.median(ratios)), (max(ratios) + min(taken)) / 2):
    reading = dataclasses.replace(READING, rule=Guarded(math.exp(least)))
    workdir = tmp_path / f'{least}'
    gated = retention.measure(
      workdir=workdir, config=CONFIG, **(settings | {'reading': reading})
    )
    assert gated['keys'] == usual['keys']
    assert gated['lost'] == sum(
      ratio >= least or given for ratio, given in losses
    )


def _lines(workdir):
  text = (workdir / retention.TURNS).read_text()
  return [json.loads(line) for line in text.splitlines()]


def _support(workdir):
  """Support of losing turns, and ratios of the turns that take up a needle."""
  lines = _lines(workdir)
  losses = [
    pair
    for line in lines
    for loss in line['losses']
    for pair in zip(loss['log_ratios'], loss['given'], strict=True)
  ]
  taken = [r for line in lines for kind in line['taken'].values() for r in kind]
  return losses, taken


@pytest.mark.slow
def test_a_measurement_that_was_cut_goes_on(settings, tmp_path):
  whole = retention.measure(workdir=tmp_path, config=CONFIG, **settings)
  path = tmp_path / retention.TURNS
  written = path.read_bytes()
  batches = [json.loads(line) for line in written.splitlines()]
  assert len(batches) == 2
  # Different keys in every batch, the same whenever a batch is made.
  assert batches[0] != batches[1]
  path.write_bytes(written[: written.index(b'\n') + 9])
  again = retention.measure(workdir=tmp_path, config=CONFIG, **settings)
  assert again == whole
  assert path.read_bytes() == written
  with pytest.raises(ValueError, match='another config'):
    retention.measure(
      workdir=tmp_path, config=CONFIG, config_text='b = 2', **settings
    )


@pytest.mark.slow
def test_a_model_that_takes_up_no_needle_has_nothing_to_lose(
  settings, tmp_path
):
  model = settings['model']
  params = jax.tree.map(jnp.zeros_like, model.params)
  settings = settings | {'model': dataclasses.replace(model, params=params)}
  with pytest.raises(ValueError, match='none of 8 memories has the value'):
    retention.measure(workdir=tmp_path, config=CONFIG, **settings)
