"""Hand-made memories: what is measured, and what sets off an alarm."""

import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import memory_health
from memagent_jax.agent.memory_rules import Overwrite
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.structs import (
  EOS,
  LENGTH,
  SKIPPED,
  MemoryState,
  Response,
  Tokens,
  Turns,
)

CAP = 12


class AGENT:
  """The only part of an agent in use: its rule, which names the outcomes."""

  rule = Overwrite()


def padded(tokenizer, texts):
  """Rows of CAP ids; beyond their ends are ids that must not count."""
  tokens = tokens_lib.pad_rows([tokenizer.encode(t) for t in texts], CAP)
  ids, length = np.array(tokens.ids_NxW), np.asarray(tokens.length_N)
  rng = np.random.default_rng(len(texts[0]))
  real = np.arange(CAP) < length[:, None]
  return Tokens(np.where(real, ids, rng.integers(0, 200, ids.shape)), length)


def trajectories(tokenizer, memories, cut=(), rollouts=1):
  """Trajectories from their memories, turn by turn; None: nothing was read.

  `cut`: (trajectory, turn) of the memories cut at the cap.
  """
  turns = max(map(len, memories))
  rows = [[*m, *[None] * (turns - len(m))] for m in memories]
  slots, finish = [], []
  before = ['none'] * len(rows)
  for c in range(turns):
    before = [
      kept if row[c] is None else row[c]
      for row, kept in zip(rows, before, strict=True)
    ]
    slots.append(padded(tokenizer, before))
    finish.append(
      [
        SKIPPED if row[c] is None else LENGTH if (n, c) in cut else EOS
        for n, row in enumerate(rows)
      ]
    )
  ids = np.stack([slot.ids_NxW for slot in slots])
  length = np.stack([slot.length_N for slot in slots])
  response = Response(ids, np.zeros(ids.shape), length, np.asarray(finish))
  return Trajectories(
    documents=None,
    first=MemoryState(padded(tokenizer, ['none'] * len(rows))),
    turns=Turns(
      response,
      MemoryState(Tokens(ids, length)),
      np.zeros_like(length),
      np.zeros_like(length),
    ),
    answer=None,
    rollouts=rollouts,
  )


@pytest.fixture
def measure(tiny_tokenizer):
  def measured(memories, answers=None, **kwargs):
    rollouts = kwargs.get('rollouts', 1)
    if answers is None:
      answers = [['42']] * (len(memories) // rollouts)
    found = memory_health.measure(
      tiny_tokenizer,
      AGENT,
      answers,
      trajectories(tiny_tokenizer, memories, **kwargs),
    )
    assert all(name.startswith('memory/') for name in found)
    return {name.removeprefix('memory/'): x for name, x in found.items()}

  return measured


HEALTHY = [['a', 'a b', 'a b 42'], ['', 'no', 'no'], ['x'], ['42', '42', '4 2']]


def test_lengths_and_shares_are_of_the_turns_that_were_read(measure):
  found = measure(HEALTHY, cut=[(0, 2)])
  lengths = [1, 3, 6, 0, 2, 2, 1, 2, 2, 3]
  for q in (10, 50, 90):
    assert found[f'length_p{q}'] == pytest.approx(np.percentile(lengths, q))
  assert found['saturated'] == found['empty'] == pytest.approx(0.1)
  # Without the skipped turns of the third, which kept its memory.
  assert found['unchanged'] == pytest.approx(0.2)
  # None of the three with several turns keeps its first memory to the end.
  assert found['constant'] == 0.0
  assert memory_health.alarms(prefixed(found)) == []


def prefixed(metrics):
  return {f'memory/{name}': value for name, value in metrics.items()}


def test_a_turn_that_returns_the_first_memory_is_unchanged(measure):
  assert measure([['none', 'x']])['unchanged'] == 0.5


def test_evidence_enters_and_leaves(measure):
  """Counting turns from 0: enters at 1, 0, 2, never; leaves the first at 3."""
  found = measure(
    [
      ['a', 'b 42', '42', 'c'],
      ['42', '42', 'x', '42'],
      ['a', 'b', '42'],
      ['a', 'b', 'c', '4 2'],
    ]
  )
  assert found['evidence_found'] == 0.75
  # The second lost it for a turn; the third ends with what it gained.
  assert found['evidence_kept'] == pytest.approx(2 / 3)
  assert found['evidence_enters_turn'] == pytest.approx((1 + 0 + 2) / 3)
  assert found['evidence_leaves_turn'] == pytest.approx((3 + 2) / 2)


def test_evidence_that_never_leaves_has_no_turn(measure):
  found = measure([['a', '42', '42'], ['42']])
  assert found['evidence_kept'] == 1.0
  assert 'evidence_leaves_turn' not in found
  found = measure([['a', 'b']])
  assert found['evidence_found'] == 0.0
  assert not {'evidence_kept', 'evidence_enters_turn'} & set(found)


def test_evidence_is_that_of_the_trajectory_s_own_document(measure):
  """Two rollouts per document; any of its answers counts."""
  found = measure(
    [['7'], ['8'], ['9'], ['7']], answers=[['7', '77'], ['9']], rollouts=2
  )
  assert found['evidence_found'] == 0.5


SATURATED = [['a' * CAP, 'b' * CAP]] * 3 + [['a', 'b']]
COLLAPSES = {
  'keeps its first memory': [['x', 'x', 'x']] * 10,
  'never writes anything new': [['none', 'none', 'none']] * 10,
  'all write the same': [['the', 'the'], ['the', 'the', 'the'], ['the', 'the']],
}


def test_saturation_sets_off_an_alarm(measure):
  cut = [(n, c) for n in range(3) for c in range(2)]
  found = measure(SATURATED, cut=cut)
  assert found['saturated'] == 0.75
  (alarm,) = memory_health.alarms(prefixed(found))
  assert '75% of the memories were cut at their cap' in alarm
  # Half of the memories cut is not yet an alarm.
  assert memory_health.alarms(prefixed(measure(SATURATED, cut=cut[:4]))) == []


@pytest.mark.parametrize('name', COLLAPSES)
def test_a_collapse_sets_off_an_alarm(measure, name):
  (alarm,) = memory_health.alarms(prefixed(measure(COLLAPSES[name])))
  assert '100% of the trajectories never change their memory' in alarm


def test_empty_memories_set_off_an_alarm(measure):
  found = measure([['', ''], ['', 'a'], ['', 'a', '']])
  (alarm,) = memory_health.alarms(prefixed(found))
  assert '71% of the memories are empty' in alarm


def test_one_chunk_says_nothing_of_collapse(measure):
  found = measure([['x'], ['y']])
  assert 'constant' not in found
  assert memory_health.alarms(prefixed(found)) == []
