"""One trajectory of training, turn by turn: what it read, wrote and is taught.

    Rollouts.sample -> judge -> Rollouts.rows -> the rows of one trajectory
      -> the trainer's log-probs -> Inspection

All of it comes from the functions that training calls.
"""

from collections.abc import Sequence
import dataclasses
import itertools

import jax
import numpy as np

from memagent_jax.agent import trajectories
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.rl.rollouts import Rollouts
from memagent_jax.structs import FINISH_REASONS, SKIPPED
from memagent_jax.train import sequences
from memagent_jax.train import update as update_lib
from memagent_jax.train.sequences import PolicyRows


@dataclasses.dataclass(frozen=True)
class InspectedTurn:
  """A turn that was sampled."""

  prompt: str  # control tokens by their names
  prompt_tokens: int
  memory_before: str
  memory_after: str | None  # None: the answer turn
  finish_reason: str
  thought_tokens: int  # left out of the memory
  tokens: tuple[str, ...]  # as sampled, the ending control token included
  ratio_R: (
    np.ndarray
  )  # float32, of each token: probability by trainer / sampler
  weight: float  # 0: the turn teaches nothing


@dataclasses.dataclass(frozen=True)
class Inspection:
  """A trajectory, its verdict, and what it is in its group."""

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
  # The rewards less what overlong responses lose.
  group_scores: tuple[float, ...]
  advantage: float

  @property
  def ratios(self) -> np.ndarray:
    """Of all tokens of all turns."""
    return np.concatenate([turn.ratio_R for turn in self.turns])


def inspect(
  source: Rollouts, model: Model, document: int = 0, rollout: int = 0
) -> Inspection:
  """Samples the source's next batch and looks at one trajectory of it.

  Args:
    source: of the run.
    model: samples, and is the trainer's policy.
    document: number in the batch.
    rollout: number in the group.

  Raises:
    ValueError: the batch or the group has no such number.
  """
  documents, rollouts = source.batch_shape
  for name, got, count in (
    ('document_index', document, documents),
    ('rollout', rollout, rollouts),
  ):
    if not 0 <= got < count:
      raise ValueError(f'{name} is {got}; expected 0 to {count - 1}.')
  tokenizer, params = model.tokenizer, model.params
  batch, found = source.sample(params)
  verdicts = trajectories.judge(tokenizer, batch, found)
  n = document * rollouts + rollout
  # Rows stand turn by turn.
  rows = jax.tree.map(
    lambda x: x[n :: documents * rollouts], source.rows(found, verdicts)
  )
  question = found.documents.question
  return Inspection(
    id=batch.ids[document],
    question=tokenizer.decode(question.ids_NxW[n, : question.length_N[n]]),
    turns=tuple(_turns(source, tokenizer, params, found, rows, n)),
    answer=verdicts.answers[n],
    right_answers=tuple(batch.answers[document]),
    reward_name=batch.rewards[document],
    reward=float(verdicts.reward_BxG[document, rollout]),
    metric_name=batch.metrics[document],
    metric=float(verdicts.metric_BxG[document, rollout]),
    group_rewards=tuple(verdicts.reward_BxG[document].tolist()),
    group_scores=tuple(source.scores(found, verdicts)[document].tolist()),
    advantage=float(rows.advantage_N[-1]),
  )


def _turns(
  source: Rollouts,
  tokenizer: Tokenizer,
  params: dict,
  found: trajectories.Trajectories,
  rows: PolicyRows,
  n: int,
) -> list[InspectedTurn]:
  response = found.turns.response
  finish_T = [*response.finish_N[:, n], found.answer.finish_N[n]]
  thought_T = [*found.turns.thought_CxN[:, n], 0]
  # Before every turn, and behind the last memory turn.
  of_n = jax.tree.map(lambda x: x[:, n], found.turns.memory)
  memory_T = trajectories.texts(
    tokenizer,
    jax.tree.map(
      lambda first, after: np.concatenate([first[n : n + 1], after]),
      found.first_memory,
      of_n,
    ),
  )
  logprob_TxR = _trainer_log_probs(source, rows, params)
  turns = []
  for t, finish in enumerate(finish_T):
    if finish == SKIPPED:
      continue
    ids_S = rows.turns.ids_NxS[t]
    p, r = rows.turns.prompt_length_N[t], rows.turns.response_length_N[t]
    gap_R = logprob_TxR[t, :r] - rows.sampler_logprob_NxR[t, :r]
    last = t == len(finish_T) - 1
    turns.append(
      InspectedTurn(
        prompt=_with_control_tokens(tokenizer, ids_S[:p]),
        prompt_tokens=int(p),
        memory_before=memory_T[t],
        memory_after=None if last else memory_T[t + 1],
        finish_reason=FINISH_REASONS[finish],
        thought_tokens=int(thought_T[t]),
        tokens=tuple(tokenizer.token_text(i) for i in ids_S[p : p + r]),
        ratio_R=np.exp(gap_R),
        weight=float(rows.weight_N[t]),
      )
    )
  return turns


def _trainer_log_probs(
  source: Rollouts, rows: PolicyRows, params: dict
) -> np.ndarray:
  """float32 [T, R], as an update computes them; one row at a time."""
  agent = source.agent
  width = rows.turns.ids_NxS.shape[1]
  (batch,) = sequences.micro_batches(
    # Rows of no weight would be left out.
    rows.replace(weight_N=np.ones_like(rows.weight_N)),
    widths=(width,),
    micro_tokens=width,
    capacity=len(rows.weight_N),
  )
  logprob = update_lib.log_probs(
    agent.model, agent.memory.temperature, params, batch
  )
  result_TxR = np.zeros_like(rows.sampler_logprob_NxR)
  live_T = rows.turns.response_length_N > 0
  result_TxR[live_T] = np.asarray(logprob)[: live_T.sum(), 0]
  return result_TxR


def _with_control_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  """The text of ids, control tokens included."""
  control = frozenset(tokenizer.control_ids)
  parts = []
  for named, run in itertools.groupby(map(int, ids), control.__contains__):
    run = list(run)
    parts.append(
      ''.join(map(tokenizer.token_text, run))
      if named
      else tokenizer.decode(run)
    )
  return ''.join(parts)
