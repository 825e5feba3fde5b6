"""Useless memories that trajectories begin with."""

import dataclasses

import jax
import numpy as np
import pytest

from memagent_jax.agent import memory_rules
from memagent_jax.rl import distractor_memories
from memagent_jax.rl.stages import Stage
from memagent_jax.structs import EOS, Tokens
from tests import tiny_runs


def contains(ids, piece):
  n = len(piece)
  return any(ids[i : i + n] == piece for i in range(len(ids) - n + 1))


def test_a_share_of_documents_begins_with_tokens_of_their_own(tiny_tokenizer):
  batch = tiny_runs.batch(tiny_tokenizer, chunks=3, rows=64)
  agent = tiny_runs.agent(tiny_runs.model(tiny_tokenizer))
  first = memory_rules.empty_memory(agent, 64)
  found = distractor_memories.replace_some(
    tiny_tokenizer, first, batch, 0.5, seed=2
  )
  same_B = (found.ids_NxW == np.asarray(first.ids_NxW)).all(axis=1)
  assert 16 <= same_B.sum() <= 48
  lengths = set()
  for b in np.flatnonzero(~same_B):
    length = found.length_N[b]
    assert 1 <= length <= agent.memory.max_tokens
    lengths.add(int(length))
    known = set(batch.documents.chunk.ids_NxW[:, b].ravel().tolist())
    known |= set(batch.documents.question.ids_NxW[b].tolist())
    assert set(found.ids_NxW[b, :length].tolist()) <= known
  assert len(lengths) > 3
  again = distractor_memories.replace_some(
    tiny_tokenizer, first, batch, 0.5, seed=2
  )
  np.testing.assert_array_equal(again.ids_NxW, found.ids_NxW)
  none = distractor_memories.replace_some(
    tiny_tokenizer, first, batch, 0.0, seed=2
  )
  np.testing.assert_array_equal(none.ids_NxW, first.ids_NxW)
  other = distractor_memories.replace_some(
    tiny_tokenizer, first, batch, 0.5, seed=3
  )
  assert (other.ids_NxW != found.ids_NxW).any()


@pytest.mark.slow
def test_all_rollouts_of_a_document_and_their_rows_begin_alike(tiny_tokenizer):
  model = tiny_runs.model(tiny_tokenizer)
  source = tiny_runs.rollouts(
    model, stages=[Stage(distractor_memory_share=1.0)]
  )
  batch, found = source.sample(model.params)
  first = jax.tree.map(
    lambda x: np.asarray(x).reshape(len(batch.ids), 3, *x.shape[1:]),
    found.first.memory,
  )
  assert (first.ids_NxW == first.ids_NxW[:, :1]).all()
  assert len(set(map(tuple, first.ids_NxW[:, 0].tolist()))) > 1
  # The first turn read it: its training prompt contains it.
  verdicts = source.judge(batch, found)
  rows = source.sequences(found, source.scores(found, verdicts))
  for n in range(len(batch.ids) * 3):
    memory = found.first.memory
    piece = memory.ids_NxW[n, : memory.length_N[n]].tolist()
    prompt = rows.turns.ids_NxS[n, : rows.turns.prompt_length_N[n]].tolist()
    assert contains(prompt, piece)
  assert (found.answer.finish_N >= EOS).all()


def test_memories_begin_as_what_leads_up_to_an_answer_and_go_on_otherwise(
  tiny_tokenizer,
):
  batch = tiny_runs.batch(tiny_tokenizer, chunks=3, rows=64)
  # Every document states it: three words, then an answer.
  fact = tiny_tokenizer.encode(' so it is 77. ')
  for b in range(64):
    batch.documents.chunk.ids_NxW[1, b, : len(fact)] = fact
  batch = dataclasses.replace(batch, answers=(('77',),) * 64)
  first = memory_rules.empty_memory(
    tiny_runs.agent(tiny_runs.model(tiny_tokenizer)), 64
  )
  found = distractor_memories.replace_some(
    tiny_tokenizer, first, batch, 1.0, seed=2
  )
  memories = [
    tiny_tokenizer.decode(ids[:length].tolist())
    for ids, length in zip(found.ids_NxW, found.length_N, strict=True)
  ]
  for lead in (' is', ' it is', ' so it'):
    assert 2 <= sum(memory.startswith(lead) for memory in memories) <= 16
  assert not any(memory.startswith(' is 77') for memory in memories)


def test_half_are_loops_of_a_few_tokens(tiny_tokenizer):
  batch = tiny_runs.batch(tiny_tokenizer, chunks=3, rows=64)
  wide = Tokens(np.zeros((64, 32), np.int32), np.ones((64,), np.int32))
  found = distractor_memories.replace_some(
    tiny_tokenizer, wide, batch, 1.0, seed=2
  )
  memories = [
    ids[:length].tolist()
    for ids, length in zip(found.ids_NxW, found.length_N, strict=True)
    if length >= 20
  ]

  def is_loop(ids):
    """Whether its last few tokens repeat those before them."""
    return any(ids[-k:] == ids[-2 * k : -k] for k in range(1, 9))

  assert len(memories) >= 16
  assert 0.5 <= np.mean([is_loop(ids) for ids in memories]) <= 0.85


@pytest.mark.slow
def test_shares_hold_from_their_steps_on(tiny_tokenizer):
  model = tiny_runs.model(tiny_tokenizer)
  stages = [Stage(2), Stage(4, distractor_memory_share=1.0), Stage()]
  source = tiny_runs.rollouts(model, stages=stages)
  foreign = []
  for step in range(5):
    _, found = source.sample(model.params, step)
    usual = memory_rules.empty_memory(source.agent, 1)
    foreign.append(
      not (found.first.memory.ids_NxW == usual.ids_NxW).all(axis=1).any()
    )
  assert foreign == [False, False, True, True, False]
