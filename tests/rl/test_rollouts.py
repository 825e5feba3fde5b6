"""Rollouts as training data: rows, weights and advantages, batch by batch."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from memagent_jax.agent.engine import Lockstep
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.stages import Stage
from memagent_jax.structs import EOS, LENGTH, SKIPPED
from memagent_jax.train import update
from memagent_jax.train.train_state import OptimizerConfig, init_state
from tests import tiny_runs

# All lengths occur in the first batch, in another order.
RAGGED = (1, 3, 2, 4)
ALIKE, VARIED = [1, 1, 1], [1, 0, 0]


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def rows_of(mini_batch):
  """The rows of a mini-batch, one by one, of all widths."""
  for batch in mini_batch:
    for i in range(int(batch.count)):
      for j in range(batch.sequences.weight_N.shape[1]):
        row = jax.tree.map(
          lambda x, i=i, j=j: np.asarray(x[i, j]), batch.sequences
        )
        if row.turns.response_length_N:
          yield row


def all_rows(experience):
  return [row for batch in experience.mini_batches for row in rows_of(batch)]


def sampled_turns(found):
  """(recorded log-probs) -> (trajectory, turn, ids) of every sampled turn.

  The log-probs identify a turn; the answer is the last turn.
  """
  turns = {}
  responses = [
    *(
      jax.tree.map(lambda x, c=c: x[c], found.turns.response)
      for c in range(len(found.turns.response.length_N))
    ),
    found.answer,
  ]
  for t, response in enumerate(responses):
    for n, length in enumerate(response.length_N):
      if response.finish_N[n] != SKIPPED:
        key = response.logprob_NxR[n, :length].tobytes()
        turns[key] = (n, t, response.ids_NxR[n, :length].tolist())
  live = sum((r.finish_N != SKIPPED).sum() for r in responses)
  assert len(turns) == live, 'two turns alike; take another seed'
  return turns


def key_of(row):
  return row.sampler_logprob_NxR[: row.turns.response_length_N].tobytes()


def with_finish(found, memory=None, answer=None):
  """The trajectories with other finish reasons."""
  response = found.turns.response
  if memory is not None:
    finish = np.array(memory)
    response = response.replace(
      finish_N=finish,
      length_N=np.where(finish == SKIPPED, 0, response.length_N),
    )
  last = found.answer
  if answer is not None:
    last = last.replace(finish_N=np.array(answer))
  return dataclasses.replace(
    found, turns=found.turns.replace(response=response), answer=last
  )


@dataclasses.dataclass(frozen=True)
class Refinished:
  """An engine that changes the finish reasons of its trajectories."""

  memory: Any = None
  answer: Any = None

  def sample(self, *args, **kwargs):
    found = Lockstep().sample(*args, **kwargs)
    return with_finish(found, self.memory, self.answer)


# --- Advantages ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('second_memory', 'expected'),
  [
    # Three turns with reward 1, one with reward 0. A mean over turns, instead of
    # trajectories, would give .25 .25 .25 -.75.
    ((SKIPPED, SKIPPED), [-0.5, 0.5, 0.5, 0.5]),
    # The turns of one trajectory change no advantage of the other.
    ((EOS, SKIPPED), [-0.5, -0.5, 0.5, 0.5, 0.5]),
    ((EOS, LENGTH), [-0.5, -0.5, -0.5, 0.5, 0.5, 0.5]),
  ],
)
def test_advantages_are_of_trajectories(model, second_memory, expected):
  finish_CxG = [[EOS, second_memory[0]], [LENGTH, second_memory[1]]]
  source = tiny_runs.rollouts(
    model,
    documents_per_step=6,
    rollouts=2,
    engine=Refinished(memory=np.tile(finish_CxG, 6)),
    reward=tiny_runs.scripted_reward([[1, 0]] * 6),
  )
  rows = all_rows(source.next(0, model.params))
  assert sorted(float(row.advantage_N) for row in rows) == sorted(expected * 6)
  assert {float(row.weight_N) for row in rows} == {1.0}


def test_every_turn_has_its_trajectory_s_advantage_on_its_own_tokens(model):
  """Ragged turns of ragged documents; the ids are the sampled ones."""
  reward_BxG = np.asarray([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0.5, 0, 1]])
  reward = tiny_runs.scripted_reward(reward_BxG)
  engine = tiny_runs.Watched()
  seen = engine.seen
  source = tiny_runs.rollouts(
    model, reward=reward, engine=engine, chunks=RAGGED
  )
  experience = source.next(0, model.params)
  turns = sampled_turns(seen[0])
  advantage_N = (reward_BxG - reward_BxG.mean(axis=1, keepdims=True)).ravel()
  lengths = set()
  for row in all_rows(experience):
    n, _, ids = turns.pop(key_of(row))
    prompt, length = (
      int(row.turns.prompt_length_N),
      int(row.turns.response_length_N),
    )
    mask_R = np.arange(6) < length
    np.testing.assert_allclose(
      (row.advantage_N * mask_R).sum(), advantage_N[n] * len(ids), rtol=1e-6
    )
    assert row.turns.ids_NxS[prompt : prompt + length].tolist() == ids
    lengths.add(length)
  assert not turns
  assert len(lengths) > 3
  # 1 + 3 + 2 + 4 memory turns and 4 answers, three times.
  metrics = experience.metrics
  assert (
    metrics['sequences/generated'] == metrics['sequences/trained'] == 3 * 14
  )


def test_only_the_answer_learns_in_the_control(model):
  reward = tiny_runs.scripted_reward([VARIED] * 4)
  engine = tiny_runs.Watched()
  seen = engine.seen
  source = tiny_runs.rollouts(
    model, reward=reward, engine=engine, chunks=RAGGED, learn_memory_turns=False
  )
  experience = source.next(0, model.params)
  turns = sampled_turns(seen[0])
  learned = [turns[key_of(row)] for row in all_rows(experience)]
  assert sorted(n for n, _, _ in learned) == list(range(12))
  assert {t for _, t, _ in learned} == {4}
  assert experience.metrics['sequences/trained'] == 12
  assert experience.metrics['sequences/generated'] == 42


# --- Truncation ---------------------------------------------------------------


def test_truncation_is_counted_filtered_and_punished(model):
  """Rollout 0 truncates a memory, rollout 1 its answer; all are right."""
  engine = tiny_runs.Watched(
    engine=Refinished(
      memory=np.tile([[LENGTH, EOS, EOS], [EOS, EOS, EOS]], 4),
      answer=np.tile([EOS, LENGTH, EOS], 4),
    )
  )
  seen = engine.seen
  reward = tiny_runs.scripted_reward([ALIKE] * 4)

  def rows(**changes):
    config = dataclasses.replace(tiny_runs.GRPO, **changes)
    experience = tiny_runs.rollouts(
      model, reward=reward, engine=engine, grpo=config
    ).next(0, model.params)
    assert experience.metrics['truncated/memory'] == pytest.approx(1 / 6)
    assert experience.metrics['truncated/answer'] == pytest.approx(1 / 3)
    turns = sampled_turns(seen[-1])
    return [(turns[key_of(row)][0], row) for row in all_rows(experience)]

  assert {n % 3 for n, _ in rows()} == {0, 1, 2}
  assert {n % 3 for n, _ in rows(overlong_filter='answer')} == {0, 2}
  assert {n % 3 for n, _ in rows(overlong_filter='any_turn')} == {2}
  # The penalty follows the length: -length / 5 if the buffer equals the cap.
  lengths_BxG = seen[-1].answer.length_N.reshape(4, 3)
  assert len(set(lengths_BxG[0].tolist())) > 1
  expected = (lengths_BxG.mean(axis=1, keepdims=True) - lengths_BxG) / 5
  for n, row in rows(overlong_buffer_tokens=5):
    np.testing.assert_allclose(row.advantage_N, expected.flat[n], atol=1e-6)
  # The penalty of memories follows the longest one of a trajectory.
  cap = tiny_runs.READING.memory_tokens
  length_CxN = seen[-1].turns.response.length_N
  lengths_BxG = length_CxN.max(axis=0).reshape(4, 3)
  assert (length_CxN[0] != length_CxN[1]).any()
  assert len(set(lengths_BxG[0].tolist())) > 1
  expected = (lengths_BxG.mean(axis=1, keepdims=True) - lengths_BxG) / cap
  for n, row in rows(overlong_memory_buffer_tokens=cap):
    np.testing.assert_allclose(row.advantage_N, expected.flat[n], atol=1e-6)


def test_saturated_memories_are_a_warning_of_the_step(model):
  """Both memory turns of every trajectory are truncated at their cap."""
  for finish, expected in ((LENGTH, 1), (EOS, 0)):
    engine = Refinished(memory=np.full((2, 12), finish))
    experience = tiny_runs.rollouts(model, engine=engine).next(0, model.params)
    alarms = [w for w in experience.warnings if 'cut at their cap' in w]
    assert len(alarms) == expected
    assert experience.metrics['memory/saturated'] == expected


# --- Steps and groups ---------------------------------------------------------


def test_equal_turns_are_one_row_of_their_weight(model):
  reward = tiny_runs.scripted_reward([VARIED] * 4)
  cold = dataclasses.replace(tiny_runs.READING, temperature=1e-3)
  experience = tiny_runs.rollouts(model, reward=reward, reading=cold).next(
    0, model.params
  )
  assert experience.metrics['sequences/trained'] == 4 * 3 * 3
  # One row for the right rollout of a document, one for both wrong ones.
  rows = all_rows(experience)
  assert experience.metrics['sequences/distinct'] == len(rows) == 4 * 2 * 3
  assert sorted(float(row.weight_N) for row in rows) == [1.0] * 12 + [2.0] * 12
  for row in rows:
    expected = 2 / 3 if row.weight_N == 1 else -1 / 3
    assert row.advantage_N == pytest.approx(expected)
  # Equal turns are computed once, and counted once.
  assert experience.trained_tokens == sum(
    int(row.turns.prompt_length_N + row.turns.response_length_N) for row in rows
  )


@pytest.mark.parametrize('chunks', [1, 8])
@pytest.mark.slow
def test_steps_do_not_depend_on_chunks(model, chunks):
  reward = tiny_runs.scripted_reward([VARIED] * 4)
  engine = tiny_runs.Watched()
  seen = engine.seen
  source = tiny_runs.rollouts(
    model, reward=reward, engine=engine, chunks=(chunks,), mini_batches=2
  )
  experience = source.next(0, model.params)
  assert len(experience.mini_batches) == 2
  assert experience.metrics['sequences/generated'] == 12 * (chunks + 1)
  turns = sampled_turns(seen[0])
  learned = [
    [turns[key_of(row)][0] for row in rows_of(batch)]
    for batch in experience.mini_batches
  ]
  # Whole groups: two of the four documents each, with all of their turns.
  documents = [{n // 3 for n in part} for part in learned]
  assert len(documents[0]) == len(documents[1]) == 2
  assert not documents[0] & documents[1]
  assert [len(part) for part in learned] == [6 * (chunks + 1)] * 2


def test_constant_groups_are_replaced_within_the_budget(model):
  config = GrpoConfig(kl_coefficient=0, dynamic_sampling=True, max_refills=3)
  reward = tiny_runs.scripted_reward(
    [ALIKE, VARIED, [0, 0, 0], ALIKE],
    [VARIED, ALIKE, VARIED, ALIKE],
    [VARIED] * 4,
  )
  engine = tiny_runs.Watched()
  seen = engine.seen
  source = tiny_runs.rollouts(model, reward=reward, engine=engine, grpo=config)
  experience = source.next(0, model.params)
  metrics = experience.metrics
  assert len(seen) == 3
  names = ('trained', 'surplus', 'missing', 'refills')
  # Trained: 1 + 2 from the first two batches, and one of the third's four.
  assert [metrics[f'groups/{name}'] for name in names] == [4, 3, 0, 2]
  assert metrics['groups/degenerate'] == pytest.approx((3 + 2 + 0) / 12)
  # Two chunks and the answer, three times, of 12 documents.
  assert metrics['sequences/generated'] == 9 * 12
  assert metrics['sequences/trained'] == len(all_rows(experience)) == 9 * 4
  assert all(row.advantage_N != 0 for row in all_rows(experience))


def test_mini_batches_share_out_whole_groups(model):
  """Four groups over two mini-batches; then none, yet there are still two."""
  _, found = tiny_runs.rollouts(model).sample(model.params)
  turns = sampled_turns(found)
  reward = tiny_runs.scripted_reward([VARIED] * 4, [ALIKE] * 4)
  config = GrpoConfig(kl_coefficient=0, dynamic_sampling=True)
  source = tiny_runs.rollouts(
    model, reward=reward, engine=Replayed(found), grpo=config, mini_batches=2
  )
  learned = [
    [turns[key_of(row)][0] for row in rows_of(batch)]
    for batch in source.next(0, {}).mini_batches
  ]
  documents = [sorted({n // 3 for n in part}) for part in learned]
  assert documents == [[0, 2], [1, 3]]
  # Two memory turns and the answer of each of three rollouts.
  assert [len(part) for part in learned] == [2 * 3 * 3] * 2
  empty = source.next(1, {})
  assert len(empty.mini_batches) == 2 and all_rows(empty) == []


@dataclasses.dataclass(frozen=True)
class Counted:
  """An engine that gives the same trajectories, at most `most` times."""

  trajectories: Any
  most: int
  calls: list = dataclasses.field(default_factory=list, compare=False)

  def sample(self, *args, **kwargs):
    assert len(self.calls) < self.most, 'sampled beyond the budget'
    self.calls.append(0)
    return self.trajectories


@pytest.mark.parametrize('refills', [0, 2])
def test_refilling_ends_with_its_budget(model, refills):
  _, found = tiny_runs.rollouts(model).sample(model.params)
  config = GrpoConfig(
    kl_coefficient=0, dynamic_sampling=True, max_refills=refills
  )
  engine = Counted(found, 1 + refills)
  reward = tiny_runs.scripted_reward([VARIED, *[ALIKE] * 3], [ALIKE] * 4)
  source = tiny_runs.rollouts(model, reward=reward, engine=engine, grpo=config)
  metrics = source.next(0, {}).metrics
  assert len(engine.calls) == 1 + refills
  assert metrics['groups/refills'] == refills
  assert metrics['groups/trained'] == 1 and metrics['groups/missing'] == 3


@pytest.mark.slow
def test_a_budget_that_runs_out_ends_nothing(model):
  config = GrpoConfig(kl_coefficient=0, dynamic_sampling=True, max_refills=1)
  reward = tiny_runs.scripted_reward([VARIED, *[ALIKE] * 3], [ALIKE] * 4)
  engine = tiny_runs.Watched()
  seen = engine.seen
  source = tiny_runs.rollouts(
    model, reward=reward, engine=engine, grpo=config, mini_batches=2
  )
  # One group for two mini-batches; then none.
  for step, trained in enumerate((1, 0)):
    experience = source.next(step, model.params)
    assert experience.metrics['groups/trained'] == trained
    assert experience.metrics['groups/missing'] == 4 - trained
    assert experience.metrics['groups/refills'] == 1
    assert len(experience.mini_batches) == 2
    assert len(all_rows(experience)) == 9 * trained
  assert len(seen) == 4
  params = jax.tree.map(lambda x: x.copy(), model.params)
  optimizer = OptimizerConfig(learning_rate=1.0, warmup_steps=0)
  state = init_state(optimizer, params)
  for batches in experience.mini_batches:
    state, metrics = update.update(
      experience.objective, optimizer, state, batches
    )
    assert float(metrics['loss'].mean()) == 0.0
  jax.tree.map(np.testing.assert_array_equal, state.params, model.params)
  assert (int(state.step), int(state.skipped)) == (0, 0)


# --- Log-probs ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Replayed:
  """An engine without a model, which gives trajectories sampled before."""

  trajectories: Any

  def sample(self, *args, **kwargs):
    return self.trajectories


def test_no_forward_pass_is_made_for_nothing(model):
  _, found = tiny_runs.rollouts(model).sample(model.params)
  source = tiny_runs.rollouts(model, engine=Replayed(found))
  # These params could not produce any.
  for row in all_rows(source.next(0, {})):
    assert row.reference_logprob_NxR is None
    np.testing.assert_array_equal(row.old_logprob_NxR, row.sampler_logprob_NxR)


def test_log_probs_of_reference_and_trainer(model):
  """The reference keeps the initial params; the trainer uses the current ones."""
  config = GrpoConfig(kl_coefficient=0.1, old_log_probs='trainer')
  source = tiny_runs.rollouts(model, grpo=config)
  today = jax.tree.map(lambda x: 1.1 * x, model.params)
  experience = source.next(0, today)
  rows = all_rows(experience)
  worst = 0.0
  for row in rows:
    real = slice(0, int(row.turns.response_length_N))
    gap = row.old_logprob_NxR[real] - row.sampler_logprob_NxR[real]
    assert np.abs(gap).max() < 1e-4
    gap = row.reference_logprob_NxR[real] - row.sampler_logprob_NxR[real]
    worst = max(worst, np.abs(gap).max())
  assert worst > 1e-2
  # By the initial model only.
  for batch in experience.mini_batches[0]:
    expected = update.log_probs(model.config, 1.0, model.params, batch)
    np.testing.assert_array_equal(
      batch.sequences.reference_logprob_NxR, expected
    )


def test_reference_and_trainer_have_the_temperature_of_the_sampler(model):
  """At step 0 all three are one policy; at temperature 1 they would differ."""
  reading = dataclasses.replace(tiny_runs.READING, temperature=0.7)
  config = GrpoConfig(kl_coefficient=0.1, old_log_probs='trainer')
  source = tiny_runs.rollouts(
    model, reading=reading, grpo=config, width_shares=(1.0,)
  )
  experience = source.next(0, model.params)
  rows = all_rows(experience)
  for row in rows:
    real = slice(0, int(row.turns.response_length_N))
    for found in (row.reference_logprob_NxR, row.old_logprob_NxR):
      gap = found[real] - row.sampler_logprob_NxR[real]
      assert np.abs(gap).max() < 1e-4
  (batch,) = experience.mini_batches[0]
  other = np.asarray(update.log_probs(model.config, 1.0, model.params, batch))
  assert np.abs(other - batch.sequences.reference_logprob_NxR).max() > 0.01
  assert experience.metrics['temperature'] == 0.7


@pytest.mark.slow
def test_the_temperature_of_a_stage_is_that_of_sampler_and_trainer(model):
  source = tiny_runs.rollouts(
    model,
    grpo=dataclasses.replace(tiny_runs.GRPO, old_log_probs='trainer'),
    stages=[Stage(1), Stage(3, temperature=3.0), Stage(temperature=0.5)],
  )
  for step, temperature in ((0, 1.0), (1, 3.0), (2, 3.0), (3, 0.5)):
    experience = source.next(step, model.params)
    assert experience.metrics['temperature'] == temperature
    assert experience.objective.temperature == temperature
    # At one temperature, sampler and trainer agree; at two they would not.
    for row in all_rows(experience):
      real = slice(0, int(row.turns.response_length_N))
      gap = row.old_logprob_NxR[real] - row.sampler_logprob_NxR[real]
      assert np.abs(gap).max() < 1e-4


# --- Randomness and resuming --------------------------------------------------


def test_a_restored_source_goes_on_bit_for_bit(model):
  def source():
    return tiny_runs.rollouts(model, chunks=RAGGED, count=6)

  straight = source()
  expected = [straight.next(step, model.params) for step in range(3)]
  stopped = source()
  stopped.next(0, model.params)
  state = json.loads(json.dumps(stopped.state()))
  resumed = source()
  resumed.restore(state)
  for step in (1, 2):
    got = resumed.next(step, model.params)
    jax.tree.map(
      np.testing.assert_array_equal,
      got.mini_batches,
      expected[step].mini_batches,
    )
    assert got.metrics == expected[step].metrics
  assert resumed.state() == straight.state()


def test_documents_of_a_stage_come_in_it_and_are_read_on_after_a_restore(
  model,
):
  def source():
    stages = [
      Stage(2),
      Stage(3, documents=tiny_runs.documents((4,), 8)),
      Stage(documents=tiny_runs.documents((1,), 4)),
    ]
    return tiny_runs.rollouts(model, count=16, stages=stages)

  straight = source()
  expected = [straight.sample(model.params, step) for step in range(4)]
  slots = [batch.documents.chunk.length_N.shape[0] for batch, _ in expected]
  assert slots == [2, 2, 4, 1]
  stopped = source()
  for step in range(2):
    stopped.sample(model.params, step)
  resumed = source()
  resumed.restore(json.loads(json.dumps(stopped.state())))
  for step in (2, 3):
    batch, found = resumed.sample(model.params, step)
    assert batch.ids == expected[step][0].ids
    jax.tree.map(
      np.testing.assert_array_equal, found.answer, expected[step][1].answer
    )
  assert resumed.state() == straight.state()


@pytest.mark.parametrize('count', [4, 3])
def test_a_document_is_sampled_anew_in_every_epoch(model, count):
  """Even if an epoch ends within a batch, which then has a document twice."""
  engine = tiny_runs.Watched()
  seen = engine.seen
  source = tiny_runs.rollouts(model, engine=engine, count=count)
  for step in range(3):
    source.next(step, model.params)
  turns = [turn for found in seen for turn in sampled_turns(found)]
  assert len(set(turns)) == len(turns) == 3 * 36


@dataclasses.dataclass(frozen=True)
class FirstMemories:
  """An engine without a model, which keeps the first memories it is given."""

  seen: list = dataclasses.field(default_factory=list, compare=False)

  def sample(self, *args, first_memory, **kwargs):
    self.seen.append(first_memory)


def test_every_reading_begins_with_the_templates_memory_by_default(model):
  """All 64 documents of a step; others begin with a distractor on request."""
  empty = tiny_runs.agent(model).prompts.empty_memory
  for stages, expected in (
    ({}, 64),
    ({'stages': [Stage(distractor_memory_share=1.0)]}, 0),
  ):
    engine = FirstMemories()
    source = tiny_runs.rollouts(
      model, engine=engine, documents_per_step=64, **stages
    )
    source.sample(model.params)
    (first,) = engine.seen
    usual = sum(
      np.asarray(ids)[:length].tolist() == [*empty]
      for ids, length in zip(first.ids_NxW, first.length_N, strict=True)
    )
    assert usual == expected


# --- Metrics and refusals -----------------------------------------------------


def test_reward_and_metric_are_both_measured(model):
  """By the verifiers of the examples; here no answer is in a box."""
  metrics = tiny_runs.rollouts(model).next(0, model.params).metrics
  assert metrics['reward/mean'] == metrics['reward/metric'] == 0.0
  assert metrics['groups/degenerate'] == 1.0
  outcomes = {k: v for k, v in metrics.items() if k.startswith('outcome/')}
  assert outcomes.pop('outcome/no_box') == 1.0
  assert set(outcomes.values()) == {0.0} and len(outcomes) == 4


@pytest.mark.parametrize('dynamic', [False, True])
def test_groups_that_are_apart_by_their_length_alone(model, dynamic):
  """They have advantages; dynamic sampling only looks at the rewards."""
  reward = tiny_runs.scripted_reward([ALIKE] * 4)
  config = GrpoConfig(overlong_buffer_tokens=5, dynamic_sampling=dynamic)
  experience = tiny_runs.rollouts(model, reward=reward, grpo=config).next(
    0, model.params
  )
  dull = experience.metrics['groups/degenerate']
  assert dull == 1.0 if dynamic else dull < 1.0
  assert bool(len(all_rows(experience))) == (not dynamic)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'temperature': 0.0}, r'temperature 0.0 and top_p 1.0'),
    ({'top_p': 0.9}, r'temperature 1.0 and top_p 0.9'),
    ({'chunk_tokens': 500}, r'500 \(chunk_tokens\).* the model sees 256'),
  ],
)
def test_readings_that_cannot_be_trained_on_are_refused(
  model, changes, message
):
  reading = dataclasses.replace(tiny_runs.READING, **changes)
  with pytest.raises(ValueError, match=message):
    tiny_runs.rollouts(model, reading=reading)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mini_batches': 3}, '4 documents do not divide into 3 mini-batches'),
    ({'rollouts': 1}, 'rollouts is 1; a group needs 2 or more'),
    ({'micro_tokens': 0}, 'micro_tokens is 0'),
    ({'width_shares': (0.5, 0.9)}, r'width_shares are \(0.5, 0.9\)'),
    ({'documents_per_step': 0}, 'documents_per_step is 0'),
    ({'stages': [Stage(4), Stage(4), Stage()]}, r'end at steps \[4, 4, None\]'),
    ({'stages': [Stage(0), Stage()]}, r'end at steps \[0, None\]'),
    ({'stages': [Stage(4)]}, r'end at steps \[4\]'),
    ({'stages': [Stage(), Stage()]}, r'end at steps \[None, None\]'),
    ({'stages': []}, r'end at steps \[\]'),
    (
      {'grpo': GrpoConfig(overlong_buffer_tokens=6)},
      'overlong_buffer_tokens is 6; expected at most answer_tokens, 5',
    ),
    (
      {'grpo': GrpoConfig(overlong_memory_buffer_tokens=99)},
      'overlong_memory_buffer_tokens is 99; expected at most memory_tokens',
    ),
  ],
)
def test_settings_that_do_not_fit_are_refused(model, changes, message):
  with pytest.raises(ValueError, match=message):
    tiny_runs.rollouts(model, **changes)


@pytest.mark.parametrize(
  ('value', 'changes', 'message'),
  [
    (Stage, {'temperature': 0.0}, 'temperature 0.0; expected a number above 0'),
    (Stage, {'distractor_memory_share': 50.0}, 'is 50.0; expected 0 to 1'),
    (Lockstep, {'trajectories_at_once': -1}, 'trajectories_at_once is -1'),
    (Lockstep, {'window_chunks': 0}, 'window_chunks is 0'),
    (
      GrpoConfig,
      {'old_log_probs': 'both'},
      "'both'; choose one of sampler, trainer",
    ),
    (
      GrpoConfig,
      {'entropy_coefficient': 0.1, 'log_entropy': False},
      'entropy_coefficient is 0.1 and log_entropy is False',
    ),
    (
      GrpoConfig,
      {'importance_cap': 2.0},
      'importance_cap is 2.0 and old_log_probs is',
    ),
  ],
)
def test_a_config_checks_itself(value, changes, message):
  with pytest.raises(ValueError, match=message):
    value(**changes)


def test_parts_have_to_divide_the_trajectories(model):
  engine = Lockstep(trajectories_at_once=5)
  source = tiny_runs.rollouts(model, engine=engine)
  with pytest.raises(ValueError, match='12 trajectories do not divide into'):
    source.next(0, model.params)


def test_a_question_over_its_cap_names_the_example(model):
  reading = dataclasses.replace(tiny_runs.READING, question_tokens=5)
  source = tiny_runs.rollouts(model, reading=reading)
  with pytest.raises(
    ValueError, match=r'^example Who .* question_tokens, is 5'
  ):
    source.next(0, model.params)
