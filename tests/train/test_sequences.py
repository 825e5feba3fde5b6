"""Sequences of a rollout, and their micro-batches: nothing lost or changed."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts
from memagent_jax.agent.config import AgentConfig
from memagent_jax.agent.memory_rules import Overwrite
from memagent_jax.agent.session import Session, Start
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.data.examples import Demonstration
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.rl import grpo
from memagent_jax.rl import turns as turns_lib
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.policy import Policy
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.sft import demonstrations
from memagent_jax.structs import SKIPPED, Documents
from memagent_jax.train import sequences, update
from memagent_jax.train.sequences import PolicySequences, Sequences

TEMPLATE = prompts.Template(
  memory_turn='{question} has {memory} then {chunk}!',
  answer_turn='{question} from {memory}: \\boxed{}?',
  empty_memory='none',
)
QUESTIONS = ['Who?', 'Where is it?', 'Why']
# Three chunk slots; the second document ends after one.
CHUNKS = [
  ['It rained.', 'A dog', 'He left'],
  ['Short.', '', ''],
  ['a', 'b', ''],
]
TEMPERATURE = 0.7


@pytest.fixture(scope='module')
def sampled(tiny_tokenizer):
  config = ModelConfig(
    *('qwen3', 269, 16, 1, 2, 1, 8, 24, 256, 1e-5, RopeConfig()),
    qk_norm=True,
    tie_embeddings=False,
  )
  agent = AgentConfig(
    rule=Overwrite(),
    model=config,
    prompts=prompts.compile_template(TEMPLATE, tiny_tokenizer),
    control_ids=tiny_tokenizer.control_ids,
    end_id=tiny_tokenizer.eos_ids[0],
    think_ids=tiny_tokenizer.think_ids,
    memory=SamplingConfig(6, TEMPERATURE),
    answer=SamplingConfig(4, TEMPERATURE),
    chunk_tokens=12,
    question_tokens=14,
  )
  params = transformer.init_params(config, jax.random.key(1))
  # A larger head makes the random model's distribution peaked, not uniform.
  params['head'] *= 3
  encode = tiny_tokenizer.encode
  question = tokens_lib.pad_rows([encode(q) for q in QUESTIONS], 14)
  slots = [
    tokens_lib.pad_rows([encode(row[c]) for row in CHUNKS], 12)
    for c in range(3)
  ]
  documents = Documents(question, jax.tree.map(lambda *x: jnp.stack(x), *slots))
  session = Session(agent, params, Start(question, QUESTIONS, seed=5))
  first = session.carried
  turns = session.read(documents.chunk)
  answer = session.answer()
  rows, logprob = turns_lib.trajectory_sequences(
    agent, Trajectories(documents, first, turns, answer, rollouts=1)
  )
  return agent, params, turns, answer, rows, logprob


def real(ids, length):
  return np.asarray(ids)[: int(length)].tolist()


def test_rows_are_prompt_and_response_without_a_gap(sampled, tiny_tokenizer):
  agent, _, turns, answer, rows, _ = sampled
  memory = [list(agent.prompts.empty_memory)] * 3
  for c in range(4):
    response = (
      jax.tree.map(lambda x, c=c: x[c], turns.response) if c < 3 else answer
    )
    for n in range(3):
      row = c * 3 + n
      sampled_ids = real(response.ids_NxR[n], response.length_N[n])
      chunk = CHUNKS[n][c] if c < 3 else None
      if chunk == '':
        assert int(response.finish_N[n]) == SKIPPED
        assert int(rows.response_length_N[row]) == 0
        continue
      # The same turn as a demonstration, assembled on the host.
      made = Demonstration(QUESTIONS[n], '?', chunk, 'x')
      prompt, _ = demonstrations.encode(
        agent.prompts, _Memory(tiny_tokenizer, memory[n]), made
      )
      length = int(rows.prompt_length_N[row])
      assert real(rows.ids_NxS[row], length) == prompt
      total = length + int(rows.response_length_N[row])
      assert np.asarray(rows.ids_NxS[row])[length:total].tolist() == sampled_ids
    if c < 3:
      memory = [
        real(turns.memory.ids_NxW[c, n], turns.memory.length_N[c, n])
        for n in range(3)
      ]


class _Memory:
  """Encodes like the tokenizer, except that '?' gives the memory's ids."""

  def __init__(self, tokenizer, ids):
    self._tokenizer, self._ids = tokenizer, ids
    self.eos_ids = tokenizer.eos_ids

  def encode(self, text):
    return self._ids if text == '?' else self._tokenizer.encode(text)


def as_policy_rows(rows, logprob_NxR):
  """Rows whose old log-probs are the sampler's; every turn counts."""
  logprob_NxR = np.asarray(logprob_NxR)
  ones_N = np.ones(len(logprob_NxR), np.float32)
  return PolicySequences(
    jax.device_get(rows), logprob_NxR, logprob_NxR, None, ones_N, ones_N
  )


def first_update(sampled, temperature):
  """Metrics of the policy loss with the sampler's own params."""
  agent, params, _, _, rows, logprob_NxR = sampled
  objective = Policy(agent.model, GrpoConfig(kl_coefficient=0.0), temperature)
  _, metrics = jax.jit(objective)(params, as_policy_rows(rows, logprob_NxR))
  return metrics


def test_the_policy_loss_starts_at_ratio_one(sampled):
  metrics = first_update(sampled, TEMPERATURE)
  rows = sampled[4]
  assert int(metrics['ratio'].weight) == int(rows.response_length_N.sum()) > 12
  # The sum over all tokens bounds the largest.
  assert float(metrics['sampler_gap'].sum) < 1e-4
  assert float(metrics['ratio'].mean()) == pytest.approx(1.0, abs=1e-4)
  assert float(metrics['approx_kl'].sum) < 1e-7


def test_the_parity_would_notice_another_temperature(sampled):
  metrics = first_update(sampled, 1.0)
  assert float(metrics['sampler_gap'].mean()) > 0.05
  assert abs(float(metrics['ratio'].mean()) - 1.0) > 0.01


def test_recorded_log_probs_are_the_trainer_s(sampled):
  """Every token's, wherever its sequence is in the micro-batches."""
  agent, params, _, _, rows, logprob_NxR = sampled
  width = rows.ids_NxS.shape[1]
  batches = sequences.micro_batches(
    as_policy_rows(rows, logprob_NxR),
    widths=(width - 20, width),
    micro_tokens=2 * width,
    capacity=12,
  )
  # 3 + 1 + 2 memory turns and 3 answers: as many rows as were sampled.
  counted = [(b.sequences.turns.response_length_N > 0).sum() for b in batches]
  assert sum(counted) == 9 and min(counted) > 0
  tokens = 0
  for batch in batches:
    got = np.asarray(update.log_probs(agent.model, TEMPERATURE, params, batch))
    mask = np.arange(6) < batch.sequences.turns.response_length_N[..., None]
    assert np.abs(got - batch.sequences.sampler_logprob_NxR)[mask].max() < 1e-4
    assert not got[~mask].any()
    tokens += mask.sum()
  assert tokens == int(rows.response_length_N.sum())


def test_pairs_that_do_not_fit_are_an_error():
  rows = sequences.demonstration_sequences([([1, 2], [3]), ([4], [5, 6])], 4)
  assert rows.ids_NxS.tolist() == [[1, 2, 3, 0], [4, 5, 6, 0]]
  assert isinstance(rows.prompt_length_N, jax.Array)
  assert rows.response_length_N.tolist() == [1, 2]
  with pytest.raises(ValueError, match='row 0 has 3 tokens; the cap is 2'):
    sequences.demonstration_sequences([([1, 2], [3])], 2)


# --- Micro-batches -----------------------------------------------------------

S, R = 12, 5


def numbered_rows(prompt_N, response_N, weight_N):
  """Row n has ids 100 n + 1, 100 n + 2 ..., log-probs -n and advantage n."""
  count = len(weight_N)
  n = np.arange(count)
  logprob_NxR = np.repeat(-n[:, None], R, axis=1).astype(np.float32)
  return PolicySequences(
    Sequences(
      (100 * n[:, None] + 1 + np.arange(S)).astype(np.int32),
      np.asarray(prompt_N, np.int32),
      np.asarray(response_N, np.int32),
    ),
    sampler_logprob_NxR=logprob_NxR,
    old_logprob_NxR=logprob_NxR,
    reference_logprob_NxR=None,
    advantage_N=n.astype(np.float32),
    weight_N=np.asarray(weight_N, np.float32),
  )


ROW = st.tuples(
  st.integers(1, S - R), st.integers(0, R), st.sampled_from([0.0, 1.0, 0.5])
)
SPLIT = {
  'widths': st.sets(st.integers(2, S - 1), max_size=3).map(
    lambda widths: (*sorted(widths), S)
  ),
  'micro_tokens': st.integers(1, 100),
}


def rows_of(lengths):
  return numbered_rows(*zip(*lengths, strict=True))


@hypothesis.given(
  lengths=st.lists(ROW, min_size=1, max_size=14),
  spare=st.integers(0, 9),
  **SPLIT,
)
def test_every_row_that_counts_comes_once_and_whole(
  lengths, spare, widths, micro_tokens
):
  rows = rows_of(lengths)
  counts = (rows.weight_N > 0) & (rows.turns.response_length_N > 0)
  batches = sequences.micro_batches(
    rows,
    widths=widths,
    micro_tokens=micro_tokens,
    capacity=max(1, int(counts.sum()) + spare),
  )
  found, lower = [], 0
  for width, batch in zip(widths, batches, strict=True):
    size = batch.sequences.weight_N.shape[1]
    assert size * width <= micro_tokens or size == 1
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch.sequences)
    assert flat.turns.ids_NxS.shape[1] == width
    real = flat.turns.response_length_N > 0
    # Exactly the micro-batches in use hold rows.
    assert -(-real.sum() // size) == batch.count
    assert real[: real.sum()].all()
    # Rows beyond them have no prompt, weight or advantage either.
    for x in jax.tree.leaves(flat):
      assert not x[real.sum() :].any()
    for i in np.flatnonzero(real):
      n = int(flat.advantage_N[i])
      length = flat.turns.prompt_length_N[i] + flat.turns.response_length_N[i]
      assert lower < length <= width  # the narrowest that holds it
      np.testing.assert_array_equal(
        flat.turns.ids_NxS[i, :length], rows.turns.ids_NxS[n, :length]
      )
      for name in ('prompt_length_N', 'response_length_N'):
        assert getattr(flat.turns, name)[i] == getattr(rows.turns, name)[n]
      for name in ('sampler_logprob_NxR', 'old_logprob_NxR', 'weight_N'):
        np.testing.assert_array_equal(
          getattr(flat, name)[i], getattr(rows, name)[n]
        )
      found.append(n)
    lower = width
  assert sorted(found) == np.flatnonzero(counts).tolist()


@hypothesis.given(
  one=st.lists(ROW, min_size=1, max_size=14),
  two=st.lists(ROW, min_size=1, max_size=14),
  **SPLIT,
)
def test_shapes_depend_on_the_capacity_alone(one, two, widths, micro_tokens):
  shapes = []
  for lengths in (one, two):
    batches = sequences.micro_batches(
      rows_of(lengths), widths=widths, micro_tokens=micro_tokens, capacity=14
    )
    shapes.append(jax.tree.map(lambda x: (x.shape, x.dtype), batches))
  assert shapes[0] == shapes[1]


def test_each_turn_keeps_its_advantage_on_its_own_tokens():
  """For every turn, sum(advantage * mask) = A * its token count."""
  response_N = [5, 1, 3, 2, 4]
  rows = numbered_rows([1, 7, 2, 5, 3], response_N, np.ones(5))
  sums = {}
  for batch in sequences.micro_batches(
    rows, widths=(6, 7, S), micro_tokens=14, capacity=5
  ):
    for i in range(int(batch.count)):
      part = jax.tree.map(lambda x, i=i: x[i], batch.sequences)
      mask_NxR = sequences.response_mask(part.turns, R)
      sums |= {
        int(a): float(s)
        for a, s in zip(
          part.advantage_N,
          (part.advantage_N[:, None] * mask_NxR).sum(axis=1),
          strict=True,
        )
        if a
      }
  assert sums == {n: float(n * response_N[n]) for n in range(1, 5)}


@pytest.mark.parametrize(
  'config',
  [
    GrpoConfig(),
    GrpoConfig(dual_clip=1.5, clip_high=0.05, clip_low=0.05),
    GrpoConfig(aggregation='sequence_mean', entropy_coefficient=0.1),
    GrpoConfig(
      aggregation='constant',
      constant_tokens=7,
      importance_cap=1.1,
      old_log_probs='trainer',
    ),
    GrpoConfig(kl_coefficient=0.2, kl_estimator='k3', kl_corrected=True),
  ],
)
@pytest.mark.slow
def test_equal_turns_as_one_row_have_the_same_loss_and_gradient(config):
  # Four different turns, some written by several trajectories.
  turn_N = np.asarray([0, 0, 1, 0, 2, 1, 3, 0, 2, 3])
  advantage_N = np.asarray(
    [0.25, -0.75, 0.5, 0.125, -1.0, 0.0, 0.5, -0.25, -0.5, -0.5]
  )
  weight_N = np.asarray([1, 1, 1, 1, 0, 1, 2, 1, 1, 1])
  rng = np.random.default_rng(0)
  policy, old, sampler, reference, entropy = (
    rng.normal(-1.0, 0.3, (4, R)).astype(np.float32) for _ in range(5)
  )
  distinct = numbered_rows([1, 7, 2, 5], [5, 1, 3, 2], np.ones(4))
  rows = jax.tree.map(lambda x: np.asarray(x)[turn_N], distinct)
  rows = rows.replace(
    advantage_N=advantage_N.astype(np.float32),
    weight_N=weight_N.astype(np.float32),
    old_logprob_NxR=old[turn_N],
    sampler_logprob_NxR=sampler[turn_N],
    reference_logprob_NxR=reference[turn_N],
  )
  merged = turns_lib.merge_equal(rows)
  # Signs separate rows: two for turns 0, 1 (positive and 0) and 3, one for 2.
  assert len(merged.weight_N) == 7
  assert merged.weight_N.sum() == weight_N.sum()

  def loss(policy, rows):
    number_N = np.asarray(
      [
        int(np.flatnonzero((old == own).all(axis=1))[0])
        for own in rows.old_logprob_NxR
      ]
    )
    found, metrics = grpo.policy_loss(
      config,
      logprob_NxR=policy[number_N],
      old_logprob_NxR=rows.old_logprob_NxR,
      advantage_N=rows.advantage_N,
      mask_NxR=sequences.response_mask(rows.turns, R),
      entropy_NxR=entropy[number_N],
      reference_logprob_NxR=rows.reference_logprob_NxR,
      sampler_logprob_NxR=rows.sampler_logprob_NxR,
      row_weight_N=rows.weight_N,
    )
    return found.sum, (found.weight, metrics)

  with_gradient = jax.value_and_grad(loss, has_aux=True)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6),
    with_gradient(jnp.asarray(policy), merged),
    with_gradient(jnp.asarray(policy), rows),
  )


def test_turns_that_differ_stay_apart():
  rows = numbered_rows([1, 7, 2, 5], [5, 1, 3, 2], np.ones(4))
  rows.turns.ids_NxS[:] = 3
  merged = turns_lib.merge_equal(rows)
  # The same ids, divided elsewhere.
  assert merged.turns.prompt_length_N.tolist() == [1, 7, 2, 5]
  nothing = turns_lib.merge_equal(
    rows.replace(weight_N=np.zeros(4, np.float32))
  )
  assert nothing.turns.ids_NxS.shape == (0, S)


def test_demonstrations_are_split_like_policy_rows():
  rows = sequences.demonstration_sequences(
    [([1], [2]), ([3, 4, 5], [6]), ([7], []), ([8, 9], [10, 11])], 6
  )
  narrow, wide = sequences.micro_batches(
    jax.device_get(rows), widths=(3, 6), micro_tokens=6, capacity=4
  )
  assert narrow.sequences.ids_NxS[:1].tolist() == [[[1, 2, 0], [0, 0, 0]]]
  assert narrow.sequences.ids_NxS.shape == (2, 2, 3)
  assert wide.sequences.ids_NxS[:2].tolist() == [
    [[3, 4, 5, 6, 0, 0]],
    [[8, 9, 10, 11, 0, 0]],
  ]
  assert wide.sequences.ids_NxS.shape == (4, 1, 6)
  assert (int(narrow.count), int(wide.count)) == (1, 2)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'capacity': 2}, '3 sequences; the capacity is 2'),
    (
      {'widths': (6, 11)},
      r'widths are \(6, 11\); expected rising ones up to 12',
    ),
    ({'widths': (6, 4, 12)}, r'widths are \(6, 4, 12\)'),
    ({'widths': (6, 6, 12)}, r'widths are \(6, 6, 12\)'),
    ({'widths': ()}, r'widths are \(\)'),
  ],
)
def test_rows_that_would_be_lost_are_an_error(arguments, message):
  rows = numbered_rows([1, 2, 3], [1, 1, 1], [1, 1, 1])
  arguments = {'widths': (12,), 'micro_tokens': 24, 'capacity': 3} | arguments
  with pytest.raises(ValueError, match=message):
    sequences.micro_batches(rows, **arguments)
