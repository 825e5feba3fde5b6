"""Readings of a batch: the same turns with any neighbours and from any caller."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts, trajectories
from memagent_jax.agent.engine import Lockstep
from memagent_jax.agent.memory_rules import Overwrite
from memagent_jax.agent.reader import Reader
from memagent_jax.agent.turns import without_control_id
from memagent_jax.data.batch import Batch
from memagent_jax.rl import turns as turns_lib
from memagent_jax.rl import validation as validation_lib
from memagent_jax.structs import EOS, LENGTH, SKIPPED, Documents, Response
from tests import tiny_runs


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


@pytest.fixture(scope='module')
def agent(model):
  return tiny_runs.agent(model)


@pytest.fixture(scope='module')
def batch(tiny_tokenizer):
  """Two documents, of one and four chunks."""
  return make_batch(tiny_tokenizer, (1, 4))


def make_batch(tokenizer, chunks) -> Batch:
  """Documents 0, 1, ... with these numbers of chunks."""
  examples = [tiny_runs.document(i, c) for i, c in enumerate(chunks)]
  width, slots = tiny_runs.READING.chunk_tokens, max(chunks)
  ids = [tokenizer.encode(e.document) for e in examples]
  chunk = [
    tokens_lib.pad_rows([row[c * width :][:width] for row in ids], width)
    for c in range(slots)
  ]
  questions = [tokenizer.encode(e.question) for e in examples]
  return Batch(
    documents=Documents(
      tokens_lib.pad_rows(questions, tiny_runs.READING.question_tokens),
      jax.tree.map(lambda *x: jnp.stack(x), *chunk),
    ),
    ids=tuple(e.id for e in examples),
    tasks=tuple(e.task for e in examples),
    answers=tuple(e.answers for e in examples),
    rewards=tuple(e.reward for e in examples),
    metrics=tuple(e.metric for e in examples),
    readings=(0,) * len(examples),
  )


def part(batch: Batch, order) -> Batch:
  """The documents at these positions."""
  order = list(order)
  named = {
    name: tuple(getattr(batch, name)[b] for b in order)
    for name in ('ids', 'tasks', 'answers', 'rewards', 'metrics', 'readings')
  }
  documents = Documents(
    jax.tree.map(lambda x: x[jnp.asarray(order)], batch.documents.question),
    jax.tree.map(lambda x: x[:, jnp.asarray(order)], batch.documents.chunk),
  )
  return Batch(documents=documents, **named)


def ids_of(found, n):
  """Sampled ids of every turn of trajectory n; [] for skipped turns."""
  response = found.turns.response
  turns = [
    response.ids_NxR[c, n, : response.length_N[c, n]].tolist()
    for c in range(len(response.length_N))
  ]
  answer = found.answer
  return [*turns, answer.ids_NxR[n, : answer.length_N[n]].tolist()]


@pytest.fixture(scope='module')
def whole(agent, model, batch):
  return Lockstep().sample(agent, model.params, batch, rollouts=3, seed=2)


def test_turns_are_those_of_the_documents(whole, tiny_tokenizer):
  """Trajectory b * G + g reads all chunks of document b, and no others."""
  read_CxN = whole.turns.response.finish_N != SKIPPED
  assert read_CxN.sum(axis=0).tolist() == [1, 1, 1, 4, 4, 4]
  assert whole.rollouts == 3
  questions = [
    tiny_tokenizer.decode(ids[:length].tolist())
    for ids, length in zip(
      whole.documents.question.ids_NxW,
      whole.documents.question.length_N,
      strict=True,
    )
  ]
  assert questions == ['Who 0?'] * 3 + ['Who 1?'] * 3
  assert len({tuple(map(tuple, ids_of(whole, n))) for n in range(6)}) == 6


@pytest.mark.slow
def test_parts_change_nothing(agent, model, batch, whole):
  again = Lockstep(trajectories_at_once=2).sample(
    agent, model.params, batch, rollouts=3, seed=2
  )
  assert [ids_of(again, n) for n in range(6)] == [
    ids_of(whole, n) for n in range(6)
  ]
  assert jax.tree.map(np.shape, (again.documents, again.turns)) == jax.tree.map(
    np.shape, (whole.documents, whole.turns)
  )
  with pytest.raises(ValueError, match=r'6 trajectories do not divide.* 4'):
    Lockstep(trajectories_at_once=4).sample(
      agent, model.params, batch, rollouts=3, seed=2
    )


@pytest.mark.slow
def test_windows_change_nothing(agent, model, batch, whole):
  # Three slots, then one.
  again = Lockstep(window_chunks=3).sample(
    agent, model.params, batch, rollouts=3, seed=2
  )
  assert [ids_of(again, n) for n in range(6)] == [
    ids_of(whole, n) for n in range(6)
  ]


@pytest.mark.slow
def test_samples_follow_from_seed_example_and_rollout(
  agent, model, batch, whole
):
  """And the reading: not from a row's place, nor from its neighbours."""
  expected = [ids_of(whole, n) for n in range(6)]
  swapped = Lockstep().sample(
    agent, model.params, part(batch, (1, 0)), rollouts=3, seed=2
  )
  assert [ids_of(swapped, n) for n in range(6)] == expected[3:] + expected[:3]
  # The second document, read for the second time: like its rollouts 3, 4 and 5.
  again = dataclasses.replace(batch, readings=(0, 1))
  later = Lockstep().sample(agent, model.params, again, rollouts=3, seed=2)
  more = Lockstep().sample(agent, model.params, batch, rollouts=6, seed=2)
  assert [ids_of(later, n) for n in range(6)] == expected[:3] + [
    ids_of(more, n) for n in (9, 10, 11)
  ]
  other = Lockstep().sample(agent, model.params, batch, rollouts=3, seed=5)
  assert all(a != b for a, b in zip(ids_of(other, 3), expected[3], strict=True))


# --- Verdicts -----------------------------------------------------------------


def answers_of(tokenizer, texts, finish) -> Response:
  """Answers with these texts; finished ones end with their control id."""
  rows = [
    [*tokenizer.encode(text), *([tokenizer.eos_ids[0]] * (f == EOS))]
    for text, f in zip(texts, finish, strict=True)
  ]
  tokens = tokens_lib.pad_rows(rows, 30)
  return Response(
    ids_NxR=np.asarray(tokens.ids_NxW),
    logprob_NxR=np.zeros((len(rows), 30), np.float32),
    length_N=np.asarray(tokens.length_N),
    finish_N=np.asarray(finish, np.int32),
  )


def test_the_control_id_of_an_answer_is_not_of_its_text(tiny_tokenizer):
  response = answers_of(tiny_tokenizer, ['a', 'a'], [EOS, LENGTH])
  assert response.length_N.tolist() == [2, 1]
  text = without_control_id(response)
  assert tokens_lib.lists(text) == [tiny_tokenizer.encode('a')] * 2


def test_verdicts_are_of_the_documents_own_scorers(
  whole, batch, tiny_tokenizer
):
  texts = [
    *('\\boxed{42}', 'It is 42.', '\\boxed{41}'),
    *('\\boxed{}', '42', '\\boxed{42'),
  ]
  finish = [EOS, EOS, LENGTH, EOS, LENGTH, LENGTH]
  found = dataclasses.replace(
    whole, answer=answers_of(tiny_tokenizer, texts, finish)
  )
  batch = dataclasses.replace(
    batch,
    answers=(('42', 'forty-two'), ('42',)),
    rewards=('boxed_em', 'em'),
    metrics=('sub_em_strict', 'boxed_em'),
  )
  verdicts = trajectories.judge(tiny_tokenizer, batch, found)
  # The second document's reward also counts the unboxed answer.
  assert verdicts.reward_BxG.tolist() == [[1, 0, 0], [0, 1, 0]]
  assert verdicts.metric_BxG.tolist() == [[1, 1, 0], [0, 0, 0]]
  assert list(verdicts.answers) == texts
  assert sum(verdicts.outcomes.values()) == 6
  assert verdicts.outcomes['correct'] == 2
  assert verdicts.outcomes['no_box'] == 1


# --- One prompt, and ids from turn to turn ------------------------------------


def prompts_of(tokenizer):
  return prompts.compile_template(tiny_runs.TEMPLATE, tokenizer)


@pytest.mark.slow
def test_memory_moves_as_ids_that_encoding_would_change(
  agent, model, batch, tiny_tokenizer
):
  """The model writes `h`, `e`, `l`, `l`, which the tokenizer would merge."""
  letters = [tiny_tokenizer.encode(c)[0] for c in 'hel']
  embedding = np.array(model.params['embedding'])
  others = np.setdiff1d(np.arange(len(embedding)), letters)
  # Tied embeddings: these are also rows of the head.
  embedding[others] *= 0.1
  embedding[letters] *= 3.0
  params = {**model.params, 'embedding': jnp.asarray(embedding)}
  found = Lockstep().sample(agent, params, batch, rollouts=3, seed=2)
  rows, _ = turns_lib.trajectory_sequences(agent, found)
  changed = 0
  for n in range(3, 6):
    sampled = ids_of(found, n)
    for t in range(4):
      finish = found.turns.response.finish_N[t, n]
      memory = sampled[t][: len(sampled[t]) - (finish == EOS)]
      text = tiny_tokenizer.decode(memory)
      changed += tiny_tokenizer.encode(text) != memory
      # The next turn's prompt; after the last memory turn, the answer's.
      row = (t + 1) * 6 + n
      prompt = np.asarray(rows.ids_NxS)[row][: int(rows.prompt_length_N[row])]
      start = len(prompts_of(tiny_tokenizer).memory_turn[0])
      start += int(found.documents.question.length_N[n])
      joint = prompts_of(tiny_tokenizer).memory_turn[2]
      if t == 3:
        joint = prompts_of(tiny_tokenizer).answer_turn[2]
      start += len(joint)
      assert prompt[start : start + len(memory)].tolist() == memory
  assert changed > 4


@dataclasses.dataclass(frozen=True)
class Recording(Overwrite):
  """Overwrites, and keeps the parts of every memory turn's prompt."""

  seen: list = dataclasses.field(default_factory=list, compare=False)

  def update(self, agent, params, turn):
    jax.debug.callback(
      self._record, turn.question, turn.before.memory, turn.chunk
    )
    return super().update(agent, params, turn)

  def _record(self, *fields):
    for n, length in enumerate(fields[-1].length_N):
      if length:
        self.seen.append(
          tuple(tuple(f.ids_NxW[n, : f.length_N[n]].tolist()) for f in fields)
        )

  def take(self):
    """The parts seen since the last call: (question, memory, chunk) in ids."""
    jax.effects_barrier()
    taken = sorted(self.seen)
    self.seen.clear()
    return taken


def by_hand(tokenizer, turns, document):
  """Prompts of a reading, joined on the host from the memories' ids."""
  rows = [[*prompts_of(tokenizer).empty_memory]]
  rows += [turn.memory_ids for turn in turns]
  fields = {'question': tokenizer.encode(document.question)}
  made = []
  for memory, turn in zip(rows, [*turns, None], strict=True):
    fields['memory'], pieces = memory, prompts_of(tokenizer).answer_turn
    if turn is not None:
      fields['chunk'] = tokenizer.encode(turn.chunk)
      pieces = prompts_of(tokenizer).memory_turn
    made.append(
      tuple(i for p in pieces for i in (fields[p] if isinstance(p, str) else p))
    )
  return made


def without_end(response, n):
  length = response.length_N[n] - (response.finish_N[n] == EOS)
  return response.ids_NxR[n, :length].tolist()


@pytest.mark.slow
def test_reader_training_and_evaluation_see_the_same_ids(
  model, tiny_tokenizer, tmp_path
):
  """A document's id is its question, so all three draw the same samples."""
  document = tiny_runs.document(0, 3)
  assert document.id == document.question
  rule = Recording()
  reading = dataclasses.replace(tiny_runs.READING, rule=rule)
  reader = Reader(model, document.question, reading)
  turns = reader.feed(document.document) + reader.finish()
  (answer,) = reader.answer()
  expected = by_hand(tiny_tokenizer, turns, document)
  assert len(expected) == 4
  seen = rule.take()
  # The parts of a turn's prompt: question, memory before, chunk.
  encode = tiny_tokenizer.encode
  memories = [prompts_of(tiny_tokenizer).empty_memory]
  memories += [tuple(turn.memory_ids) for turn in turns[:-1]]
  assert seen == sorted(
    (tuple(encode(document.question)), memory, tuple(encode(turn.chunk)))
    for memory, turn in zip(memories, turns, strict=True)
  )
  # The answer turn asks with a single pair of braces.
  text = tiny_tokenizer.decode(expected[-1])
  assert '\\boxed{}?' in text

  validation = validation_lib.Validation(
    model,
    tmp_path,
    documents=tiny_runs.documents((3,), count=2),
    reading=reading,
    count=2,
    batch_size=2,
  )
  validation(model.params, 0)
  both = rule.take()
  # The other half belongs to another document.
  assert len(both) == 6 and set(seen) <= set(both)

  # The first of two rollouts has the reader's key.
  source = tiny_runs.rollouts(
    model,
    chunks=(3,),
    count=1,
    documents_per_step=1,
    rollouts=2,
    reading=reading,
  )
  batch, found = source.sample(model.params)
  both = rule.take()
  assert len(both) == 6 and set(seen) <= set(both)
  verdicts = source.judge(batch, found)
  rows = source.sequences(found, source.scores(found, verdicts)).turns
  sampled = ids_of(found, 0)
  # Four chunk slots, the last one empty, and the answer; two rollouts.
  for t, prompt in zip((0, 1, 2, 4), expected, strict=True):
    row, p = rows.ids_NxS[2 * t].tolist(), int(rows.prompt_length_N[2 * t])
    assert tuple(row[:p]) == prompt
    assert row[p:][: int(rows.response_length_N[2 * t])] == sampled[t]
  assert sampled[3] == [] and int(rows.response_length_N[6]) == 0
  assert without_end(found.answer, 0) == answer.answer_ids
