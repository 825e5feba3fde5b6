"""Demonstrations as experience: rows of a step, and refusals."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from memagent_jax.sft.demonstrations import Mix, Stage
from memagent_jax.sft.imitation import Imitation
from memagent_jax.sft.skills import SkillConfig
from memagent_jax.sft.supervision import Demonstrations
from memagent_jax.train import trainer
from memagent_jax.train.train_state import OptimizerConfig
from tests import tiny_runs


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def demonstrations(model, seed=0):
  content = SkillConfig(shares=(('answer', 1.0),))
  mixes = [
    Mix(content, batch_size=rows, sequence_tokens=220, response_tokens=60)
    for rows in (4, 6)
  ]
  return Demonstrations(
    model,
    stages=[Stage(2, mixes[:1]), Stage(4, mixes[1:])],
    template=tiny_runs.TEMPLATE,
    micro_tokens=450,
    seed=seed,
  )


def test_rows_beyond_the_window_are_refused(model):
  config = dataclasses.replace(model.config, max_positions=219)
  with pytest.raises(
    ValueError, match=r'sequence_tokens is 220; the window .* 219'
  ):
    demonstrations(dataclasses.replace(model, config=config))


@pytest.mark.slow
def test_computing_in_bfloat16_leaves_params_in_float32(
  tiny_tokenizer, tmp_path
):
  losses = {}
  for dtype in ('float32', 'bfloat16'):
    model = tiny_runs.model(tiny_tokenizer)
    trainer.train(
      workdir=tmp_path / dtype,
      model=model,
      source=demonstrations,
      optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
      num_steps=2,
      compute_dtype=dtype,
      on_step=lambda _, metrics, d=dtype: losses.setdefault(d, []).append(
        metrics['loss']
      ),
    )
    saved = safetensors.numpy.load_file(
      tmp_path / dtype / 'model' / 'model.safetensors'
    )
    assert {x.dtype.name for x in saved.values()} == {'float32'}
  np.testing.assert_allclose(*losses.values(), rtol=2e-2)
  assert losses['float32'] != losses['bfloat16']


def test_demonstrations_are_a_function_of_the_step(model):
  one, two = demonstrations(model), demonstrations(model)
  assert one.num_steps == 4
  for step, slots in ((3, 3), (0, 2), (1, 2)):
    got, expected = one.next(step, {}), two.next(step, {})
    jax.tree.map(
      np.testing.assert_array_equal, got.mini_batches, expected.mini_batches
    )
    (batches,) = got.mini_batches
    # Two rows of 220 slots per micro-batch.
    (batch,) = batches
    assert batch.sequences.ids_NxS.shape == (slots, 2, 220)
    assert got.objective == Imitation(tiny_runs.CONFIG, 60)
    real = batch.sequences.prompt_length_N + batch.sequences.response_length_N
    assert got.trained_tokens == real.sum()
  other = demonstrations(model, seed=1).next(0, {}).mini_batches[0][0]
  first = one.next(0, {}).mini_batches[0][0]
  assert (other.sequences.ids_NxS != first.sequences.ids_NxS).any()
