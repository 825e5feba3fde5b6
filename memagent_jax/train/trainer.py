"""Training, read from top to bottom: evaluate -> experience -> update -> log ->
checkpoint.

Reinforcement learning and supervised warm-up are one loop over two sources
(`source`). Everything it needs is an argument; gin binds the arguments in
`commands/train.py` and is unknown here.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
import time
from typing import Any

from absl import logging
import jax

from memagent_jax import sharding
from memagent_jax.io import workdirs
from memagent_jax.models import lora as lora_lib
from memagent_jax.models import transformer
from memagent_jax.models.configs import LoraConfig
from memagent_jax.models.model import Model
from memagent_jax.models.weights import huggingface
from memagent_jax.sharding import MeshConfig
from memagent_jax.structs import WeightedMean
from memagent_jax.train import train_state
from memagent_jax.train import update as update_lib
from memagent_jax.train.checkpoint import Checkpoints
from memagent_jax.train.metric_log import MetricLog
from memagent_jax.train.preemption import Preemption
from memagent_jax.train.source import Experience, Source
from memagent_jax.train.train_state import OptimizerConfig, TrainState

# Maximum number of non-finite, skipped updates; one more stops the run.
_MAX_SKIPPED = 20
# Consecutive steps without any difference between rewards before a warning.
_DULL_STEPS = 20
_SHOWN = (
  'reward/mean',
  'reward/metric',
  'groups/degenerate',
  'loss',
  'entropy',
  'grad_norm',
  'memory/length_p50',
  'tokens_per_second',
)

# (params, step) -> metrics; it may write files of its own.
Evaluator = Callable[[dict, int], Mapping[str, float]]


@sharding.under_mesh
def train(
  *,
  workdir: str | os.PathLike,
  model: Model,
  source: Callable[[Model], Source],
  optimizer: OptimizerConfig,
  evaluators: Sequence[Callable[[Model, Path], Evaluator]] = (),
  num_steps: int | None = None,
  compute_dtype: str = 'float32',
  remat: bool = False,
  lora: LoraConfig | None = None,
  mesh: MeshConfig | None = None,
  evaluate_every_steps: int = 50,
  checkpoint_every_steps: int = 50,
  stop_at_step: int | None = None,
  stop_when: Mapping[str, float] | None = None,
  config_text: str = '',
  operative_config: Callable[[], str] = str,
  on_step: Callable[[int, Mapping[str, float]], None] | None = None,
) -> dict[str, float]:
  """Trains a model on experience from a source; resumes where it stopped.

  Args:
    workdir: directory for `config.gin`, `checkpoints/`, `metrics.jsonl`,
      TensorBoard events, what the evaluators write, and at the end `model/`, a
      Hugging Face directory.
    model: initial model; its params are donated.
    source: function that makes the source of experience for the model.
    optimizer: optimizer settings for all steps.
    evaluators: functions that make, for model and workdir, an evaluator to call
      before the first step, every `evaluate_every_steps` and after the last.
    num_steps: number of steps; None: as many as the source has.
    compute_dtype: dtype of activations and cache, float32 or bfloat16; params,
      losses and optimizer stay float32.
    remat: whether to recompute layers for the gradient, see `ModelConfig`.
    lora: adapters to train while the model's params stay as loaded; they are
      merged into `model/` at the end. None: train all params.
    mesh: devices that share the work; None: the default device alone.
    evaluate_every_steps: steps between measurements.
    checkpoint_every_steps: steps between checkpoints; the last is kept too.
    stop_at_step: step before which to end, for a later call to resume there.
    stop_when: lower bounds of metrics; the run ends early once a measurement
      reaches them all.
    config_text: config of the run; resuming with another one is refused.
    operative_config: returns all settings in use, including defaults; kept in
      checkpoints and, once the first step is done, in `operative_config.gin`.
    on_step: called with the number and the metrics of every step, instead of a
      line on the terminal.

  Returns:
    the last measurement. SIGTERM ends a run after the current step, with a
    checkpoint.

  Raises:
    ValueError: a workdir of another run, no number of steps, intervals below 1,
      or too many non-finite updates.
  """
  if evaluate_every_steps < 1 or checkpoint_every_steps < 1:
    raise ValueError(
      f'evaluate_every_steps is {evaluate_every_steps} and '
      f'checkpoint_every_steps is {checkpoint_every_steps}; expected 1 or more.'
    )
  workdir = Path(workdir)

  # --- state ------------------------------------------------------------------
  compute = dataclasses.replace(model.config, dtype=compute_dtype, remat=remat)
  model = dataclasses.replace(model, config=compute)
  if lora is not None:
    model = lora_lib.add(model, lora)
  layout = _Layout(model, optimizer, mesh)
  model = dataclasses.replace(model, params=layout.place(model.params))
  experience_source = source(model)
  if num_steps is None:
    num_steps = experience_source.num_steps
  if num_steps is None:
    raise ValueError('num_steps is None and the source has no end; give it.')
  workdirs.claim(workdir, config_text)
  checkpoints = Checkpoints(workdir / 'checkpoints')
  state = train_state.init_state(optimizer, model.params, layout.state)
  first_step, dull_steps, saved_step = 0, 0, None
  restored = checkpoints.restore(state.replace(frozen={}))
  if restored is not None:
    state = restored.state.replace(frozen=state.frozen)
    first_step = restored.step
    saved_step = first_step
    dull_steps = restored.extras['dull_steps']
    experience_source.restore(restored.extras['source'])
  measure = _Measure([make(model, workdir) for make in evaluators])
  warned: set[str] = set()

  def save(step: int) -> None:
    nonlocal saved_step
    if step != saved_step:
      extras = {
        'source': experience_source.state(),
        'dull_steps': dull_steps,
        'operative_config': operative_config(),
      }
      # Frozen params are in the model that the run starts from.
      learned = state.replace(frozen={})
      checkpoints.save(step, learned, extras, config_text)
      saved_step = step

  with (
    checkpoints,
    Preemption() as preemption,
    MetricLog(
      workdir,
      first_step=first_step,
      shown=_SHOWN if on_step is None else (),
    ) as log,
  ):
    # The row of a step describes the params that its updates start from; the
    # last row has measurements only.
    for step in range(first_step, num_steps + 1):
      if step == stop_at_step:
        return measure.latest
      metrics: dict[str, float] = {}
      begun = time.perf_counter()

      # --- evaluate -------------------------------------------------------------
      reading_params = layout.for_rollouts(state.all_params)
      if step == num_steps or step % evaluate_every_steps == 0:
        metrics |= measure(reading_params, step)
        reached = _reached(stop_when, measure.latest)
        if reached:
          save(step)
        if reached or step == num_steps:
          log.write(step, metrics)
          break
      measured = time.perf_counter()

      # --- experience: rollout, verify, advantages; or demonstrations -----------
      experience = experience_source.next(step, reading_params)
      del reading_params
      made = time.perf_counter()

      # --- update ---------------------------------------------------------------
      state, update_metrics = _apply(
        layout.update, optimizer, state, experience
      )
      updated = time.perf_counter()
      _stop_if_broken(int(state.skipped), step)

      # --- log ------------------------------------------------------------------
      metrics |= update_metrics | dict(experience.metrics)
      metrics |= {f'seconds/{k}': v for k, v in experience.seconds.items()}
      metrics |= {
        'skipped_updates': float(state.skipped),
        'learning_rate': float(
          train_state.learning_rate(optimizer)(max(state.step - 1, 0))
        ),
        'trained_tokens': experience.trained_tokens,
        'tokens_per_second': experience.trained_tokens / (updated - measured),
        'seconds/evaluate': measured - begun,
        'seconds/update': updated - made,
        'seconds/step': updated - measured,
      }
      log.write(step, metrics)
      if step == first_step and sharding.is_main():
        workdirs.replace(
          workdir / 'operative_config.gin', operative_config().encode()
        )
      if on_step is not None:
        on_step(step, metrics)
      dull = metrics.get('groups/degenerate') == 1.0
      dull_steps = dull_steps + 1 if dull else 0
      if dull_steps == _DULL_STEPS:
        logging.warning(
          'step %d: for %d steps no group of rollouts had an advantage, their '
          'rewards being all alike, so nothing is learned: the task is too easy or '
          'too hard, or the verifier does not see the answers.',
          step,
          dull_steps,
        )
      for warning in experience.warnings:
        _warn_once(warned, step, warning)

      # --- checkpoint -----------------------------------------------------------
      preempted = preemption.reached(step)
      if (
        preempted
        or step + 1 in (num_steps, stop_at_step)
        or (step + 1) % checkpoint_every_steps == 0
      ):
        save(step + 1)
      if preempted:
        logging.warning('stopped by SIGTERM after step %d.', step)
        return measure.latest
  exported = workdir / 'model'
  params = sharding.to_host(state.all_params)
  if sharding.is_main() and not exported.exists():
    plain, params = lora_lib.merged(model.config, params)
    huggingface.save_model(exported, plain, params, model.tokenizer)
  return measure.latest


class _Layout:
  """The layout of params and state, and the programs that depend on it."""

  def __init__(
    self, model: Model, optimizer: OptimizerConfig, mesh: MeshConfig | None
  ) -> None:
    self.state, reading = None, None
    if mesh is not None:
      devices = jax.sharding.get_mesh()
      boxes = transformer.abstract_params(model.config)
      self.state = train_state.state_shardings(optimizer, boxes, devices)
      reading = sharding.param_shardings(devices, boxes, sharding.ROLLOUTS)
    self.update = update_lib.make_update(self.state)
    self.for_rollouts = sharding.make_reshard(reading, model.config.dtype)

  def place(self, params: dict) -> dict:
    """Params in the layout of training."""
    if self.state is None:
      return params
    return jax.device_put(params, self.state.all_params)


class _Measure:
  """All evaluators as one, which remembers its latest measurement."""

  def __init__(self, evaluators: Sequence[Evaluator]):
    self._evaluators = evaluators
    self.latest: dict[str, float] = {}

  def __call__(self, params: dict, step: int) -> dict[str, float]:
    begun = time.perf_counter()
    self.latest = {}
    for evaluator in self._evaluators:
      self.latest |= evaluator(params, step)
    shown = '  '.join(f'{k} {v:.3f}' for k, v in self.latest.items())
    if shown and sharding.is_main():
      print(f'after {step} steps: {shown}', flush=True)
    return self.latest | {'seconds/evaluate': time.perf_counter() - begun}


def _apply(
  update: Callable[..., Any],
  optimizer: OptimizerConfig,
  state: TrainState,
  experience: Experience,
) -> tuple[TrainState, dict[str, float]]:
  """Takes an optimizer step per mini-batch; metrics are means over them all."""
  measured: list[dict[str, WeightedMean]] = []
  for batches in experience.mini_batches:
    state, metrics = update(experience.objective, optimizer, state, batches)
    measured.append(metrics)
  total = jax.tree.map(lambda *x: sum(x), *measured)
  means = {name: float(mean.mean()) for name, mean in total.items()}
  if 'sampler_gap' in means:
    # Before the first update, sampler and trainer have the same params.
    means['sampler_gap'] = float(measured[0]['sampler_gap'].mean())
  return state, means


def _stop_if_broken(skipped: int, step: int) -> None:
  if skipped > _MAX_SKIPPED:
    raise ValueError(
      f'step {step}: {skipped} updates were not finite and were skipped; lower '
      'the learning rate, or look at the rows of the last steps.'
    )


def _warn_once(warned: set[str], step: int, warning: str) -> None:
  # Numbers differ from step to step; the problem does not.
  kind = ''.join(c for c in warning if not c.isdigit())
  if kind not in warned:
    warned.add(kind)
    logging.warning('step %d: %s', step, warning)


def _reached(
  stop_when: Mapping[str, float] | None, measured: Mapping[str, float]
) -> bool:
  if not stop_when:
    return False
  return all(
    measured.get(name, float('-inf')) >= least
    for name, least in stop_when.items()
  )
