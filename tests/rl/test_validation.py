"""Measurements: the same documents every time, full batches, readable traces."""

import dataclasses
import json
import re

import pytest

from memagent_jax.rl import validation as validation_lib
from tests import tiny_runs


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def validation(model, workdir, **changes):
  arguments = {
    'documents': tiny_runs.documents((1, 3)),
    'reading': dataclasses.replace(tiny_runs.READING, temperature=0.0),
    'count': 4,
    'batch_size': 2,
    'traced': 3,
  }
  return validation_lib.Validation(model, workdir, **(arguments | changes))


@pytest.mark.slow
def test_greedy_readings_repeat_and_leave_traces(model, tmp_path):
  measure = validation(model, tmp_path)
  first = measure(model.params, 0)
  assert measure(model.params, 7) == first
  assert set(first) >= {
    'validation/reward',
    'validation/metric',
    'validation/memory/length_p50',
    'validation/memory/saturated',
  }
  paths = [tmp_path / 'traces' / f'validation_{n}.jsonl' for n in (0, 7)]
  assert paths[0].read_bytes() == paths[1].read_bytes()
  traces = [json.loads(line) for line in paths[0].read_text().splitlines()]
  # Three were requested; a batch has two.
  assert len(traces) == 2
  for trace in traces:
    number = int(re.fullmatch(r'Who (\d+)\?', trace['id'])[1])
    document = tiny_runs.document(number, (1, 3)[number % 2])
    chunks = [turn['chunk'] for turn in trace['turns']]
    assert ''.join(chunks) == document.document
    assert trace['answers'] == ['42']
    assert trace['rollout'] == 0 and trace['reward'] == trace['metric'] == 0.0
    assert all(t['finish_reason'] in ('eos', 'length') for t in trace['turns'])


@pytest.mark.slow
def test_no_traces_where_none_are_asked_for(model, tmp_path):
  validation(model, tmp_path, traced=0)(model.params, 0)
  assert not list(tmp_path.iterdir())


def test_means_are_over_all_documents(model, tmp_path):
  reward = tiny_runs.scripted_reward([[1], [0]], [[1], [1]])
  measure = validation(
    model, tmp_path, name='held_out', traced=0, reward=reward
  )
  found = measure(model.params, 0)
  assert found['held_out/reward'] == 0.75 and found['held_out/metric'] == 0.0


def test_documents_are_the_same_at_every_call(model, tmp_path):
  engine = tiny_runs.Watched()
  measure = validation(model, tmp_path, traced=0, engine=engine)
  measure(model.params, 0)
  measure(model.params, 1)
  questions = [
    found.documents.question.ids_NxW.tolist() for found in engine.seen
  ]
  assert questions[:2] == questions[2:]
  assert questions[0] != questions[1]


def test_batches_must_be_full(model, tmp_path):
  with pytest.raises(
    ValueError, match='count 3 is no multiple of batch_size 2'
  ):
    validation(model, tmp_path, count=3)


@pytest.mark.slow
def test_a_trace_is_of_its_own_trajectory(model, tiny_tokenizer):
  source = tiny_runs.rollouts(model, chunks=(1, 3, 2, 4))
  batch, found = source.sample(model.params)
  verdicts = source.judge(batch, found)
  for n in (0, 4, 11):
    trace = validation_lib.trace(
      tiny_tokenizer, source.agent, batch, found, verdicts, n
    )
    assert (trace['id'], trace['rollout']) == (batch.ids[n // 3], n % 3)
    last = len(trace['turns']) - 1
    kept = found.turns.memory.ids_NxW[last, n]
    kept = kept[: found.turns.memory.length_N[last, n]]
    assert trace['turns'][-1]['memory'] == tiny_tokenizer.decode(kept)
    assert trace['answer'] == verdicts.answers[n]
    json.dumps(trace)
