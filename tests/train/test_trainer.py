"""The loop: when it measures and logs, what ends it, and exact resuming."""

import dataclasses
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import huggingface
from memagent_jax.rl import validation as validation_lib
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.sft.demonstrations import Mix, Stage
from memagent_jax.sft.skills import SkillConfig
from memagent_jax.sft.supervision import Demonstrations
from memagent_jax.structs import WeightedMean
from memagent_jax.train import train_state, trainer
from memagent_jax.train.checkpoint import Checkpoints
from memagent_jax.train.metric_log import read_metrics
from memagent_jax.train.sequences import MicroBatches
from memagent_jax.train.source import Experience
from memagent_jax.train.train_state import OptimizerConfig
from tests import tiny_runs

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=100)


@dataclasses.dataclass(frozen=True)
class Shrink:
  """Makes the embedding small; rows are factors of the loss."""

  def __call__(self, params, rows):
    loss = WeightedMean(
      rows.sum() * (params['embedding'] ** 2).mean(),
      jnp.float32(rows.shape[0]),
    )
    return loss, {}


class FakeSource:
  """Gives rows that are all `factor`, and the given metrics and warnings.

  A mini-batch has one row of each of the `widths`.
  """

  def __init__(
    self,
    *,
    num_steps=None,
    factor=1.0,
    mini_batches=1,
    widths=(2,),
    metrics=(),
    warnings=lambda step: (),
    events=None,
  ):
    self.num_steps, self.asked = num_steps, []
    self._mini_batch = tuple(
      MicroBatches(np.full((1, width), factor, np.float32), np.int32(1))
      for width in widths
    )
    self._count = mini_batches
    self._metrics, self._warnings = dict(metrics), warnings
    self._events = [] if events is None else events

  def __call__(self, model):
    """The source of a model, as `train` makes it."""
    return self

  def next(self, step, params):
    self.asked.append(step)
    self._events.append(('experience', step))
    return Experience(
      objective=Shrink(),
      mini_batches=[self._mini_batch] * self._count,
      metrics=self._metrics,
      seconds={'rollout': 0.0},
      trained_tokens=7,
      warnings=self._warnings(step),
    )

  def state(self):
    return {'asked': self.asked}

  def restore(self, state):
    self.asked = list(state['asked'])


@pytest.fixture
def train(tiny_tokenizer, tmp_path):
  """`trainer.train` with a new tiny model, in the test's folder."""

  def run(source, **changes):
    arguments = {
      'workdir': tmp_path / 'run',
      'model': tiny_runs.model(tiny_tokenizer),
      'source': source,
      'optimizer': OPTIMIZER,
      'config_text': 'a = 1\n',
    }
    return trainer.train(**(arguments | changes))

  return run


def logged(workdir):
  return read_metrics(workdir / 'metrics.jsonl')


def lasting(row):
  """A row without its wall times."""
  return {
    name: value
    for name, value in row.items()
    if not name.startswith('seconds/') and name != 'tokens_per_second'
  }


def saved(workdir, tokenizer):
  """The newest checkpoint of a run."""
  like = train_state.init_state(OPTIMIZER, tiny_runs.model(tokenizer).params)
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    return checkpoints.restore(like)


def norm(params, step=None):
  del step
  return {'norm': float((params['embedding'] ** 2).sum())}


# --- What is measured and logged ----------------------------------------------


def test_the_base_model_is_measured_first_and_the_last_params_too(
  train, tmp_path, tiny_tokenizer
):
  events = []

  def evaluator(model, workdir):
    assert workdir == tmp_path / 'run'

    def measure(params, step):
      events.append(('measure', step))
      return norm(params)

    return measure

  source = FakeSource(metrics={'reward/mean': 0.5}, events=events)
  last = train(
    source, num_steps=3, evaluators=[evaluator], evaluate_every_steps=2
  )
  assert events == [
    ('measure', 0),
    *(('experience', 0), ('experience', 1)),
    ('measure', 2),
    ('experience', 2),
    ('measure', 3),
  ]
  rows = logged(tmp_path / 'run')
  # A row's measurements are of the params that sampled its rollouts.
  assert [row['step'] for row in rows] == [0, 1, 2, 3]
  assert [row.get('reward/mean') for row in rows] == [0.5, 0.5, 0.5, None]
  norms = [row.get('norm') for row in rows]
  assert norms[0] == norm(tiny_runs.model(tiny_tokenizer).params)['norm']
  assert norms[1] is None and norms[0] > norms[2] > norms[3]
  assert last == {'norm': norms[3]}
  exported = huggingface.load_params(tmp_path / 'run/model', tiny_runs.CONFIG)
  assert norm(exported) == last


def test_every_mini_batch_is_an_optimizer_step(train, tmp_path):
  train(FakeSource(mini_batches=3), num_steps=2)
  rows = logged(tmp_path / 'run')
  # The warm-up adds 1e-4 per step, from 0: values of the third and the sixth.
  assert rows[0]['learning_rate'] == pytest.approx(2e-4, rel=1e-5)
  assert rows[1]['learning_rate'] == pytest.approx(5e-4, rel=1e-5)
  assert rows[0]['trained_tokens'] == 7
  assert {'loss', 'grad_norm', 'seconds/rollout', 'seconds/update'} <= set(
    rows[0]
  )


def test_tokens_per_second_are_those_of_a_step_without_its_measuring(
  train, tmp_path
):
  train(FakeSource(), num_steps=2, evaluators=[lambda model, workdir: norm])
  first, second, _ = logged(tmp_path / 'run')
  for row in (first, second):
    assert row['tokens_per_second'] == pytest.approx(7 / row['seconds/step'])
    assert row['tokens_per_second'] > 0


def test_all_widths_of_a_mini_batch_are_one_optimizer_step(
  train, tmp_path, tiny_tokenizer
):
  """Rows of two widths in each of three mini-batches: six would be too many."""
  train(FakeSource(mini_batches=3, widths=(2, 3)), num_steps=2)
  assert int(saved(tmp_path / 'run', tiny_tokenizer).state.step) == 3 * 2
  first = logged(tmp_path / 'run')[0]
  assert first['learning_rate'] == pytest.approx(2e-4, rel=1e-5)


def test_every_process_measures(train, monkeypatch):
  """As seen by a second process, for which the first would wait forever.

  It writes no checkpoints here, so it is stopped before the first one.
  """
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  steps = []

  def evaluator(model, workdir):
    def measure(params, step):
      steps.append(step)
      return norm(params)

    return measure

  def killer(step, metrics):
    if step == 2:
      raise Killed

  with pytest.raises(Killed):
    train(
      FakeSource(),
      num_steps=4,
      evaluators=[evaluator],
      evaluate_every_steps=2,
      on_step=killer,
    )
  assert steps == [0, 2]


def test_a_hook_takes_the_place_of_the_terminal(train, capsys):
  seen = []
  hook = lambda step, metrics: seen.append((step, metrics['loss']))  # noqa: E731
  train(FakeSource(num_steps=3), on_step=hook)
  assert [step for step, _ in seen] == [0, 1, 2]
  assert 'loss' not in capsys.readouterr().out
  # The warm-up's first learning rate is 0.
  assert seen[0][1] == seen[1][1] > seen[2][1] > 0


def test_metrics_of_a_killed_run_are_read_up_to_the_cut(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(json.dumps({'step': 0, 'loss': 1.0}) + '\n{"step": 1, "lo')
  assert read_metrics(path) == [{'step': 0, 'loss': 1.0}]
  assert read_metrics(tmp_path / 'none') == []


# --- What ends a run, and what does not ---------------------------------------


def test_a_run_ends_where_it_is_good_enough(train, tmp_path):
  """A second call with it does not continue."""
  steps = []

  def evaluator(model, workdir):
    def measure(params, step):
      steps.append(step)
      return {'a': step / 10, 'b': 1.0}

    return measure

  for _ in range(2):
    last = train(
      FakeSource(),
      num_steps=9,
      evaluators=[evaluator],
      evaluate_every_steps=2,
      checkpoint_every_steps=3,
      stop_when={'a': 0.3, 'b': 0.5},
    )
    assert last == {'a': 0.4, 'b': 1.0}
  # The second call starts from the step it ended at, and does nothing more.
  assert steps == [0, 2, 4, 4]
  assert (
    max(int(p.name) for p in (tmp_path / 'run/checkpoints').glob('[0-9]*')) == 4
  )
  assert [row['step'] for row in logged(tmp_path / 'run')] == [0, 1, 2, 3, 4]


def test_rewards_that_are_all_alike_are_a_warning(train, tmp_path, caplog):
  """Once, after 20 such steps in a row, even if interrupted in between."""

  def source():
    return FakeSource(metrics={'groups/degenerate': 1.0})

  train(source(), num_steps=25, stop_at_step=12)
  assert not caplog.records
  train(source(), num_steps=25)
  (record,) = caplog.records
  assert 'step 19: for 20 steps no group of rollouts had an advantage' in (
    record.getMessage()
  )
  assert len(logged(tmp_path / 'run')) == 26


def test_a_warning_is_given_once(train, caplog):
  def warnings(step):
    return [f'{50 + step}% of the memories are empty.', *['other'] * (step > 1)]

  train(FakeSource(warnings=warnings), num_steps=4)
  assert [record.getMessage() for record in caplog.records] == [
    'step 0: 50% of the memories are empty.',
    'step 2: other',
  ]


def test_updates_that_are_not_finite_end_the_run(
  train, tmp_path, tiny_tokenizer
):
  with pytest.raises(ValueError, match='step 20: 21 updates were not finite'):
    train(FakeSource(factor=np.nan), num_steps=40)
  rows = logged(tmp_path / 'run')
  assert len(rows) == 20 and rows[-1]['skipped_updates'] == 20
  assert rows[0]['loss'] is None
  # Only 20 of them do not end it.
  last = train(
    FakeSource(factor=np.nan),
    num_steps=20,
    workdir=tmp_path / 'other',
    evaluators=[lambda model, workdir: norm],
  )
  assert last == norm(tiny_runs.model(tiny_tokenizer).params)


def test_a_run_without_an_end_is_refused(train, tmp_path):
  with pytest.raises(ValueError, match='num_steps is None and the source has'):
    train(FakeSource())
  assert not (tmp_path / 'run').exists()


def test_another_config_needs_another_workdir(train, tmp_path):
  train(FakeSource(num_steps=1))
  before = sorted((tmp_path / 'run').rglob('*'))
  with pytest.raises(ValueError, match='belongs to a run of') as e:
    train(FakeSource(num_steps=1), config_text='a = 2\n')
  message = str(e.value)
  assert '\n-a = 1\n+a = 2\n' in message
  assert message.endswith('Use another workdir.')
  assert sorted((tmp_path / 'run').rglob('*')) == before


def test_all_settings_in_use_are_kept(train, tmp_path, tiny_tokenizer):
  asked = []

  def operative():
    asked.append(0)
    return 'clip_norm = 1.0\n'

  train(FakeSource(num_steps=2), operative_config=operative)
  path = tmp_path / 'run' / 'operative_config.gin'
  assert path.read_text() == 'clip_norm = 1.0\n'
  extras = saved(tmp_path / 'run', tiny_tokenizer).extras
  assert extras['operative_config'] == 'clip_norm = 1.0\n' and asked


def test_intervals_below_one_are_refused(train):
  for name in ('evaluate_every_steps', 'checkpoint_every_steps'):
    with pytest.raises(ValueError, match=f'{name} is 0'):
      train(FakeSource(num_steps=2), **{name: 0})


def test_a_run_without_a_checkpoint_has_its_workdir(train, tmp_path):
  def killer(step, metrics):
    raise Killed

  with pytest.raises(Killed):
    train(FakeSource(num_steps=2), on_step=killer)
  before = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()
  with pytest.raises(ValueError, match='belongs to a run of another config'):
    train(FakeSource(num_steps=2), config_text='a = 2\n')
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == before


# --- Exact resuming -----------------------------------------------------------


class Killed(Exception):
  pass


def test_what_a_run_lost_is_done_again(train, tmp_path):
  """Killed in step 4, after the checkpoint of step 4's params."""

  def killer(step, metrics):
    if step == 4:
      raise Killed

  source = FakeSource()
  with pytest.raises(Killed):
    train(source, num_steps=6, checkpoint_every_steps=2, on_step=killer)
  assert source.asked == [0, 1, 2, 3, 4]
  workdir = tmp_path / 'run'
  assert [row['step'] for row in logged(workdir)] == [0, 1, 2, 3, 4]
  source = FakeSource()
  train(source, num_steps=6, checkpoint_every_steps=2)
  assert source.asked == [0, 1, 2, 3, 4, 5]
  straight = tmp_path / 'straight'
  train(FakeSource(), num_steps=6, workdir=straight)
  assert list(map(lasting, logged(workdir))) == list(
    map(lasting, logged(straight))
  )


def test_sigterm_ends_a_run_after_its_step(train, tmp_path, caplog):
  def terminate(step, metrics):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  before = signal.getsignal(signal.SIGTERM)
  source = FakeSource()
  train(source, num_steps=6, on_step=terminate)
  assert source.asked == [0, 1, 2]
  assert 'stopped by SIGTERM after step 2' in caplog.text
  assert signal.getsignal(signal.SIGTERM) == before
  assert not (tmp_path / 'run/model').exists()
  source = FakeSource()
  train(source, num_steps=6)
  assert source.asked == [0, 1, 2, 3, 4, 5]
  train(FakeSource(), num_steps=6, workdir=tmp_path / 'straight')
  assert list(map(lasting, logged(tmp_path / 'run'))) == list(
    map(lasting, logged(tmp_path / 'straight'))
  )


@pytest.fixture
def sigterm():
  """Sends SIGTERM; if nothing handles it, only this test fails, not the run."""

  def unhandled(*unused):
    raise AssertionError('nobody handled SIGTERM')

  before = signal.signal(signal.SIGTERM, unhandled)
  yield lambda: os.kill(os.getpid(), signal.SIGTERM)
  signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('where', ['evaluator', 'source', 'hook', 'save'])
def test_sigterm_anywhere_leaves_a_checkpoint_of_its_step(
  train, tmp_path, tiny_tokenizer, sigterm, where
):
  """It comes at step 2; nothing done by then is done again."""

  def reach(place, step):
    if (place, step) == (where, 2):
      sigterm()

  def evaluator(model, workdir):
    def measure(params, step):
      reach('evaluator', step)
      return norm(params)

    return measure

  class Terminated(FakeSource):
    def next(self, step, params):
      reach('source', step)
      return super().next(step, params)

    def state(self):
      # A save asks for the state, with the step that comes next.
      reach('save', len(self.asked))
      return super().state()

  arguments = {
    'num_steps': 5,
    'evaluators': [evaluator],
    'evaluate_every_steps': 2,
    'checkpoint_every_steps': 2,
  }
  source = Terminated()
  train(source, on_step=lambda step, metrics: reach('hook', step), **arguments)
  assert source.asked == [0, 1, 2]
  assert saved(tmp_path / 'run', tiny_tokenizer).step == 3
  events = []
  train(FakeSource(events=events), **arguments)
  assert events == [('experience', step) for step in (3, 4)]
  where = None
  train(FakeSource(), **arguments | {'workdir': tmp_path / 'straight'})
  assert list(map(lasting, logged(tmp_path / 'run'))) == list(
    map(lasting, logged(tmp_path / 'straight'))
  )


def test_sigterm_in_the_last_measurement_ends_nothing_early(
  train, tmp_path, sigterm
):
  def evaluator(model, workdir):
    def measure(params, step):
      if step == 2:
        sigterm()
      return norm(params)

    return measure

  train(FakeSource(), num_steps=2, evaluators=[evaluator])
  assert [row['step'] for row in logged(tmp_path / 'run')] == [0, 1, 2]
  assert (tmp_path / 'run/model').exists()


STEPS = 4
KINDS = ('rollouts', 'demonstrations')


def start(kind, workdir, tokenizer, **changes):
  """A real run of a few steps: different rewards, a reference model."""
  if kind == 'rollouts':
    source = lambda model: tiny_runs.rollouts(  # noqa: E731
      model,
      chunks=(1, 3),
      count=6,
      mini_batches=2,
      grpo=GrpoConfig(kl_coefficient=1e-2),
      reward=tiny_runs.length_reward,
    )
  else:
    content = SkillConfig(shares=(('answer', 1.0),))
    mix = Mix(content, batch_size=4, sequence_tokens=220, response_tokens=60)
    source = lambda model: Demonstrations(  # noqa: E731
      model,
      stages=[Stage(STEPS, [mix])],
      template=tiny_runs.TEMPLATE,
      micro_tokens=450,
    )
  arguments = {
    'workdir': workdir,
    'model': tiny_runs.model(tokenizer),
    'source': source,
    'optimizer': OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    'num_steps': STEPS,
    'checkpoint_every_steps': 1,
    'config_text': kind,
  }
  return trainer.train(**(arguments | changes))


def assert_same_run(workdir, straight, tokenizer):
  """Logs, params, optimizer and the position in the data, bit for bit."""
  rows, expected = (list(map(lasting, logged(d))) for d in (workdir, straight))
  assert [row['step'] for row in expected] == list(range(STEPS + 1))
  assert rows == expected
  assert len({row.get('loss') for row in expected}) == STEPS + 1
  ends = []
  for folder in (workdir, straight):
    model = tiny_runs.model(tokenizer)
    like = train_state.init_state(OPTIMIZER, model.params)
    with Checkpoints(folder / 'checkpoints') as checkpoints:
      ends.append(checkpoints.restore(like))
  assert ends[0].step == ends[1].step == STEPS
  assert ends[0].extras == ends[1].extras
  jax.tree.map(np.testing.assert_array_equal, ends[0].state, ends[1].state)
  changed = ends[0].state.params['embedding'] != like.params['embedding']
  assert np.asarray(changed).any()


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_an_interrupted_run_goes_on_bit_for_bit(kind, tmp_path, tiny_tokenizer):
  straight, stopped = tmp_path / 'straight', tmp_path / 'stopped'
  start(kind, straight, tiny_tokenizer)

  def killer(step, metrics):
    if step == 2:
      raise Killed

  with pytest.raises(Killed):
    start(kind, stopped, tiny_tokenizer, on_step=killer)
  start(kind, stopped, tiny_tokenizer)
  assert_same_run(stopped, straight, tiny_tokenizer)
  if kind == 'rollouts':
    rows = logged(straight)
    assert rows[0]['sampler_gap'] < 1e-4
    assert 0 < rows[0]['reward/mean'] < 1
    # The reference is the initial model, after a resume, too.
    assert rows[0]['reference_kl'] < 1e-6 < rows[3]['reference_kl']


@pytest.mark.slow
@pytest.mark.parametrize(('kind', 'step'), [(KINDS[0], 2), (KINDS[1], 3)])
def test_a_killed_process_goes_on_bit_for_bit(
  kind, step, tmp_path, tiny_model_dir
):
  code = (
    'import sys; from tests.train import test_trainer as t\n'
    't.run_and_die(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))'
  )
  root = Path(__file__).parents[2]
  stopped, straight = tmp_path / 'stopped', tmp_path / 'straight'
  arguments = [kind, stopped, tiny_model_dir, step]
  died = subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)],
    cwd=root,
    env=os.environ | {'PYTHONPATH': str(root)},
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
  # Its last checkpoint may be complete or not.
  assert len(logged(stopped)) == step + 1
  tokenizer = Tokenizer.from_directory(tiny_model_dir)
  start(kind, stopped, tokenizer)
  start(kind, straight, tokenizer)
  assert_same_run(stopped, straight, tokenizer)


def run_and_die(kind, workdir, model_dir, last_step):
  """Ends this process by SIGKILL once step `last_step` is logged."""

  def kill(step, metrics):
    if step == last_step:
      os.kill(os.getpid(), signal.SIGKILL)

  tokenizer = Tokenizer.from_directory(model_dir)
  start(kind, Path(workdir), tokenizer, on_step=kill)


@pytest.mark.slow
def test_reward_and_metric_are_logged_from_step_0(tmp_path, tiny_tokenizer):
  """Of training and of validation, by the real verifiers."""

  def validation(model, workdir):
    return validation_lib.Validation(
      model,
      workdir,
      documents=tiny_runs.documents((1, 3)),
      reading=tiny_runs.READING,
      count=12,
      batch_size=12,
      traced=2,
    )

  start(
    'rollouts',
    tmp_path,
    tiny_tokenizer,
    source=lambda model: tiny_runs.rollouts(
      model, chunks=(1, 3), width_shares=(1.0,)
    ),
    num_steps=1,
    evaluators=[validation],
  )
  first, last = logged(tmp_path)
  assert 0 < first['sampler_gap'] < 1e-4
  both = {'validation/reward', 'validation/metric'}
  assert both | {'reward/mean', 'reward/metric'} <= set(first)
  assert both <= set(last) and 'reward/mean' not in last
  names = [path.name for path in sorted((tmp_path / 'traces').iterdir())]
  assert names == ['validation_0.jsonl', 'validation_1.jsonl']
