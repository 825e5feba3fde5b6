"""One training trajectory, turn by turn: what it read, wrote and is taught.

    Rollouts.sample -> judge -> sequences -> those of one trajectory
      -> the trainer's log-probs -> Inspection

All of it comes from the functions that training calls.
"""

from collections.abc import Sequence
import dataclasses
import itertools

import jax
import numpy as np

from memagent_jax.agent import trajectories as trajectories_lib
from memagent_jax.agent.trajectories import Trajectories
from memagent_jax.agent.turns import Turn
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.rl.rollouts import Rollouts
from memagent_jax.structs import FINISH_REASONS, SKIPPED
from memagent_jax.train import sequences as sequences_lib
from memagent_jax.train import update as update_lib
from memagent_jax.train.sequences import PolicySequences


@dataclasses.dataclass(frozen=True)
class InspectedTurn:
  """A sampled turn, and what training makes of it."""

  prompt: str  # includes control tokens by name
  prompt_tokens: int
  memory_before: str
  # The memory turn's record; None for the answer turn.
  record: Turn | None
  finish_reason: str
  tokens: tuple[str, ...]  # as sampled, with the ending control token
  # float32, each token's probability by the trainer / by the sampler
  ratio_R: np.ndarray
  weight: float  # 0: the turn teaches nothing


@dataclasses.dataclass(frozen=True)
class Inspection:
  """A trajectory, its verdict, and its standing in its group."""

  id: str
  question: str
  turns: tuple[InspectedTurn, ...]  # the answer last
  answer: str
  right_answers: tuple[str, ...]
  reward_name: str
  reward: float
  metric_name: str
  metric: float
  group_rewards: tuple[float, ...]
  # The rewards minus the penalties for overlong responses.
  group_scores: tuple[float, ...]
  advantage: float

  @property
  def ratios(self) -> np.ndarray:
    """Ratios of all tokens of all turns, float32."""
    return np.concatenate([turn.ratio_R for turn in self.turns])


def inspect(
  source: Rollouts, model: Model, document: int = 0, rollout: int = 0
) -> Inspection:
  """Samples the source's next batch and looks at one trajectory of it.

  Args:
    source: source of the run's rollouts.
    model: model that samples; also the trainer's policy.
    document: number of the document in the batch.
    rollout: number of the rollout in its group.

  Raises:
    ValueError: the batch or the group has no such number.
  """
  documents, rollouts = (
    source.config.documents_per_step,
    source.config.rollouts,
  )
  for name, got, count in (
    ('document_index', document, documents),
    ('rollout', rollout, rollouts),
  ):
    if not 0 <= got < count:
      raise ValueError(f'{name} is {got}; expected 0 to {count - 1}.')
  tokenizer, params = model.tokenizer, model.params
  batch, found = source.sample(params)
  verdicts = source.judge(batch, found)
  score_BxG = source.scores(found, verdicts)
  n = document * rollouts + rollout
  # Sequences are ordered turn by turn.
  sequences = jax.tree.map(
    lambda x: x[n :: documents * rollouts], source.sequences(found, score_BxG)
  )
  question = found.documents.question
  return Inspection(
    id=batch.ids[document],
    question=tokenizer.decode(question.ids_NxW[n, : question.length_N[n]]),
    turns=tuple(_turns(source, tokenizer, params, found, sequences, n)),
    answer=verdicts.answers[n],
    right_answers=tuple(batch.answers[document]),
    reward_name=batch.rewards[document],
    reward=float(verdicts.reward_BxG[document, rollout]),
    metric_name=batch.metrics[document],
    metric=float(verdicts.metric_BxG[document, rollout]),
    group_rewards=tuple(verdicts.reward_BxG[document].tolist()),
    group_scores=tuple(score_BxG[document].tolist()),
    advantage=float(sequences.advantage_N[-1]),
  )


def _turns(
  source: Rollouts,
  tokenizer: Tokenizer,
  params: dict,
  found: Trajectories,
  sequences: PolicySequences,
  n: int,
) -> list[InspectedTurn]:
  finish_T = [*found.turns.response.finish_N[:, n], found.answer.finish_N[n]]
  records = {
    record.chunk_index: record
    for record in trajectories_lib.turns_of(tokenizer, source.agent, found, n)
  }
  first = found.first.memory
  memory = tokenizer.decode(first.ids_NxW[n, : first.length_N[n]])
  logprob_TxR = _trainer_log_probs(source, sequences, params)
  turns = []
  for t, finish in enumerate(finish_T):
    if finish == SKIPPED:
      continue
    ids_S = sequences.turns.ids_NxS[t]
    p, r = (
      sequences.turns.prompt_length_N[t],
      sequences.turns.response_length_N[t],
    )
    gap_R = logprob_TxR[t, :r] - sequences.sampler_logprob_NxR[t, :r]
    record = records.get(t)
    turns.append(
      InspectedTurn(
        prompt=_with_control_tokens(tokenizer, ids_S[:p]),
        prompt_tokens=int(p),
        memory_before=memory,
        record=record,
        finish_reason=FINISH_REASONS[finish],
        tokens=tuple(tokenizer.token_text(i) for i in ids_S[p : p + r]),
        ratio_R=np.exp(gap_R),
        weight=float(sequences.weight_N[t]),
      )
    )
    if record is not None:
      memory = record.memory
  return turns


def _trainer_log_probs(
  source: Rollouts, sequences: PolicySequences, params: dict
) -> np.ndarray:
  """float32 [T, R], log-probs as an update computes them, row by row."""
  agent = source.agent
  width = sequences.turns.ids_NxS.shape[1]
  (batch,) = sequences_lib.micro_batches(
    # Sequences without weight would be left out.
    sequences.replace(weight_N=np.ones_like(sequences.weight_N)),
    widths=(width,),
    micro_tokens=width,
    capacity=len(sequences.weight_N),
  )
  logprob = update_lib.log_probs(
    agent.model, agent.memory.temperature, params, batch
  )
  result_TxR = np.zeros_like(sequences.sampler_logprob_NxR)
  live_T = sequences.turns.response_length_N > 0
  result_TxR[live_T] = np.asarray(logprob)[: live_T.sum(), 0]
  return result_TxR


def _with_control_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  """The text of ids, control tokens included."""
  control = frozenset(tokenizer.control_ids)
  parts = []
  for named, group in itertools.groupby(map(int, ids), control.__contains__):
    run = list(group)
    parts.append(
      ''.join(map(tokenizer.token_text, run))
      if named
      else tokenizer.decode(run)
    )
  return ''.join(parts)
