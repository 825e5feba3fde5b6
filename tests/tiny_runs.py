"""A tiny model and tiny documents, for tests of whole rollouts and runs."""

from collections.abc import Callable
import dataclasses
import functools
import itertools
from pathlib import Path
import random

import gin
import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax.agent import trajectories
from memagent_jax.agent.config import AgentConfig, ReadingConfig, make_agent
from memagent_jax.agent.engine import Lockstep
from memagent_jax.agent.prompts import Template
from memagent_jax.agent.session import Session
from memagent_jax.data import example_source, tasks
from memagent_jax.data.batch import Batch
from memagent_jax.data.batches import BatchIterator
from memagent_jax.data.examples import Example
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.model import Model
from memagent_jax.rewards import Score
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.rl.rollouts import RolloutConfig, Rollouts

CONFIG = ModelConfig(
  'qwen3', 269, 16, 1, 2, 1, 8, 24, 256, 1e-5, RopeConfig(), qk_norm=True
)
TEMPLATE = Template(
  memory_turn='{question} has {memory} then {chunk}!',
  answer_turn='{question} from {memory}: \\boxed{}?',
  empty_memory='none',
)
READING = ReadingConfig(
  template=TEMPLATE,
  chunk_tokens=16,
  memory_tokens=6,
  answer_tokens=5,
  question_tokens=12,
  temperature=1.0,
  chunk_cut='token',
  seed=2,
)
# Without KL there is no second model.
GRPO = GrpoConfig(kl_coefficient=0.0)
OBJECTIVES = Path(__file__).parents[1] / 'gin_configs' / 'objectives'


def model(tokenizer) -> Model:
  """A random model that ends about half of its turns before their cap.

  Every call makes a new one: training donates its params.
  """
  params = jax.tree.map(jnp.array, _random_params())
  (eos,) = tokenizer.eos_ids
  params['embedding'] = params['embedding'].at[eos].mul(30.0)
  return Model('tiny', CONFIG, params, tokenizer)


@functools.cache
def _random_params():
  return jax.device_get(transformer.init_params(CONFIG, jax.random.key(0)))


def document(number: int, chunks: int) -> Example:
  """A text with this many chunks of READING; its id is its question."""
  rng = random.Random(number)
  size = READING.chunk_tokens * chunks - rng.randrange(READING.chunk_tokens)
  return Example(
    id=f'Who {number}?',
    task='who',
    document=''.join(rng.choices('abcd. ', k=size)),
    question=f'Who {number}?',
    answers=('42',),
    metric='em',
  )


def documents(chunks, count: int = 64):
  """Makes the task: document i has chunks[i % len(chunks)] chunks."""

  def make(tokenizer, sizes):
    del sizes
    examples = example_source.GeneratedExamples(
      lambda i: document(i, chunks[i % len(chunks)]), count
    )
    vocabulary = tasks.TokenizerVocabulary(tokenizer, tokenizer.vocab_size)
    return tasks.example_task('who', {'train': examples}, vocabulary)

  return make


def agent(of: Model) -> AgentConfig:
  """The agent of `rollouts`."""
  return make_agent(of, READING)


def batch(tokenizer, *, chunks: int, rows: int) -> Batch:
  """The first documents of a source of `rollouts`, each with `chunks` chunks."""
  config = trajectories.batch_config(READING, rows, READING.seed)
  task = documents((chunks,))(tokenizer, config)
  return next(BatchIterator(task, tokenizer, config))


def rollouts(
  of: Model, *, chunks=(2,), count=64, reading=READING, grpo=GRPO, **changes
) -> Rollouts:
  """A source with 4 documents per step and 3 rollouts of each."""
  given = {
    name: changes.pop(name)
    for name in ('stages', 'engine', 'reward')
    if name in changes
  }
  config = {
    'documents_per_step': 4,
    'rollouts': 3,
    'micro_tokens': 512,
  } | changes
  return Rollouts(
    of,
    documents=documents(chunks, count),
    reading=reading,
    config=RolloutConfig(**config),
    objective=grpo,
    **given,
  )


def scripted_reward(*rewards_BxG) -> Callable:
  """A reward: every batch gets the next of these; the last one repeats."""
  values = itertools.chain(
    *(np.ravel(r).tolist() for r in rewards_BxG),
    itertools.cycle(np.ravel(rewards_BxG[-1]).tolist()),
  )

  def reward(view) -> Score:
    del view
    value = next(values)
    return Score(value, 'correct' if value == 1.0 else 'wrong')

  return reward


def length_reward(view) -> Score:
  """Odd answers are right: varied rewards, from a model that knows nothing."""
  value = float(len(view.answer) % 2)
  return Score(value, 'correct' if value else 'wrong')


@dataclasses.dataclass(frozen=True)
class Watched:
  """An engine that keeps the trajectories of every call."""

  seen: list = dataclasses.field(default_factory=list, compare=False)
  engine: Lockstep = dataclasses.field(default_factory=Lockstep)

  def open(self, *args, **kwargs):
    return self.engine.open(*args, **kwargs)

  def sample(self, *args, **kwargs):
    self.seen.append(self.engine.sample(*args, **kwargs))
    return self.seen[-1]


class HookedSession(Session):
  """A session that calls a hook with the turn's number before every `read`."""

  def __init__(self, *args, hook, **kwargs):
    super().__init__(*args, **kwargs)
    self._hook = hook

  def read(self, chunks):
    self._hook(self.turns_read)
    return super().read(chunks)


@dataclasses.dataclass(frozen=True)
class Hooked:
  """An engine that calls a hook before every device call."""

  hook: Callable[[int], None]

  def open(self, *args, **kwargs):
    return HookedSession(*args, hook=self.hook, **kwargs)


def dies_at(call: int) -> Hooked:
  """An engine whose process dies at this device call."""
  calls = itertools.count(1)

  def hook(turn):
    del turn
    if next(calls) == call:
      raise KeyboardInterrupt

  return Hooked(hook)


@functools.cache
def preset(name: str) -> GrpoConfig:
  """The objective of gin_configs/objectives/NAME.gin."""
  gin.clear_config()
  gin.parse_config_file(str(OBJECTIVES / f'{name}.gin'))
  config = gin.get_configurable(GrpoConfig)()
  gin.clear_config()
  return config
