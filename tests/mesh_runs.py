"""A tiny run on any mesh, with any number of processes, in its own process.

  python -m tests.mesh_runs OUT DATAxFSDPxTENSOR|none [PROCESSES INDEX PORT]

Writes OUT.npz: the samples of two steps, the gradient of the first, losses, and
the final params. Devices are virtual, as set by XLA_FLAGS.
"""

import dataclasses
import functools
import os
from pathlib import Path
import sys

import jax
import numpy as np

from memagent_jax import sharding
from memagent_jax.agent.engine import Lockstep
from memagent_jax.agent.memory_rules import Guarded
from memagent_jax.io import assets
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import pretrained
from memagent_jax.sharding import MeshConfig
from memagent_jax.train import trainer, update
from memagent_jax.train.metric_log import read_metrics
from memagent_jax.train.train_state import OptimizerConfig
from tests import tiny_runs

# Every axis that a mesh may split, except kv_heads, has a size of at least 8.
CONFIG = ModelConfig(
  'qwen3', 2048, 16, 2, 8, 4, 8, 32, 256, 1e-5, RopeConfig(), qk_norm=True
)
DOCUMENTS, ROLLOUTS = 8, 3


def source(model: Model, seen: list):
  # A mesh reads prompts in three blocks, one device reads all at once. About half
  # of the memories are less likely than those before them and are not taken.
  mesh = jax.sharding.get_abstract_mesh()
  engine = Lockstep(prefill_prompts=0 if mesh.empty else 8)
  reading = dataclasses.replace(tiny_runs.READING, rule=Guarded(1.0))
  return tiny_runs.rollouts(
    model,
    reading=reading,
    chunks=(2, 1),
    documents_per_step=DOCUMENTS,
    rollouts=ROLLOUTS,
    micro_tokens=1024,
    engine=tiny_runs.Watched(seen, engine),
    reward=tiny_runs.length_reward,
  )


def new_model() -> Model:
  tokenizer = Tokenizer.from_directory(assets.model('memagent-tiny-tokenizer'))
  params = transformer.init_params(CONFIG, jax.random.key(0))
  (eos,) = tokenizer.eos_ids
  params['embedding'] = params['embedding'].at[eos].mul(4.0)
  return Model('tiny', CONFIG, params, tokenizer)


def first_gradient(mesh: MeshConfig | None) -> dict:
  """Gradient sums over the first step's rows, on the host."""

  @sharding.under_mesh
  def gradient(mesh):
    model = new_model()
    params = model.params
    if mesh is not None:
      boxes = transformer.abstract_params(CONFIG)
      placed = sharding.param_shardings(jax.sharding.get_mesh(), boxes)
      params = jax.device_put(params, placed)
      kernel = params['layer_0']['attention']['q']['kernel']
      assert kernel.sharding.spec == jax.P('fsdp', 'tensor', None)
    experience = source(model, []).next(0, params)
    ((batches),) = experience.mini_batches
    sums = jax.jit(update.gradient_sums, static_argnums=0)
    found, _, _ = sums(experience.objective, params, batches)
    return sharding.to_host(found)

  return gradient(mesh=mesh)


def main(out: str, shape: str, processes='1', index='0', port='0'):
  if int(processes) > 1:
    jax.distributed.initialize(f'127.0.0.1:{port}', int(processes), int(index))
  mesh = None if shape == 'none' else MeshConfig(*map(int, shape.split('x')))
  seen: list = []
  result = {}
  for i, leaf in enumerate(jax.tree.leaves(first_gradient(mesh))):
    result[f'gradient_{i}'] = leaf
  workdir = Path(f'{out}.run')
  trainer.train(
    workdir=workdir,
    model=new_model(),
    source=functools.partial(source, seen=seen),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
    num_steps=2,
    mesh=mesh,
    checkpoint_every_steps=1,
  )
  if not sharding.is_main():
    return
  for i, one in enumerate(seen):
    result[f'ids_{i}'] = one.turns.response.ids_NxR
    result[f'lengths_{i}'] = one.turns.response.length_N
    result[f'logprobs_{i}'] = one.turns.response.logprob_NxR
    result[f'answers_{i}'] = one.answer.ids_NxR
    result[f'memories_{i}'] = one.turns.memory.length_N
  rows = read_metrics(workdir / 'metrics.jsonl')
  for name in ('loss', 'grad_norm'):
    result[name] = np.asarray([row[name] for row in rows if name in row])
  params = pretrained.load_model(workdir / 'model').params
  for i, leaf in enumerate(jax.tree.leaves(params)):
    result[f'params_{i}'] = np.asarray(leaf)
  np.savez(out, **result)


if __name__ == '__main__':
  os.chdir(Path(__file__).parents[1])
  main(*sys.argv[1:])
