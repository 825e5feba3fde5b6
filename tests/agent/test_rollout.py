"""The chunk scan: one state transition, skipped rows, windows, recompiles."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import memory_rules, prompts, rollout
from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.memory_rules import Guarded, Overwrite, WrittenTurn
from memagent_jax.agent.prompts import Prompts
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.structs import (
  EOS,
  LENGTH,
  SKIPPED,
  MemoryState,
  Response,
  Tokens,
)
from memagent_jax.tokens import pad_rows

MODEL = ModelConfig('llama', 40, 16, 1, 2, 1, 8, 24, 256, 1e-5, RopeConfig())
PARAMS = transformer.init_params(MODEL, jax.random.key(1))
PARAMS = {**PARAMS, 'embedding': PARAMS['embedding'] * 4}
PROMPTS = Prompts(
  memory_turn=((1, 2), 'question', (3,), 'memory', (4,), 'chunk', (5, 6)),
  answer_turn=((1, 7), 'question', (3,), 'memory', (8,)),
  empty_memory=(9, 10),
  spaced_empty_memory=(15, 16),
)


def _agent(**changes):
  fields = {
    'model': MODEL,
    'prompts': PROMPTS,
    'rule': Overwrite(),
    'control_ids': (0,),
    'end_id': 0,
    'think_ids': None,
    'memory': SamplingConfig(max_tokens=6, temperature=1.0),
    'answer': SamplingConfig(max_tokens=4, temperature=1.0),
    'chunk_tokens': 8,
    'question_tokens': 3,
  }
  return AgentConfig(**(fields | changes))


def _chunks(lengths_CxN, seed=0):
  lengths = np.asarray(lengths_CxN, np.int32)
  rng = np.random.default_rng(seed)
  ids = rng.integers(11, 40, (*lengths.shape, 8)).astype(np.int32)
  return Tokens(jnp.asarray(ids), jnp.asarray(lengths))


def _keys(rows):
  zeros = jnp.zeros(len(rows), jnp.int32)
  return decode.row_keys(7, jnp.asarray(rows, jnp.uint32), zeros)


def _read(agent, chunks, rows=(0, 1), memory=None, first=0):
  n = len(rows)
  questions = [[11 + r, 12] for r in rows]
  state, turns = rollout.read(
    agent,
    PARAMS,
    pad_rows(questions, 3),
    rollout.first_state(agent, n, memory),
    chunks,
    _keys(rows),
    jnp.full((n,), first, jnp.int32),
  )
  return state.memory, turns


def _real(tokens, row):
  return np.asarray(tokens.ids_NxW)[row, : int(tokens.length_N[row])].tolist()


def test_each_turn_is_a_conversation_of_its_own():
  """The scan equals prompts assembled by hand, turn after turn."""
  agent = _agent()
  chunks = _chunks([[8, 5], [3, 8]])
  memory, turns = _read(agent, chunks)
  for row in range(2):
    by_hand = [9, 10]
    for c in range(2):
      chunk = np.asarray(chunks.ids_NxW)[c, row]
      chunk = chunk[: int(chunks.length_N[c, row])].tolist()
      ids = [1, 2, 11 + row, 12, 3, *by_hand, 4, *chunk, 5, 6]
      key = jax.vmap(jax.random.fold_in, (0, None))(_keys([row]), c)
      got = jax.jit(decode.generate, static_argnums=(0, 3, 4))(
        MODEL, PARAMS, pad_rows([ids], 25), agent.memory, (0,), key
      )
      by_hand = _real(Tokens(got.ids_NxR, got.length_N), 0)
      np.testing.assert_allclose(
        turns.response.logprob_NxR[c, row], got.logprob_NxR[0], atol=1e-4
      )
      by_hand = by_hand[:-1] if by_hand[-1] == 0 else by_hand
      after = Tokens(turns.memory.ids_NxW[c], turns.memory.length_N[c])
      assert _real(after, row) == by_hand
    assert _real(memory, row) == by_hand


def test_every_turn_has_a_key_of_its_own():
  """With equal logits everywhere, only the keys tell turns and rows apart."""
  agent = _agent(control_ids=())
  params = jax.tree.map(jnp.zeros_like, PARAMS)
  question, first = pad_rows([[11, 12], [12, 12]], 3), 4

  def by_hand(row, turn, tokens):
    key = jax.random.fold_in(_keys([row])[0], turn)
    return [
      int(jax.random.categorical(jax.random.fold_in(key, t), jnp.zeros(40)))
      for t in range(tokens)
    ]

  state, turns = rollout.read(
    agent,
    params,
    question,
    rollout.first_state(agent, 2),
    _chunks([[8, 5], [3, 8]]),
    _keys([0, 1]),
    jnp.full((2,), first, jnp.int32),
  )
  got = rollout.answer(agent, params, question, state.memory, _keys([0, 1]))
  for row in range(2):
    for c in range(2):
      expected = by_hand(row, first + c, 6)
      assert turns.response.ids_NxR[c, row].tolist() == expected
    # The answer's key number, which no document has enough turns to reach.
    assert got.ids_NxR[row].tolist() == by_hand(row, 2**31 - 1, 4)


def test_a_row_without_chunks_left_keeps_its_memory():
  agent = _agent()
  memory, turns = _read(agent, _chunks([[8, 8], [8, 0], [0, 0]]))
  after_first = Tokens(turns.memory.ids_NxW[0], turns.memory.length_N[0])
  assert _real(memory, 1) == _real(after_first, 1)
  assert turns.response.finish_N[1:, 1].tolist() == [SKIPPED, SKIPPED]
  assert turns.response.length_N[1:, 1].tolist() == [0, 0]
  assert int(turns.response.finish_N[2, 0]) == SKIPPED


def test_windows_of_any_size_give_the_same_memory():
  agent = _agent()
  chunks = _chunks([[8, 5], [3, 8], [8, 8]])
  whole, _ = _read(agent, chunks)
  memory = None
  for c in range(3):
    window = jax.tree.map(lambda x, c=c: x[c : c + 1], chunks)
    memory, _ = _read(agent, window, memory=memory, first=c)
  for row in range(2):
    assert _real(memory, row) == _real(whole, row)


def test_control_ids_and_thinking_never_enter_a_memory():
  agent = _agent(think_ids=(8, 9))
  response = Response(
    ids_NxR=jnp.array([[20, 8, 21, 9, 22, 0], [20, 21, 22, 23, 24, 25]]),
    logprob_NxR=jnp.zeros((2, 6)),
    length_N=jnp.array([6, 6]),
    finish_N=jnp.array([EOS, LENGTH]),
  )
  memory, thought_N = rollout.written_text(agent, response)
  assert _real(memory, 0) == [20, 22]
  assert _real(memory, 1) == [20, 21, 22, 23, 24, 25]
  assert thought_N.tolist() == [3, 0]


@pytest.mark.slow
def test_a_memory_as_likely_as_decoding_says():
  agent = _agent(memory=SamplingConfig(max_tokens=6))
  prompt = pad_rows([[5, 6, 7], [8, 9]], 5)
  got = decode.generate(
    MODEL,
    PARAMS,
    prompt,
    SamplingConfig(6, temperature=1.0),
    (0,),
    _keys([0, 1]),
  )
  ended_N = got.finish_N == EOS
  memory = Tokens(got.ids_NxR, got.length_N - ended_N)
  logprob_NxR = memory_rules.memory_log_probs(agent, PARAMS, prompt, memory)
  for row, length in enumerate(got.length_N.tolist()):
    np.testing.assert_allclose(
      logprob_NxR[row, :length], got.logprob_NxR[row, :length], atol=1e-4
    )
    # Then its end, whether sampled or not.
    assert (logprob_NxR[row, : int(memory.length_N[row]) + 1] < 0).all()
    assert (logprob_NxR[row, int(memory.length_N[row]) + 1 :] == 0).all()


@pytest.mark.slow
def test_a_memory_is_taken_if_it_is_likelier_by_the_ratio():
  usual = _agent()
  chunks = _chunks([[8, 5]])
  old = pad_rows([[20, 21], [22, 23, 24]], 6)
  fresh, _ = _read(usual, chunks, memory=old)
  chunk = jax.tree.map(lambda x: x[0], chunks)
  question = pad_rows([[11, 12], [12, 12]], 3)
  turn = WrittenTurn(question, chunk, MemoryState(old), fresh)
  ratio_N, given_N = memory_rules.support(usual, PARAMS, turn)
  assert not given_N.any()
  low, high = sorted(ratio_N.tolist())
  assert high - low > 0.1
  likelier = ratio_N.argmax()
  for log_least, taken in (
    (low - 0.01, {0, 1}),
    (low + 0.01, {int(likelier)}),
    (high + 0.01, set()),
  ):
    agent = _agent(rule=Guarded(float(np.exp(log_least))))
    memory, turns = _read(agent, chunks, memory=old)
    for row in range(2):
      expected = _real(fresh if row in taken else old, row)
      assert _real(memory, row) == expected
      after = Tokens(turns.memory.ids_NxW[0], turns.memory.length_N[0])
      assert _real(after, row) == expected
      assert int(turns.outcome_CxN[0, row]) == (row not in taken)
  for bad in (-1.0, 0.0, float('inf'), float('nan')):
    with pytest.raises(ValueError, match='ratio'):
      Guarded(bad)


def test_a_guard_goes_by_its_ratio_unless_the_chunk_gives_it():
  """Likelier by factors of 3, 2, 1 and 1; the chunk gives only the last."""
  log_ratio_N = jnp.log(jnp.array([3.0, 2.001, 1.0, 1.0]))
  given_N = jnp.array([False, False, False, True])
  taken = Guarded(2.0).takes(log_ratio_N, given_N)
  assert taken.tolist() == [True, True, False, True]


@pytest.mark.slow
def test_a_memory_is_taken_if_an_empty_one_became_it_too():
  agent, rule = _agent(), Guarded(10.0)
  question, chunk = pad_rows([[11, 12]], 3), pad_rows([[13, 14]], 8)
  empty = memory_rules.empty_memory(agent, 1)
  old, fresh = pad_rows([[20, 21, 22]], 6), pad_rows([[25, 26]], 6)

  def takes(fresh, likely, likely_alone):
    """Whether it is taken, given probabilities after `old` and after none."""

    def log_probs(agent, params, prompt, memory):
      del agent, params
      alone = prompts.memory_prompt(PROMPTS, question, empty, chunk)
      p_Nx2 = []
      for row in range(memory.length_N.shape[0]):
        if _real(memory, row) == _real(old, 0):
          p = 0.2
        elif _real(prompt, row) == _real(alone, 0):
          p = likely_alone
        else:
          p = likely
        p_Nx2.append([p, 1.0])
      return jnp.log(jnp.array(p_Nx2))

    turn = WrittenTurn(question, chunk, MemoryState(old), fresh)
    support = memory_rules.support(agent, PARAMS, turn, log_probs)
    return rule.takes(*support).tolist() == [True]

  assert not takes(fresh, 0.7, 0.1)
  assert not takes(fresh, 0.7, 0.49)
  assert takes(fresh, 0.7, 0.51)
  assert takes(fresh, 2.1, 0.1)
  # Most chunks leave an empty memory empty, so that proves nothing.
  assert not takes(empty, 0.7, 0.99)
  assert not takes(pad_rows([[15, 16]], 6), 0.7, 0.99)
  assert takes(pad_rows([[15, 16, 17]], 6), 0.7, 0.99)
  assert takes(empty, 2.1, 0.99)


def test_the_ratio_asks_nothing_of_a_memory_that_stays():
  agent, rule = _agent(), Guarded(10.0)
  # The same two tokens, with other ids beyond them.
  old = Tokens(jnp.array([[20, 21, 3, 3, 0, 0]]), jnp.array([2]))
  same = Tokens(jnp.array([[20, 21, 0, 7, 0, 0]]), jnp.array([2]))
  question, chunk = pad_rows([[11]], 3), pad_rows([[13, 14]], 8)

  def update(fresh):
    """Uses params from which nothing can be computed."""
    with jax.disable_jit():
      turn = WrittenTurn(question, chunk, MemoryState(old), fresh)
      return rule.update(agent, {}, turn)

  state, outcome_N = update(same)
  assert _real(state.memory, 0) == [20, 21] and outcome_N.tolist() == [0]
  for fresh in (
    same.replace(length_N=jnp.array([1])),
    same.replace(ids_NxW=same.ids_NxW + 1),
  ):
    with pytest.raises(flax.errors.ScopeCollectionNotFound):
      update(fresh)


def test_no_compilation_after_the_first_of_20_ragged_batches():
  agent = _agent()
  rng = np.random.default_rng(0)
  _read(agent, _chunks([[8, 5]]))
  before = rollout.compiled_programs()
  memory = None
  for turn in range(20):
    chunks = _chunks(rng.integers(0, 9, (1, 2)), seed=turn)
    memory, _ = _read(agent, chunks, memory=memory, first=turn)
  assert rollout.compiled_programs() == before


@pytest.mark.slow
def test_the_answer_comes_from_question_and_memory():
  agent = _agent()
  memory = pad_rows([[20, 21]], 6)
  got = rollout.answer(
    agent, PARAMS, pad_rows([[11, 12]], 3), memory, _keys([0])
  )
  ids = [1, 7, 11, 12, 3, 20, 21, 8]
  key = jax.vmap(jax.random.fold_in, (0, None))(_keys([0]), rollout.ANSWER_TURN)
  expected = decode.generate(
    MODEL, PARAMS, pad_rows([ids], 14), agent.answer, (0,), key
  )
  np.testing.assert_array_equal(got.ids_NxR, expected.ids_NxR)


def test_device_memory_of_a_window_does_not_depend_on_the_document():
  """Only the chunk ids and the recorded turns grow with the chunk slots."""
  agent = _agent()

  def temporary_bytes(slots):
    lowered = rollout.read.lower(
      agent,
      PARAMS,
      pad_rows([[11], [12]], 3),
      rollout.first_state(agent, 2),
      _chunks([[8, 8]] * slots),
      _keys([0, 1]),
      jnp.zeros(2, jnp.int32),
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes

  few, many = temporary_bytes(2), temporary_bytes(64)
  ids_and_turns = 62 * 2 * 4 * (8 + 3 * 6 + 8)
  assert many - few <= 2 * ids_and_turns


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'chunk_tokens': 300}, r'300 \(chunk_tokens\).*the model sees 256'),
    ({'answer': SamplingConfig(300)}, r'300 \(answer_tokens\)'),
    ({'memory': SamplingConfig(1)}, 'the first memory has 2 tokens'),
    ({'chunk_tokens': 0}, 'chunk_tokens is 0'),
  ],
)
def test_caps_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    _agent(**changes)


def test_pieces_and_caps_are_counted():
  assert PROMPTS.memory_turn_tokens == 6
  assert tokens_lib.concatenate([pad_rows([[1]], 2)]).ids_NxW.shape == (1, 2)
