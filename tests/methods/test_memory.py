"""The agent as a method: the same readings as the Reader's, and resuming."""

import dataclasses

import numpy as np
import pytest

from memagent_jax import costs, rollout
from memagent_jax.methods.memory import Memory
from memagent_jax.methods.progress import Progress
from memagent_jax.reader import Reader
from tests import tiny_runs

METHOD = Memory(
  tiny_runs.TEMPLATE,
  dataclasses.replace(tiny_runs.READING, temperature=0.0, chunk_cut='sentence'),
  window_chunks=2,
)
CHUNKS = (5, 1, 8, 0)


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def examples():
  made = [tiny_runs.document(i, chunks or 1) for i, chunks in enumerate(CHUNKS)]
  made[3] = dataclasses.replace(made[3], document='')
  return made


@pytest.mark.slow
def test_documents_side_by_side_are_read_as_one_alone(model):
  answered = METHOD.answer(model, examples(), Progress())
  for example, result in zip(examples(), answered.results, strict=True):
    reader = Reader(model, example.question, METHOD.reading, tiny_runs.TEMPLATE)
    turns = reader.feed(example.document) + reader.finish()
    (answer,) = reader.answer()
    assert (result.answer, result.finish_reason) == (
      answer.answer,
      answer.finish_reason,
    )
    assert result.own_tokens == result.read_tokens == reader.tokens_read
    for reason in ('eos', 'length'):
      mine = [t for t in turns if t.finish_reason == reason]
      assert result.turns[reason] == len(mine)
    memories = ['none', *(t.memory for t in turns)]
    changed = [
      (t.chunk_index, t.chunk, t.memory)
      for t, before in zip(turns, memories, strict=False)
      if t.memory != before
    ]
    assert [
      (line['chunk_index'], line['chunk'], line['memory'])
      for line in result.trace
    ] == changed


@pytest.mark.slow
def test_flops_are_those_of_the_turns(model):
  (result,) = METHOD.answer(model, examples()[1:2], Progress()).results
  reader = Reader(model, 'Who 1?', METHOD.reading, tiny_runs.TEMPLATE)
  (turn,) = reader.feed(examples()[1].document) + reader.finish()
  (answer,) = reader.answer()
  agent = rollout.make_agent(model, tiny_runs.TEMPLATE, METHOD.reading)
  encode = model.tokenizer.encode
  shared = agent.prompts.memory_turn_tokens + len(encode('Who 1?'))
  first = shared + len(encode('none')) + turn.chunk_tokens
  last = (
    agent.prompts.answer_turn_tokens
    + len(encode('Who 1?'))
    + len(turn.memory_ids)
  )
  sampled = len(answer.answer_ids) + (answer.finish_reason == 'eos')
  assert result.flops == costs.turn_flops(
    model.config, first, turn.response_tokens
  ) + costs.turn_flops(model.config, last, sampled)


def test_a_killed_reading_goes_on_where_it_was_saved(
  model, tmp_path, monkeypatch
):
  expected = METHOD.answer(model, examples(), Progress()).results
  path = tmp_path / 'progress.json'
  read, calls = rollout.read, []

  def killed(*args):
    calls.append(np.asarray(args[6])[0])
    if len(calls) == 3:
      raise KeyboardInterrupt
    return read(*args)

  monkeypatch.setattr(rollout, 'read', killed)
  with pytest.raises(KeyboardInterrupt):
    METHOD.answer(model, examples(), Progress(path, every_seconds=0.0))
  progress = Progress(path)
  assert progress.state['first'] == 4
  assert METHOD.answer(model, examples(), progress).results == expected
  # Chunks 0 to 3 were not read again.
  assert calls[:3] == [0, 2, 4] and calls[3] == 4


def test_health_says_when_the_evidence_came_and_went(model, monkeypatch):
  example = dataclasses.replace(tiny_runs.document(0, 6), answers=('a', 'Z'))
  (result,) = METHOD.answer(model, [example], Progress()).results
  has = {line['chunk_index']: 'a' in line['memory'] for line in result.trace}
  enters = min((i for i, there in has.items() if there), default=None)
  leaves = None
  if enters is not None:
    leaves = min(
      (i for i, t in has.items() if i > enters and not t), default=None
    )
  assert result.health['evidence_enters_turn'] == enters
  assert result.health['evidence_leaves_turn'] == leaves
  turns = sum(result.turns.values())
  assert result.health['unchanged'] == (turns - len(result.trace)) / turns
  assert result.health['saturated'] == result.turns['length'] / turns


def test_a_question_over_its_cap_names_the_example(model):
  example = dataclasses.replace(tiny_runs.document(0, 1), question='Who? ' * 9)
  with pytest.raises(ValueError, match=r'^example Who 0\?: .* is 12'):
    METHOD.answer(model, [example], Progress())
