"""Small bugs, and the tests that must notice each of them.

`run.py` puts them into a copy of the code, one at a time. Most stand for something
that users of other systems tripped over.
"""

import dataclasses
from typing import NamedTuple


class _Test(NamedTuple):
  """A test file, whose tests are named by calling it."""

  path: str

  def __call__(self, *names: str) -> tuple[str, ...]:
    return tuple(f'tests/{self.path}.py::test_{name}' for name in names)


@dataclasses.dataclass(frozen=True)
class Edit:
  """One bug: a text of a file is replaced."""

  # What is wrong with it, in a few words.
  bug: str
  file: str
  # Stands in the file exactly once.
  before: str
  after: str
  # Node ids of tests, all of which must fail.
  tests: tuple[str, ...]


_AGENT_ROLLOUT = _Test('agent/test_rollout')
_BATCHES = _Test('data/test_batches')
_CHECKPOINT = _Test('train/test_checkpoint')
_DECODE = _Test('sampling/test_decode')
_GRPO = _Test('rl/test_grpo')
_LOG_PROBS = _Test('sampling/test_log_probs')
_MEMORY_AGENT = _Test('evals/methods/test_memory_agent')
_MEMORY_HEALTH = _Test('agent/test_memory_health')
_PREEMPTION = _Test('train/test_preemption')
_READER = _Test('agent/test_reader')
_REWARDS = _Test('test_rewards')
_ROLLOUTS = _Test('rl/test_rollouts')
_RULER = _Test('data/benchmarks/test_ruler')
_SCORING = _Test('rl/test_scoring')
_SEQUENCES = _Test('train/test_sequences')
_STAGES = _Test('rl/test_stages')
_TRAINER = _Test('train/test_trainer')
_TRAIN_STATE = _Test('train/test_train_state')
_TRAJECTORIES = _Test('agent/test_trajectories')
_TURNS = _Test('rl/test_turns')
_UPDATE = _Test('train/test_update')

# --- Rollouts: the scan, its sessions, and what a step samples -----------------

_SCAN = (
  Edit(
    'the turn is left out of a response key',
    'memagent_jax/agent/rollout.py',
    'jax.vmap(jax.random.fold_in)(key_N, turn_N),',
    'key_N,',
    _AGENT_ROLLOUT('every_turn_has_a_key_of_its_own'),
  ),
  Edit(
    'all turns of a window have one number',
    'memagent_jax/agent/rollout.py',
    'return (state, turn_N + 1), turns',
    'return (state, turn_N), turns',
    _AGENT_ROLLOUT('every_turn_has_a_key_of_its_own'),
  ),
  Edit(
    'the answer is asked for with the key of a turn',
    'memagent_jax/agent/rollout.py',
    'ANSWER_TURN = 2**31 - 1',
    'ANSWER_TURN = 0',
    _AGENT_ROLLOUT('every_turn_has_a_key_of_its_own'),
  ),
  Edit(
    'a turn is asked with the first memory again',
    'memagent_jax/agent/rollout.py',
    '    state, turns = lax.cond(',
    '    _, turns = lax.cond(',
    _AGENT_ROLLOUT('each_turn_is_a_conversation_of_its_own'),
  ),
  Edit(
    'rows without a chunk take turns',
    'memagent_jax/agent/rollout.py',
    'active_N=chunk.length_N > 0,',
    'active_N=None,',
    _AGENT_ROLLOUT('a_row_without_chunks_left_keeps_its_memory'),
  ),
  Edit(
    'the control id enters the memory',
    'memagent_jax/agent/rollout.py',
    'text = Tokens(response.ids_NxR, response.length_N - ended_N)',
    'text = Tokens(response.ids_NxR, response.length_N)',
    _AGENT_ROLLOUT('control_ids_and_thinking_never_enter_a_memory'),
  ),
  Edit(
    'thinking enters the memory',
    'memagent_jax/agent/rollout.py',
    'return tokens_lib.drop_tokens(text, thinking_NxR), thought_N',
    'return text, thought_N',
    _AGENT_ROLLOUT('control_ids_and_thinking_never_enter_a_memory'),
  ),
  Edit(
    'a guard takes what is less likely',
    'memagent_jax/agent/memory_rules.py',
    'return given_N | (log_ratio_N >= math.log(self.ratio))',
    'return given_N | (log_ratio_N <= math.log(self.ratio))',
    _AGENT_ROLLOUT('a_guard_goes_by_its_ratio_unless_the_chunk_gives_it'),
  ),
  Edit(
    'all rollouts of a document are number 0',
    'memagent_jax/agent/session.py',
    '    if rollouts is None:\n',
    '    if True:\n',
    _TRAJECTORIES('turns_are_those_of_the_documents'),
  ),
  Edit(
    'an early answer reads its tail for good',
    'memagent_jax/agent/session.py',
    'state, _ = self._scan(state, window, turn)',
    'state, _ = self._scan(state, window, turn); self._state = state',
    _READER('answering_disturbs_nothing_and_reads_the_tail'),
  ),
  Edit(
    'chunks are dealt out rollout by rollout',
    'memagent_jax/agent/engine.py',
    'lambda x: np.repeat(x, rollouts, axis=1), documents.chunk',
    'lambda x: np.concatenate([x] * rollouts, axis=1), documents.chunk',
    _TRAJECTORIES('turns_are_those_of_the_documents'),
  ),
  Edit(
    'questions are dealt out rollout by rollout',
    'memagent_jax/agent/engine.py',
    'lambda x: np.repeat(x, rollouts, axis=0),',
    'lambda x: np.concatenate([x] * rollouts),',
    _TRAJECTORIES('turns_are_those_of_the_documents'),
  ),
  Edit(
    'every reading of a document samples alike',
    'memagent_jax/agent/engine.py',
    'number_N = (rollouts * readings + np.arange(rollouts)).reshape(-1)',
    'number_N = (0 * readings + np.arange(rollouts)).reshape(-1)',
    _ROLLOUTS('a_document_is_sampled_anew_in_every_epoch'),
  ),
  Edit(
    'memory is decoded and encoded again between windows',
    'memagent_jax/evals/methods/memory_agent.py',
    '      # A call that compiled says nothing of the others.\n',
    '      _saved = session.state()\n'
    "      _saved['memory_ids'] = [\n"
    '        model.tokenizer.encode(model.tokenizer.decode(ids))\n'
    '        [: self.reading.memory_tokens]\n'
    "        for ids in _saved['memory_ids']\n"
    '      ]\n'
    '      session.restore(_saved)\n',
    _MEMORY_AGENT('memories_go_from_window_to_window_as_ids'),
  ),
  Edit(
    'half of the memories are cut, and no alarm is set off',
    'memagent_jax/agent/memory_health.py',
    "if share('saturated') > _SATURATED:",
    "if share('saturated') > 1.0:",
    _MEMORY_HEALTH('saturation_sets_off_an_alarm'),
  ),
  Edit(
    'turns that read nothing are among the unchanged',
    'memagent_jax/agent/memory_health.py',
    '    if finish == SKIPPED:\n      continue\n',
    '    finish = min(finish, 1)\n',
    _MEMORY_HEALTH('lengths_and_shares_are_of_the_turns_that_were_read'),
  ),
)

_STEP = (
  Edit(
    'log-probs of the reference are those of temperature 1',
    'memagent_jax/rl/rollouts.py',
    'model, temperature, self._reference(params), batch',
    'model, 1.0, self._reference(params), batch',
    _ROLLOUTS('reference_and_trainer_have_the_temperature_of_the_sampler'),
  ),
  Edit(
    'log-probs of the trainer are those of temperature 1',
    'memagent_jax/rl/rollouts.py',
    'update_lib.log_probs(model, temperature, params, batch)',
    'update_lib.log_probs(model, 1.0, params, batch)',
    _ROLLOUTS('reference_and_trainer_have_the_temperature_of_the_sampler'),
  ),
  Edit(
    "the reference is today's policy",
    'memagent_jax/rl/rollouts.py',
    'self._reference = lambda params: copy',
    'self._reference = lambda params: params',
    _ROLLOUTS('log_probs_of_reference_and_trainer'),
  ),
  Edit(
    'alarms are not passed on',
    'memagent_jax/rl/rollouts.py',
    'warnings=memory_health.alarms(metrics),',
    'warnings=(),',
    _ROLLOUTS('saturated_memories_are_a_warning_of_the_step'),
  ),
  Edit(
    'dynamic sampling samples until it is full',
    'memagent_jax/rl/rollouts.py',
    'for _ in range(1 + self.objective.max_refills):',
    'while True:',
    _ROLLOUTS('refilling_ends_with_its_budget'),
  ),
  Edit(
    'dynamic sampling never refills',
    'memagent_jax/rl/rollouts.py',
    'for _ in range(1 + self.objective.max_refills):',
    'for _ in range(1):',
    _ROLLOUTS('refilling_ends_with_its_budget'),
  ),
  Edit(
    'constant groups are trained on',
    'memagent_jax/rl/rollouts.py',
    'if not degenerate\n',
    'if degenerate in (True, False)\n',
    _ROLLOUTS('refilling_ends_with_its_budget'),
  ),
  Edit(
    'groups beyond the batch are trained on',
    'memagent_jax/rl/rollouts.py',
    '    groups = groups[:documents]\n',
    '',
    _ROLLOUTS('constant_groups_are_replaced_within_the_budget'),
  ),
  Edit(
    'counts are averaged over the batches of a step',
    'memagent_jax/rl/rollouts.py',
    '{name: sum(m[name] for m in measured) for name in _COUNTS}',
    '{}',
    _ROLLOUTS('constant_groups_are_replaced_within_the_budget'),
  ),
  Edit(
    'every mini-batch has all groups',
    'memagent_jax/rl/rollouts.py',
    'dealt = groups[m :: c.mini_batches] or [weightless]',
    'dealt = groups or [weightless]',
    _ROLLOUTS('mini_batches_share_out_whole_groups'),
  ),
  Edit(
    'mini-batches without groups are left out',
    'memagent_jax/rl/rollouts.py',
    'for m in range(c.mini_batches):\n',
    'for m in range(min(c.mini_batches, len(groups))):\n',
    _ROLLOUTS('mini_batches_share_out_whole_groups'),
  ),
  Edit(
    'first memories of a stage are not handed on',
    'memagent_jax/rl/rollouts.py',
    'first_memory=first,',
    'first_memory=None,',
    _ROLLOUTS('every_reading_begins_with_the_templates_memory_by_default'),
  ),
  Edit(
    'a tenth of the documents begin with a distractor by default',
    'memagent_jax/rl/stages.py',
    'distractor_memory_share: float = 0.0',
    'distractor_memory_share: float = 0.1',
    _ROLLOUTS('every_reading_begins_with_the_templates_memory_by_default'),
  ),
  Edit(
    'a stage has one step too many',
    'memagent_jax/rl/stages.py',
    'step < stage.until_step',
    'step <= stage.until_step',
    _STAGES('a_stage_ends_before_its_last_step'),
  ),
  Edit(
    'greedy rollouts are trained on',
    'memagent_jax/rl/rollouts.py',
    'reading.temperature <= 0 or reading.top_p < 1',
    'reading.top_p < 1',
    _ROLLOUTS('readings_that_cannot_be_trained_on_are_refused'),
  ),
  Edit(
    'the reward is measured as the metric',
    'memagent_jax/rl/validation.py',
    'metrics.append(verdicts.metric_BxG.mean())',
    'metrics.append(verdicts.reward_BxG.mean())',
    ('tests/rl/test_validation.py::test_means_are_over_all_documents',),
  ),
)

# --- Turns and advantages ------------------------------------------------------

_ADVANTAGES = (
  Edit(
    'the standard deviation is taken over turns',
    'memagent_jax/rl/turns.py',
    '  weight_TxN = np.array(weight)\n',
    '  weight_TxN = np.array(weight)\n'
    '  if objective.normalise_std:\n'
    '    _turns = weight_TxN.sum(axis=0).astype(int).reshape(score_BxG.shape)\n'
    '    _std = [\n'
    '      np.repeat(s, t).std(ddof=1)\n'
    '      for s, t in zip(score_BxG, _turns, strict=True)\n'
    '    ]\n'
    '    _mean = score_BxG.mean(axis=1, keepdims=True)\n'
    '    _all = ((score_BxG - _mean) / np.array(_std)[:, None]).reshape(-1)\n'
    '    advantage_TxN = np.broadcast_to(_all, weight_TxN.shape)\n',
    _TURNS('advantages_are_of_trajectories_whatever_their_turns'),
  ),
  Edit(
    'advantages go to the turns in another order',
    'memagent_jax/rl/turns.py',
    'advantage_N=np.asarray(advantage_TxN).reshape(-1),',
    'advantage_N=np.asarray(advantage_TxN).T.reshape(-1),',
    _TURNS('advantages_are_of_trajectories_whatever_their_turns'),
  ),
  Edit(
    'a prompt has the memory that its turn wrote',
    'memagent_jax/rl/turns.py',
    'jnp.concatenate([first[None], after[:-1]])',
    'after',
    _TURNS('sequences_are_the_prompts_and_responses_of_all_turns'),
  ),
  Edit(
    'the answer is learned from the first memory',
    'memagent_jax/rl/turns.py',
    'jax.tree.map(lambda x: x[-1], turns.memory)',
    'jax.tree.map(lambda x: x[0], turns.memory)',
    _TURNS('sequences_are_the_prompts_and_responses_of_all_turns'),
  ),
  Edit(
    'memory turns are learned where only answers are to be',
    'memagent_jax/rl/turns.py',
    'weight_TxN[:-1] = 0.0',
    'weight_TxN[:0] = 0.0',
    _TURNS('only_answers_have_a_weight_where_memories_are_not_learned'),
  ),
  Edit(
    'groups are split by rollouts',
    'memagent_jax/rl/turns.py',
    'x[:, b].reshape(-1, *x.shape[3:])',
    'x[:, :, b].reshape(-1, *x.shape[3:])',
    _TURNS('a_group_is_all_turns_of_its_document'),
  ),
  Edit(
    'turns of both signs are merged',
    'memagent_jax/rl/turns.py',
    '      np.sign(sequences.advantage_N[n]),\n',
    '',
    _TURNS('equal_turns_are_one_of_their_weight_and_mean_advantage'),
  ),
  Edit(
    'a merged turn has the sum of the advantages',
    'memagent_jax/rl/turns.py',
    'total_N[chosen] / weight_N[chosen]',
    'total_N[chosen]',
    _TURNS('equal_turns_are_one_of_their_weight_and_mean_advantage'),
  ),
  Edit(
    'turns of one text are merged wherever the prompt ends',
    'memagent_jax/rl/turns.py',
    '      int(turns.prompt_length_N[n]),\n',
    '',
    _TURNS('equal_turns_are_one_of_their_weight_and_mean_advantage'),
  ),
  Edit(
    'padding keeps equal turns apart',
    'memagent_jax/rl/turns.py',
    'turns.ids_NxS[n, : length_N[n]].tobytes(),',
    'turns.ids_NxS[n].tobytes(),',
    _TURNS('what_stands_behind_a_turn_keeps_nothing_apart'),
  ),
  Edit(
    'a standard deviation of all, not of a sample',
    'memagent_jax/rl/grpo.py',
    'reward_BxG.std(axis=1, ddof=1, keepdims=True)',
    'reward_BxG.std(axis=1, ddof=0, keepdims=True)',
    _GRPO('advantages_equal_a_loop[dapo]'),
  ),
  Edit(
    'the baseline is the mean of the whole batch',
    'memagent_jax/rl/grpo.py',
    'result = reward_BxG - reward_BxG.mean(axis=1, keepdims=True)',
    'result = reward_BxG - reward_BxG.mean()',
    _GRPO('advantages_equal_a_loop'),
  ),
  Edit(
    'rounding gives constant groups an advantage',
    'memagent_jax/rl/grpo.py',
    'return jnp.where(degenerate_groups(reward_BxG)[:, None], 0.0, result)',
    'return result',
    _GRPO('constant_groups_are_exactly_zero'),
  ),
  Edit(
    'skipped turns have a weight',
    'memagent_jax/rl/grpo.py',
    'live_CxN = finish_CxN != SKIPPED',
    'live_CxN = finish_CxN >= 0',
    _TURNS('advantages_are_of_trajectories_whatever_their_turns')
    + _GRPO('overlong_filter'),
  ),
  Edit(
    'trajectories that were cut teach all the same',
    'memagent_jax/rl/grpo.py',
    'live_CxN = live_CxN & kept_N',
    'live_CxN = live_CxN',
    _TURNS('trajectories_that_were_cut_have_no_weight_in_any_turn'),
  ),
  Edit(
    'only trajectories of which all turns were cut are filtered',
    'memagent_jax/rl/grpo.py',
    'jnp.any(memory_finish_CxN == LENGTH, axis=0)',
    'jnp.all(memory_finish_CxN == LENGTH, axis=0)',
    _GRPO('overlong_filter'),
  ),
  Edit(
    'advantages are numbered rollout by rollout',
    'memagent_jax/rl/grpo.py',
    'advantage_BxG.reshape(-1), finish_CxN.shape',
    'advantage_BxG.T.reshape(-1), finish_CxN.shape',
    _GRPO('rows_are_numbered_document_by_document'),
  ),
  Edit(
    'the overlong penalty begins at the cap',
    'memagent_jax/rl/grpo.py',
    'jnp.asarray(length_tokens) - (cap_tokens - buffer_tokens)',
    'jnp.asarray(length_tokens) - cap_tokens',
    _GRPO('soft_overlong_penalty'),
  ),
  Edit(
    'truncation is counted over skipped turns too',
    'memagent_jax/rl/scoring.py',
    'np.mean(memory_finish[read] == LENGTH)',
    'np.mean(memory_finish == LENGTH)',
    _SCORING('truncation_is_of_the_turns_that_read_something'),
  ),
  Edit(
    'the reward is logged as the metric',
    'memagent_jax/rl/scoring.py',
    'float(verdicts.metric_BxG.mean())',
    'float(verdicts.reward_BxG.mean())',
    _SCORING('reward_and_metric_are_two_numbers'),
  ),
  Edit(
    'skipped turns are counted as generated',
    'memagent_jax/rl/scoring.py',
    'int(read.sum()) + len(answer_finish)',
    'int(read.size) + len(answer_finish)',
    _SCORING('turns_and_tokens_that_were_sampled_are_counted'),
  ),
  Edit(
    'the shortest memory is punished',
    'memagent_jax/rl/scoring.py',
    'trajectories.turns.response.length_N.max(axis=0),',
    'trajectories.turns.response.length_N.min(axis=0),',
    _SCORING('the_longest_memory_of_a_trajectory_is_punished'),
  ),
  Edit(
    'overlong answers are rewarded',
    'memagent_jax/rl/scoring.py',
    'score_BxG = score_BxG + np.asarray(penalty_N)',
    'score_BxG = score_BxG - np.asarray(penalty_N)',
    _SCORING('scores_are_rewards_without_overlong_responses'),
  ),
  Edit(
    'dynamic sampling keeps groups that differ in length alone',
    'memagent_jax/rl/scoring.py',
    'degenerate_B | np.asarray(grpo.degenerate_groups(reward_BxG))',
    'degenerate_B',
    _SCORING(
      'groups_apart_by_length_alone_are_degenerate_for_dynamic_sampling'
    ),
  ),
)

# --- The loss ------------------------------------------------------------------

_LOOP = 'loss_and_gradient_equal_a_loop'
_LOSS = (
  Edit(
    'both sides are clipped alike',
    'memagent_jax/rl/grpo.py',
    'jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_high)',
    'jnp.clip(ratio, 1.0 - config.clip_low, 1.0 + config.clip_low)',
    _GRPO(
      f'{_LOOP}[paper]', 'dual_clip_bounds_the_loss_of_negative_advantages'
    ),
  ),
  Edit(
    'the optimist clips',
    'memagent_jax/rl/grpo.py',
    'loss = jnp.maximum(-advantage * ratio, -advantage * clipped)',
    'loss = jnp.minimum(-advantage * ratio, -advantage * clipped)',
    _GRPO(f'{_LOOP}[paper]'),
  ),
  Edit(
    'dual clip bounds positive advantages too',
    'memagent_jax/rl/grpo.py',
    'loss = jnp.where(advantage < 0, bounded, loss)',
    'loss = bounded',
    _GRPO('dual_clip_bounds_the_loss_of_negative_advantages'),
  ),
  Edit(
    'the token mean is one of sequences',
    'memagent_jax/rl/grpo.py',
    "if config.aggregation == 'token_mean':",
    "if config.aggregation == 'none':",
    _GRPO(f'{_LOOP}[paper]'),
  ),
  Edit(
    "Dr. GRPO's divisor is the number of tokens",
    'memagent_jax/rl/grpo.py',
    'rows * config.constant_tokens',
    'weight_NxR.sum()',
    _GRPO(f'{_LOOP}[dr_grpo]'),
  ),
  Edit(
    'KL is that of the other direction',
    'memagent_jax/rl/grpo.py',
    'x = reference_logprob - logprob\n',
    'x = logprob - reference_logprob\n',
    _GRPO('corrected_kl_has_the_analytic_gradient[k3]'),
  ),
  Edit(
    "a gradient flows through k2's ratio",
    'memagent_jax/rl/grpo.py',
    '    ratio = lax.stop_gradient(ratio)\n',
    '    ratio = ratio * 1.0\n',
    _GRPO('corrected_kl_has_the_analytic_gradient[k2]'),
  ),
  Edit(
    'the correction of KL is forgotten',
    'memagent_jax/rl/grpo.py',
    'return ratio * estimate',
    'return estimate',
    _GRPO('corrected_kl_has_the_analytic_gradient[k1]'),
  ),
  Edit(
    'a gradient flows through the old policy',
    'memagent_jax/rl/grpo.py',
    'real(logprob_NxR), constant(old_logprob_NxR)',
    'real(logprob_NxR), real(old_logprob_NxR)',
    _GRPO('the_old_policy_is_a_constant'),
  ),
  Edit(
    'importance weights are not truncated',
    'memagent_jax/rl/grpo.py',
    'jnp.minimum(_bounded_exp(gap), config.importance_cap)',
    '_bounded_exp(gap)',
    _GRPO(f'{_LOOP}[everything]'),
  ),
  Edit(
    'entropy is punished',
    'memagent_jax/rl/grpo.py',
    "loss = loss - config.entropy_coefficient * metrics['entropy']",
    "loss = loss + config.entropy_coefficient * metrics['entropy']",
    _GRPO(f'{_LOOP}[everything]'),
  ),
  Edit(
    'weights of sequences are ignored',
    'memagent_jax/rl/grpo.py',
    'jnp.where(mask_NxR, row_weight_N[:, None], 0.0)',
    'mask_NxR.astype(jnp.float32)',
    _GRPO(f'{_LOOP}[paper]'),
  ),
  Edit(
    'absurd ratios are infinite',
    'memagent_jax/rl/grpo.py',
    '_LARGEST_LOG_RATIO = 20.0',
    '_LARGEST_LOG_RATIO = 1e9',
    _GRPO('absurd_ratios_give_finite_gradients'),
  ),
  Edit(
    'the loss is that of temperature 1',
    'memagent_jax/rl/policy.py',
    'temperature=self.temperature,',
    'temperature=1.0,',
    ('tests/rl/test_policy.py::test_policy_equals_a_loss_in_numpy[dapo]',),
  ),
  Edit(
    'the log-prob of a token is that of the one before',
    'memagent_jax/sampling/log_probs.py',
    'jnp.clip(position_NxR - 1, 0, s - 1)[..., None]',
    'jnp.clip(position_NxR, 0, s - 1)[..., None]',
    _LOG_PROBS('equal_what_decode_recorded[sampled]'),
  ),
  Edit(
    "the rotation's base is that of the whole sequence",
    'memagent_jax/sampling/log_probs.py',
    'rope.frequencies(config, prompt_length_N),',
    'rope.frequencies(config, prompt_length_N + response_length_N),',
    _LOG_PROBS('equal_what_decode_recorded[dynamic]'),
  ),
)

# --- The update ----------------------------------------------------------------

_UPDATES = (
  Edit(
    'the gradient is a sum',
    'memagent_jax/train/update.py',
    'jax.tree.map(lambda g: g / weight, gradients)',
    'jax.tree.map(lambda g: g, gradients)',
    _UPDATE('a_step_is_one_on_the_mean_of_all_widths_and_micro_batches'),
  ),
  Edit(
    'the last micro-batch of a width is left out',
    'memagent_jax/train/update.py',
    '      batch.count,\n      lambda',
    '      batch.count - 1,\n      lambda',
    _UPDATE('a_step_is_one_on_the_mean_of_all_widths_and_micro_batches'),
  ),
  Edit(
    'only the first width is learned from',
    'memagent_jax/train/update.py',
    '  for batch in batches:\n',
    '  for batch in batches[:1]:\n',
    _UPDATE('a_step_is_one_on_the_mean_of_all_widths_and_micro_batches'),
  ),
  Edit(
    'micro-batches beyond the count are learned from',
    'memagent_jax/train/update.py',
    '      batch.count,\n      lambda',
    '      jax.tree.leaves(batch.sequences)[0].shape[0],\n      lambda',
    _UPDATE('a_step_is_one_on_the_mean_of_all_widths_and_micro_batches'),
  ),
  Edit(
    'momentum moves params where nothing has a weight',
    'memagent_jax/train/update.py',
    'anything=loss.weight > 0.0',
    'anything=True',
    _UPDATE('a_step_without_any_weight_changes_nothing'),
  ),
  Edit(
    'updates that are not finite are applied',
    'memagent_jax/train/train_state.py',
    'jnp.where(finite & anything, a, b)',
    'jnp.where(anything, a, b)',
    _TRAIN_STATE('an_update_that_is_not_finite_changes_nothing'),
  ),
  Edit(
    'updates that are not finite are not counted',
    'memagent_jax/train/train_state.py',
    'skipped=state.skipped + ~finite,',
    'skipped=state.skipped,',
    _TRAIN_STATE('an_update_that_is_not_finite_changes_nothing'),
  ),
  Edit(
    'gradients are not clipped',
    'memagent_jax/train/train_state.py',
    'return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)',
    'return adamw',
    _TRAIN_STATE('a_gradient_is_cut_to_its_norm'),
  ),
  Edit(
    'a sequence that fills its width goes to the next',
    'memagent_jax/train/sequences.py',
    'np.searchsorted(np.asarray(widths), length_N)',
    "np.searchsorted(np.asarray(widths), length_N, side='right')",
    _SEQUENCES('every_row_that_counts_comes_once_and_whole'),
  ),
  Edit(
    'one optimizer step for each width',
    'memagent_jax/train/trainer.py',
    '    state, metrics = update(experience.objective, optimizer, state, batches)\n'
    '    measured.append(metrics)\n',
    '    for batch in batches:\n'
    '      state, metrics = update(\n'
    '        experience.objective, optimizer, state, (batch,)\n'
    '      )\n'
    '      measured.append(metrics)\n',
    _TRAINER('all_widths_of_a_mini_batch_are_one_optimizer_step'),
  ),
  Edit(
    'only the last mini-batch is learned from',
    'memagent_jax/train/trainer.py',
    'for batches in experience.mini_batches:',
    'for batches in experience.mini_batches[-1:]:',
    _TRAINER('all_widths_of_a_mini_batch_are_one_optimizer_step'),
  ),
  Edit(
    'tokens per second are gone from the log',
    'memagent_jax/train/trainer.py',
    "        'tokens_per_second': experience.trained_tokens / (updated - measured),\n",
    '',
    _TRAINER('tokens_per_second_are_those_of_a_step_without_its_measuring'),
  ),
  Edit(
    'only process 0 measures',
    'memagent_jax/train/trainer.py',
    'for evaluator in self._evaluators:',
    'for evaluator in self._evaluators if sharding.is_main() else ():',
    _TRAINER('every_process_measures'),
  ),
  Edit(
    'the base model is not measured',
    'memagent_jax/train/trainer.py',
    'step == num_steps or step % evaluate_every_steps == 0',
    'step == num_steps or (step and step % evaluate_every_steps == 0)',
    _TRAINER('the_base_model_is_measured_first_and_the_last_params_too'),
  ),
  Edit(
    'a run ends where one measurement is good enough',
    'memagent_jax/train/trainer.py',
    '  return all(\n    measured.get',
    '  return any(\n    measured.get',
    _TRAINER('a_run_ends_where_it_is_good_enough'),
  ),
  Edit(
    'a run of broken updates goes on',
    'memagent_jax/train/trainer.py',
    'if skipped > _MAX_SKIPPED:',
    'if skipped > 2 * _MAX_SKIPPED:',
    _TRAINER('updates_that_are_not_finite_end_the_run'),
  ),
)

# --- Decoding ------------------------------------------------------------------

_FREQUENCIES = 'samples_have_the_frequencies_their_log_probs_say'
_KEYS = 'a_token_s_key_is_its_rows_key_and_its_position'
_DECODING = (
  Edit(
    "the position is left out of a token's key",
    'memagent_jax/sampling/decode.py',
    'jax.random.fold_in(key, position), row',
    'key, row',
    _DECODE(_KEYS),
  ),
  Edit(
    "the example is left out of a row's key",
    'memagent_jax/sampling/decode.py',
    'key = jax.random.fold_in(jax.random.key(seed), example)',
    'key = jax.random.key(seed)',
    _DECODE(_KEYS),
  ),
  Edit(
    "the rollout is left out of a row's key",
    'memagent_jax/sampling/decode.py',
    'return jax.random.fold_in(key, rollout)',
    'return key',
    _DECODE(_KEYS),
  ),
  Edit(
    "the seed is left out of a row's key",
    'memagent_jax/sampling/decode.py',
    'jax.random.key(seed)',
    'jax.random.key(0 * seed)',
    _DECODE(_KEYS),
  ),
  Edit(
    "an example's number is another one in every process",
    'memagent_jax/sampling/decode.py',
    "return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')",
    'return hash(name) % 2**32',
    _DECODE('an_examples_number_is_that_of_its_name'),
  ),
  Edit(
    'the temperature is forgotten',
    'memagent_jax/sampling/decode.py',
    'logits_NxV = logits_NxV / sampling.temperature',
    'logits_NxV = logits_NxV / 1.0',
    _DECODE(_FREQUENCIES),
  ),
  Edit(
    'top-k leaves out the k-th',
    'memagent_jax/sampling/decode.py',
    'logits_NxV = jnp.where(logits_NxV >= least_Nx1, logits_NxV, -jnp.inf)\n'
    '  if sampling.top_p',
    'logits_NxV = jnp.where(logits_NxV > least_Nx1, logits_NxV, -jnp.inf)\n'
    '  if sampling.top_p',
    _DECODE(_FREQUENCIES),
  ),
  Edit(
    'top-p leaves out the token that reaches it',
    'memagent_jax/sampling/decode.py',
    'jnp.cumsum(probability_NxV, axis=-1) - probability_NxV',
    'jnp.cumsum(probability_NxV, axis=-1)',
    _DECODE('top_p_keeps_the_smallest_set_that_holds_it'),
  ),
  Edit(
    'control ids end nothing',
    'memagent_jax/sampling/decode.py',
    'ended_N = live_N & jnp.isin(token_N, controls)',
    'ended_N = live_N & False',
    _DECODE('a_control_id_ends_its_row_and_is_counted'),
  ),
  Edit(
    'rows that ended go on counting',
    'memagent_jax/sampling/decode.py',
    'length_N=old.length_N + live_N,',
    'length_N=old.length_N + 1,',
    _DECODE('a_control_id_ends_its_row_and_is_counted'),
  ),
  Edit(
    'log-probs go on behind the end',
    'memagent_jax/sampling/decode.py',
    'logprob_N = jnp.where(live_N, logprob_N, 0.0)',
    'logprob_N = logprob_N + 0.0',
    _DECODE('a_control_id_ends_its_row_and_is_counted'),
  ),
  Edit(
    'skipped rows are said to be cut',
    'memagent_jax/sampling/decode.py',
    'jnp.where(active_N, LENGTH, SKIPPED).astype(jnp.int32)',
    'jnp.full((n,), LENGTH, jnp.int32)',
    _DECODE('inactive_rows_are_skipped'),
  ),
  Edit(
    'a response begins one position too late',
    'memagent_jax/sampling/decode.py',
    '(prefilled.length_N + slot)[:, None],',
    '(prefilled.length_N + slot + 1)[:, None],',
    _DECODE('greedy_follows_the_argmax_of_full_passes'),
  ),
  Edit(
    'the first token follows the padding',
    'memagent_jax/sampling/decode.py',
    'last_N = jnp.maximum(prompt.length_N - 1, 0)',
    'last_N = jnp.full_like(prompt.length_N, p - 1)',
    _DECODE('greedy_follows_the_argmax_of_full_passes'),
  ),
  Edit(
    'padding keeps equal prompts apart',
    'memagent_jax/sampling/decode.py',
    'ids_NxW = jnp.where(used_NxW, prompt.ids_NxW, -1)',
    'ids_NxW = prompt.ids_NxW',
    _DECODE('equal_prompts_are_read_once_in_blocks'),
  ),
)

# --- Scorers -------------------------------------------------------------------

_SCORERS = (
  Edit(
    'the first box is read',
    'memagent_jax/rewards.py',
    'start = text.find(_BOX, end)',
    'start = -1',
    _REWARDS('the_last_box', 'boxed_em'),
  ),
  Edit(
    'a box that was cut is passed over',
    'memagent_jax/rewards.py',
    '    if end is None:\n      return None\n',
    '    if end is None:\n      break\n',
    _REWARDS('the_last_box', 'boxed_em'),
  ),
  Edit(
    'articles inside of words are dropped',
    'memagent_jax/rewards.py',
    r"re.compile(r'\b(?:a|an|the)\b')",
    r"re.compile(r'(?:a|an|the)')",
    _REWARDS('the_normal_form'),
  ),
  Edit(
    'punctuation becomes a space',
    'memagent_jax/rewards.py',
    "str.maketrans('', '', string.punctuation)",
    "str.maketrans(dict.fromkeys(string.punctuation, ' '))",
    _REWARDS('the_normal_form'),
  ),
  Edit(
    'all of the equivalent answers are asked for',
    'memagent_jax/rewards.py',
    'float(any(got == _comparable(gold) for gold in answers))',
    'float(all(got == _comparable(gold) for gold in answers))',
    _REWARDS('boxed_em', 'em'),
  ),
  Edit(
    'nothing equals an answer of which nothing is left',
    'memagent_jax/rewards.py',
    'return _squad_form(text) or _bare(text)',
    'return _squad_form(text)',
    _REWARDS('boxed_em', 'sub_em'),
  ),
  Edit(
    'a text without a box is its own answer',
    'memagent_jax/rewards.py',
    "return Score(0.0, 'no_box') if box is None else _exact(box, answers)",
    'return _exact(prediction if box is None else box, answers)',
    _REWARDS('boxed_em'),
  ),
  Edit(
    'an answer is listed wherever its letters are',
    'memagent_jax/rewards.py',
    "return bool(tokens) and f' {tokens} ' in f' {text} '",
    'return bool(tokens) and tokens in text',
    _REWARDS('boxed_all', 'sub_em'),
  ),
  Edit(
    'answers that are listed twice count twice',
    'memagent_jax/rewards.py',
    'required = {_comparable(answer) for answer in answers}',
    'required = [_comparable(answer) for answer in answers]',
    _REWARDS('boxed_all'),
  ),
  Edit(
    'F1 is a precision',
    'memagent_jax/rewards.py',
    '2 * same / (got_count.total() + gold_count.total())',
    'same / got_count.total()',
    _REWARDS('f1'),
  ),
  Edit(
    'yes and no have a partial value',
    'memagent_jax/rewards.py',
    'if got != gold and not _CLOSED_ANSWERS.isdisjoint((got, gold)):',
    'if got != gold and got == gold:',
    _REWARDS('f1'),
  ),
  Edit(
    "RULER's match minds the case",
    'memagent_jax/rewards.py',
    'float(answer.lower() in text) for answer in answers',
    'float(answer in text) for answer in answers',
    _REWARDS('ruler_part', 'ruler_all'),
  ),
  Edit(
    "RULER's share is that of any answer",
    'memagent_jax/rewards.py',
    'lambda found: sum(found) / len(found)',
    'max',
    _REWARDS('ruler_all'),
  ),
  Edit(
    'the published metric is put right',
    'memagent_jax/rewards.py',
    'float(gold in got or got in gold)',
    'float(gold in got)',
    _REWARDS('sub_em'),
  ),
  Edit(
    'the metric is scored by the scorer of the reward',
    'memagent_jax/agent/trajectories.py',
    'rewards.score(batch.metrics[b], answer, batch.answers[b]).value',
    'rewards.score(batch.rewards[b], answer, batch.answers[b]).value',
    _TRAJECTORIES('verdicts_are_of_the_documents_own_scorers'),
  ),
  Edit(
    'the control id is in the text of an answer',
    'memagent_jax/agent/turns.py',
    'return Tokens(response.ids_NxR, response.length_N - ended_N)',
    'return Tokens(response.ids_NxR, response.length_N)',
    _TRAJECTORIES('the_control_id_of_an_answer_is_not_of_its_text'),
  ),
)

# --- Resuming, and being stopped -----------------------------------------------

_SIGTERM = 'sigterm_anywhere_leaves_a_checkpoint_of_its_step'
_RESUME = (
  Edit(
    'what the processes agreed on is not latched',
    'memagent_jax/train/preemption.py',
    'self._latched = self._latched or now',
    'self._latched = now',
    _PREEMPTION('the_step_that_two_processes_agreed_on_is_latched'),
  ),
  Edit(
    'a handler takes the signal from the service',
    'memagent_jax/train/preemption.py',
    'if jax.process_count() == 1:',
    'if jax.process_count() > 0:',
    _PREEMPTION('the_step_that_two_processes_agreed_on_is_latched'),
  ),
  Edit(
    'the handler stays behind',
    'memagent_jax/train/preemption.py',
    'signal.signal(signal.SIGTERM, self._before)',
    'pass',
    _PREEMPTION('a_signal_is_latched_and_then_handled_as_before'),
  ),
  Edit(
    'a signal in a rollout is forgotten',
    'memagent_jax/train/trainer.py',
    '      made = time.perf_counter()\n',
    '      made = time.perf_counter()\n      preemption._latched = False\n',
    _TRAINER(f'{_SIGTERM}[source]', f'{_SIGTERM}[evaluator]'),
  ),
  Edit(
    'nobody handles a signal in a rollout',
    'memagent_jax/train/trainer.py',
    '      experience = experience_source.next(step, reading_params)\n',
    '      preemption.__exit__()\n'
    '      experience = experience_source.next(step, reading_params)\n'
    '      preemption.__enter__()\n',
    _TRAINER(f'{_SIGTERM}[source]'),
  ),
  Edit(
    'nobody handles a signal in a measurement',
    'memagent_jax/train/trainer.py',
    '        metrics |= measure(reading_params, step)\n',
    '        preemption.__exit__()\n'
    '        metrics |= measure(reading_params, step)\n'
    '        preemption.__enter__()\n',
    _TRAINER(f'{_SIGTERM}[evaluator]'),
  ),
  Edit(
    'nobody handles a signal in a save',
    'memagent_jax/train/trainer.py',
    '        save(step + 1)\n',
    '        preemption.__exit__()\n'
    '        save(step + 1)\n'
    '        preemption.__enter__()\n',
    _TRAINER(f'{_SIGTERM}[save]'),
  ),
  Edit(
    'a signal ends a run without a checkpoint',
    'memagent_jax/train/trainer.py',
    '        preempted\n        or step + 1',
    '        step + 1',
    _TRAINER(_SIGTERM),
  ),
  Edit(
    'the source starts over after a resume',
    'memagent_jax/train/trainer.py',
    "experience_source.restore(restored.extras['source'])",
    "restored.extras['source']",
    _TRAINER('what_a_run_lost_is_done_again'),
  ),
  Edit(
    'a step is left out after a resume',
    'memagent_jax/train/trainer.py',
    'first_step = restored.step\n',
    'first_step = restored.step + 1\n',
    _TRAINER('what_a_run_lost_is_done_again'),
  ),
  Edit(
    'dull steps before an interruption are forgotten',
    'memagent_jax/train/trainer.py',
    "dull_steps = restored.extras['dull_steps']",
    'dull_steps = 0',
    _TRAINER('rewards_that_are_all_alike_are_a_warning'),
  ),
  Edit(
    'a resumed log has a step twice',
    'memagent_jax/train/metric_log.py',
    "if row['step'] < first_step]",
    "if row['step'] <= first_step]",
    (
      'tests/train/test_metric_log.py::'
      'test_a_resumed_run_drops_the_steps_it_repeats',
    ),
  ),
  Edit(
    'damaged checkpoints are restored',
    'memagent_jax/train/checkpoint.py',
    'fault = manifest.first_difference(path)',
    'fault = None',
    _CHECKPOINT('other_damage_is_found[cut]'),
  ),
  Edit(
    'the oldest checkpoint is restored',
    'memagent_jax/train/checkpoint.py',
    'for step in sorted(steps, reverse=True):',
    'for step in sorted(steps):',
    _CHECKPOINT('only_the_latest_are_kept'),
  ),
  Edit(
    'a run whose checkpoints are all damaged starts over',
    'memagent_jax/train/checkpoint.py',
    'return _ALL_DAMAGED if damaged else _NOTHING',
    'return _NOTHING',
    _CHECKPOINT('nothing_but_damage_is_an_error_each_time'),
  ),
  Edit(
    'counters run on while they are written',
    'memagent_jax/train/checkpoint.py',
    "'extras': _exact_json(extras),",
    "'extras': extras,",
    _CHECKPOINT('extras_are_taken_at_the_save'),
  ),
  Edit(
    'a failed save is passed over',
    'memagent_jax/train/checkpoint.py',
    'if error is not None or failed:',
    'if failed > 1:',
    _CHECKPOINT('a_failed_write_surfaces_at_the_next_call'),
  ),
  Edit(
    'a resume on another machine says nothing',
    'memagent_jax/train/checkpoint.py',
    '    if changes:\n',
    '    if not changes:\n',
    _CHECKPOINT('another_environment_is_a_warning'),
  ),
  Edit(
    'the epoch is left out of the place in the data',
    'memagent_jax/data/batches.py',
    "self._position = state['epoch'] * size + state['index']",
    "self._position = state['index']",
    _BATCHES('a_restored_iterator_goes_on_exactly[5]'),
  ),
  Edit(
    'an iterator goes on with what it had begun',
    'memagent_jax/data/batches.py',
    '    self._rows = None\n\n  def _dataset',
    '\n  def _dataset',
    _BATCHES('an_iterator_that_was_used_is_restored_too'),
  ),
  Edit(
    'an order of another seed is gone on with',
    'memagent_jax/data/batches.py',
    "if state['seed'] != self._config.seed:",
    "if state['seed'] is None:",
    _BATCHES('bad_use_is_named'),
  ),
  Edit(
    'every epoch begins with the same examples',
    'memagent_jax/data/batches.py',
    'for place in range(epoch * quota, (epoch + 1) * quota):',
    'for place in range(quota):',
    _BATCHES('rates_share_out_an_epoch_and_leave_no_example_out'),
  ),
  Edit(
    "a source's place in the data is not restored",
    'memagent_jax/rl/rollouts.py',
    'phase.batches.restore(saved)',
    'del phase, saved',
    _ROLLOUTS('a_restored_source_goes_on_bit_for_bit'),
  ),
  Edit(
    'turns are counted from 0 after a resume',
    'memagent_jax/agent/session.py',
    "self.turns_read = int(state['turns_read'])",
    'self.turns_read = 0',
    _READER('state_goes_on_exactly'),
  ),
  Edit(
    'a resumed reading has an empty memory',
    'memagent_jax/agent/session.py',
    'begun = self._begun(memory)\n',
    'begun = self._begun(None)\n',
    _READER('state_goes_on_exactly'),
  ),
  Edit(
    'a window is not counted before the next',
    'memagent_jax/agent/session.py',
    'self.turns_read += window.length_N.shape[0]',
    'self.turns_read += 0',
    _MEMORY_AGENT('a_killed_reading_goes_on_where_it_was_saved'),
  ),
)

# --- Data, installation, commands ----------------------------------------------

_AROUND = (
  Edit(
    'the template is left out of the length',
    'memagent_jax/data/benchmarks/ruler.py',
    'encoder, tokens, template_tokens + answer_tokens)',
    'encoder, tokens, answer_tokens)',
    _RULER('the_length_is_that_of_document_question_template_and_answer'),
  ),
  Edit(
    'the answer is left out of the length',
    'memagent_jax/data/benchmarks/ruler.py',
    'encoder, tokens, template_tokens + answer_tokens)',
    'encoder, tokens, template_tokens)',
    _RULER('the_length_is_that_of_document_question_template_and_answer'),
  ),
  Edit(
    'a benchmark has no room for its template',
    'memagent_jax/data/benchmarks/registry.py',
    'template_tokens=template_tokens,',
    'template_tokens=0,',
    ('tests/data/benchmarks/test_registry.py::test_needles_have_tokens',),
  ),
  Edit(
    'an impossible length is looked for forever',
    'memagent_jax/data/benchmarks/fit_length.py',
    'for _ in range(_MAX_DRAFTS):',
    'while True:',
    ('tests/data/benchmarks/test_fit_length.py::test_the_search_ends',),
  ),
  Edit(
    'an accelerator is required',
    'setup.py',
    "'jax>=0.10',",
    "'jax[cuda]>=0.10',",
    ('tests/test_setup.py::test_no_accelerator_is_required',),
  ),
  Edit(
    'compiled programs are not kept',
    'memagent_jax/commands/ask.py',
    "    'jax_compilation_cache_dir', str(pretrained.cache_dir() / 'compiled')\n",
    "    'jax_compilation_cache_dir', None\n",
    ('tests/commands/test_ask.py::test_json_and_page_hold_the_whole_reading',),
  ),
)

EDITS = (
  *(*_SCAN, *_STEP, *_ADVANTAGES, *_LOSS, *_UPDATES),
  *(*_DECODING, *_SCORERS, *_RESUME, *_AROUND),
)
