"""Likelihood of a text given memories, against plain forward passes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.agent.prompts import Template
from memagent_jax.agent.reader import Reader
from memagent_jax.evals import likelihood
from memagent_jax.evals.likelihood import LikelihoodConfig
from memagent_jax.models import rope
from memagent_jax.models.transformer import Decoder
from tests import tiny_runs

READING = dataclasses.replace(
  tiny_runs.READING, temperature=0.0, chunk_cut='sentence'
)


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'novel.txt'
  text = ''.join(f'It was day {i}. ' for i in range(200))
  path.write_text(text.strip(), encoding='utf-8')
  return LikelihoodConfig((str(path),), 'Who?', READING, parts=2, chunks=3)


@functools.partial(jax.jit, static_argnums=0)
def log_probs(config, params, ids_1xT, length_1):
  """Log-probs of every next token, [T, V]."""
  hidden, _ = Decoder(config).apply(
    {'params': params},
    ids_1xT,
    jnp.arange(ids_1xT.shape[1])[None],
    rope.frequencies(config, length_1),
  )
  logits = Decoder(config).apply(
    {'params': params}, hidden[0], method=Decoder.logits
  )
  return jax.nn.log_softmax(logits)


def score(model, prompt_ids, chunk_ids):
  """Mean log-prob of chunk_ids after prompt_ids, by one forward pass."""
  ids = [*prompt_ids, *chunk_ids]
  padded = jnp.asarray(ids + [0] * (128 - len(ids)))[None]
  found = log_probs(model.config, model.params, padded, jnp.array([len(ids)]))
  rows = np.arange(len(prompt_ids) - 1, len(ids) - 1)
  return float(np.asarray(found)[rows, np.asarray(chunk_ids)].mean())


@pytest.mark.slow
def test_scores_are_those_of_the_prompt_up_to_the_chunk(model, config):
  found = likelihood.measure(model, config)
  text = open(config.essays[0], encoding='utf-8').read()  # noqa: SIM115
  encode = model.tokenizer.encode
  start = model.tokenizer.encode_template('<|im_start|>user\n')
  given, without = [], []
  for part in (text[: len(text) // 2], text[len(text) // 2 :]):
    reader = Reader(model, 'Who?', READING)
    turns = reader.feed(part)[:3]
    for before, turn in itertools.pairwise(turns):
      chunk = encode(turn.chunk)
      assert len(chunk) == turn.chunk_tokens
      for scores, memory in (
        (given, before.memory_ids),
        (without, encode('none')),
      ):
        prompt = [
          *start,
          *encode('Who?'),
          *encode(' has '),
          *memory,
          *encode(' then '),
        ]
        scores.append(score(model, prompt, chunk))
  assert found['chunks'] == 4
  assert found['with_memory'] == pytest.approx(np.mean(given), abs=1e-4)
  assert found['without_memory'] == pytest.approx(np.mean(without), abs=1e-4)
  middle, low, high = found['difference']
  assert low <= middle <= high
  assert middle == pytest.approx(np.mean(given) - np.mean(without), abs=1e-4)


def test_a_text_too_short_is_named(model, config):
  with pytest.raises(ValueError, match='do not hold 900 parts of 3 chunks'):
    likelihood.measure(model, dataclasses.replace(config, parts=900))


def test_a_template_with_its_chunk_first_has_no_likelihood(model, config):
  template = Template('{chunk} {question} {memory}', '{question} {memory}', '-')
  reading = dataclasses.replace(READING, template=template)
  with pytest.raises(ValueError, match='chunk before question or memory'):
    likelihood.measure(model, dataclasses.replace(config, reading=reading))


def test_one_chunk_has_no_memory_before_it():
  with pytest.raises(ValueError, match='chunks is 1'):
    LikelihoodConfig(('x',), chunks=1)
