"""A trajectory is shown as it was sampled, judged and trained on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.agent.engine import Lockstep
from memagent_jax.models import rope, transformer
from memagent_jax.rl import inspection
from memagent_jax.rl.grpo import GrpoConfig
from tests import tiny_runs

# Three rollouts of four documents, two of one chunk and two of three.
SHAPE = {'chunks': (1, 3), 'count': 4}
REWARDS = [[0, 0, 0], [1, 0, 0.5], [1, 1, 1], [0, 0, 1]]


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def long_documents(model, chunks=3):
  """Numbers of the first batch's documents with this many chunks."""
  batch, found = tiny_runs.rollouts(model, **SHAPE).sample(model.params)
  read_CxN = found.documents.chunk.length_N > 0
  return [
    b for b in range(len(batch.ids)) if read_CxN[:, 3 * b].sum() == chunks
  ]


def log_probs(model, ids, start):
  """Log-probs of the ids from `start` on, by the whole model in one call."""
  decoder = transformer.Decoder(tiny_runs.CONFIG)
  hidden, _ = decoder.apply(
    {'params': model.params},
    jnp.asarray([ids]),
    jnp.arange(len(ids))[None],
    rope.frequencies(tiny_runs.CONFIG, jnp.asarray([start])),
  )
  logits = decoder.apply({'params': model.params}, hidden, method='logits')[0]
  logprob = np.asarray(jax.nn.log_softmax(logits))
  return [logprob[i - 1, ids[i]] for i in range(start, len(ids))]


@pytest.mark.slow
def test_turns_are_those_of_the_rollout(model):
  engine = tiny_runs.Watched()
  b = long_documents(model)[-1]
  found = inspection.inspect(
    tiny_runs.rollouts(model, engine=engine, **SHAPE),
    model,
    document=b,
    rollout=1,
  )
  sampled, n = engine.seen[-1], 3 * b + 1
  decode = model.tokenizer.decode
  assert len(found.turns) == 4
  assert found.question == found.id
  memory = 'none'
  for c, turn in enumerate(found.turns):
    last = c == 3
    response = (
      jax.tree.map(lambda x: x[None], sampled.answer)
      if last
      else jax.tree.map(lambda x, c=c: x[c : c + 1], sampled.turns.response)
    )
    ids = response.ids_NxR[0, n, : response.length_N[0, n]]
    assert turn.tokens == tuple(map(model.tokenizer.token_text, ids))
    assert turn.memory_before == memory
    ended = turn.finish_reason == 'eos'
    assert ended == (turn.tokens[-1] == '<|im_end|>')
    text = decode(ids)  # without the control token
    if last:
      assert (turn.record, found.answer) == (None, text)
      asked = f'{found.question} from {memory}: \\boxed{{}}?'
    else:
      chunk = sampled.documents.chunk
      chunk = decode(chunk.ids_NxW[c, n, : chunk.length_N[c, n]])
      asked = f'{found.question} has {memory} then {chunk}!'
      assert turn.record.chunk == chunk
      if not turn.record.thought_tokens:
        assert turn.record.memory == text
      memory = turn.record.memory
    assert turn.prompt == (
      f'<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n'
      '<think>\n\n</think>\n\n'
    )


@pytest.mark.slow
def test_turns_that_were_skipped_are_not_there(model):
  b = long_documents(model, chunks=1)[0]
  found = inspection.inspect(tiny_runs.rollouts(model, **SHAPE), model, b)
  assert [turn.record is None for turn in found.turns] == [False, True]
  assert found.turns[1].memory_before == found.turns[0].record.memory


@dataclasses.dataclass(frozen=True)
class OtherNumbers:
  """An engine that records a probability of 1/4 for every token."""

  def sample(self, *args, **kwargs):
    found = Lockstep().sample(*args, **kwargs)
    return dataclasses.replace(
      found,
      turns=found.turns.replace(response=quarter(found.turns.response)),
      answer=quarter(found.answer),
    )


def quarter(response):
  wrong = np.full_like(response.logprob_NxR, np.log(0.25))
  return response.replace(logprob_NxR=wrong)


@pytest.mark.slow
def test_the_ratio_is_trainer_over_sampler(model):
  b = long_documents(model)[0]
  found = inspection.inspect(tiny_runs.rollouts(model, **SHAPE), model, b)
  np.testing.assert_allclose(found.ratios, 1, atol=1e-4)
  # Against what a sampler with other numbers would have recorded.
  engine = tiny_runs.Watched(engine=OtherNumbers())
  source = tiny_runs.rollouts(model, engine=engine, **SHAPE)
  turn = inspection.inspect(source, model, b).turns[0]
  response = jax.tree.map(lambda x: x[0, 3 * b], engine.seen[0].turns.response)
  # The first prompt has no memory, so encoding cannot join its pieces.
  prompt = model.tokenizer.encode_template(turn.prompt)
  assert len(prompt) == turn.prompt_tokens
  ids = [*prompt, *response.ids_NxR[: response.length_N].tolist()]
  np.testing.assert_allclose(
    turn.ratio_R, 4 * np.exp(log_probs(model, ids, len(prompt))), rtol=1e-3
  )


@pytest.mark.slow
def test_verdict_and_advantage_are_of_the_trajectory(model):
  shape = SHAPE | {'reward': tiny_runs.scripted_reward(REWARDS)}
  for b, g, advantage in ((1, 0, 0.5), (1, 2, 0.0), (3, 2, 2 / 3), (2, 1, 0)):
    found = inspection.inspect(tiny_runs.rollouts(model, **shape), model, b, g)
    # The metric is the example's own, by which no answer here is right.
    assert (found.reward, found.metric) == (REWARDS[b][g], 0.0)
    assert found.group_rewards == found.group_scores == tuple(REWARDS[b])
    assert found.advantage == pytest.approx(advantage, abs=1e-6)
    assert (found.reward_name, found.metric_name) == ('boxed_em', 'em')
    assert found.right_answers == ('42',)
    assert all(turn.weight == 1 for turn in found.turns)


def test_scores_and_weights_are_those_of_the_objective(model):
  shape = SHAPE | {'reward': tiny_runs.scripted_reward(REWARDS)}
  objective = GrpoConfig(
    kl_coefficient=0.0, overlong_buffer_tokens=4, overlong_filter='answer'
  )
  cap = tiny_runs.READING.answer_tokens
  for g in range(3):
    found = inspection.inspect(
      tiny_runs.rollouts(model, grpo=objective, **shape), model, 1, g
    )
    # One of the 5 answer tokens is free; each other one costs a quarter.
    answer = found.turns[-1]
    over = (len(answer.tokens) - 1) / 4
    assert found.group_scores[g] == pytest.approx(REWARDS[1][g] - over)
    mean = sum(found.group_scores) / 3
    assert found.advantage == pytest.approx(
      found.group_scores[g] - mean, abs=1e-6
    )
    cut = answer.finish_reason == 'length'
    assert cut == (len(answer.tokens) == cap and answer.tokens[-1][:2] != '<|')
    assert {turn.weight for turn in found.turns} == {0.0 if cut else 1.0}


def test_numbers_that_are_not_there(model):
  source = tiny_runs.rollouts(model)
  with pytest.raises(ValueError, match='document_index is 4; expected 0 to 3'):
    inspection.inspect(source, model, 4)
  with pytest.raises(ValueError, match='rollout is -1; expected 0 to 2'):
    inspection.inspect(source, model, 0, -1)
