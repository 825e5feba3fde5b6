"""A tiny model and tiny documents, for tests of whole rollouts and runs."""

import functools
import itertools
from pathlib import Path
import random

import gin
import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax.agent import rollout, trajectories
from memagent_jax.agent.prompts import Template
from memagent_jax.agent.rollout import AgentConfig, ReadingConfig
from memagent_jax.agent.trajectories import Verdicts
from memagent_jax.data import example_source, tasks
from memagent_jax.data.batches import Batch, BatchIterator
from memagent_jax.data.examples import Example
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.model import Model
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
  chunk_tokens=16,
  memory_tokens=6,
  answer_tokens=5,
  question_tokens=12,
  temperature=1.0,
  chunk_cut='token',
  seed=2,
)
# No KL: no second model.
GRPO = GrpoConfig(kl_coefficient=0.0)
OBJECTIVES = Path(__file__).parents[1] / 'gin_configs' / 'objectives'


def model(tokenizer) -> Model:
  """A random model that ends about half of its turns before their cap.

  A new one at every call: training donates its params.
  """
  params = jax.tree.map(jnp.array, _random_params())
  (eos,) = tokenizer.eos_ids
  params['embedding'] = params['embedding'].at[eos].mul(30.0)
  return Model('tiny', CONFIG, params, tokenizer)


@functools.cache
def _random_params():
  return jax.device_get(transformer.init_params(CONFIG, jax.random.key(0)))


def document(number: int, chunks: int) -> Example:
  """Text of so many chunks of READING; its id is its question."""
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

  def make(tokenizer):
    examples = example_source.GeneratedExamples(
      lambda i: document(i, chunks[i % len(chunks)]), count
    )
    vocabulary = tasks.TokenizerVocabulary(tokenizer, tokenizer.vocab_size)
    return tasks.example_task('who', {'train': examples}, vocabulary)

  return make


def agent(of: Model) -> AgentConfig:
  """The agent of `rollouts`."""
  return rollout.make_agent(of, TEMPLATE, READING)


def batch(tokenizer, *, chunks: int, rows: int) -> Batch:
  """The first documents of a source of `rollouts`, of so many chunks each."""
  config = trajectories.batch_config(READING, rows, READING.seed)
  task = documents((chunks,))(tokenizer)
  return next(BatchIterator(task, tokenizer, config))


def rollouts(
  of: Model, *, chunks=(2,), count=64, reading=READING, grpo=GRPO, **changes
) -> Rollouts:
  """A source of 4 documents a step, 3 rollouts each."""
  steps = changes.pop('documents_per_step', 4)
  later = changes.pop('later_documents', ())
  config = {'rollouts': 3, 'micro_tokens': 512} | changes
  return Rollouts(
    of,
    documents=documents(chunks, count),
    documents_per_step=steps,
    template=TEMPLATE,
    reading=reading,
    config=RolloutConfig(**config),
    objective=grpo,
    later_documents=later,
  )


def judge_as(monkeypatch, *rewards_BxG) -> None:
  """Every batch gets the next of these rewards; the last one stays."""
  script = itertools.chain(rewards_BxG, itertools.repeat(rewards_BxG[-1]))

  def judge(tokenizer, batch, found):
    reward_BxG = np.asarray(next(script), np.float32)
    assert reward_BxG.shape == (len(batch.ids), found.rollouts)
    texts = [''] * reward_BxG.size
    return Verdicts(reward_BxG, reward_BxG, {}, texts)

  monkeypatch.setattr(trajectories, 'judge', judge)


def judge_by_length(tokenizer, batch, found) -> Verdicts:
  """Odd answers are right: rewards that differ, of a model that knows nothing."""
  del tokenizer
  length_BxG = found.answer.length_N.reshape(len(batch.ids), found.rollouts)
  reward_BxG = (length_BxG % 2).astype(np.float32)
  return Verdicts(reward_BxG, reward_BxG, {}, [''] * reward_BxG.size)


def watch_samples(monkeypatch) -> list:
  """Grows by the Trajectories of every call of `trajectories.sample`."""
  seen, sample = [], trajectories.sample

  def watched(*args, **kwargs):
    seen.append(sample(*args, **kwargs))
    return seen[-1]

  monkeypatch.setattr(trajectories, 'sample', watched)
  return seen


@functools.cache
def preset(name: str) -> GrpoConfig:
  """The objective of gin_configs/objectives/NAME.gin."""
  gin.clear_config()
  gin.parse_config_file(str(OBJECTIVES / f'{name}.gin'))
  config = gin.get_configurable(GrpoConfig)()
  gin.clear_config()
  return config
