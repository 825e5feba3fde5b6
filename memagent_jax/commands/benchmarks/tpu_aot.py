"""Compares our GRPO update for a TPU slice with google-tunix's own step.

Both have the same decoder (Qwen2.5-7B with fewer layers), mesh, rows, dtypes,
optimizer and loss terms: float32 params, bfloat16 compute, layers with remat,
flash attention, AdamW, clipping, no reference model. tunix's step is
`PeftTrainer._train_step` with its `grpo_loss_fn`, lowered on abstract arrays.
Nothing runs: memory is what the compiler allocates; bytes and FLOPs are read
from both programs in the same way (`planning.hlo`).
"""

import json
import sys
from typing import Any

from memagent_jax.commands.benchmarks import workers

_SIDES = ('ours', 'tunix')


def suite(
  *,
  topology: str,
  layers: int,
  rows: int,
  tensor: int,
  prompt_tokens: int,
  response_tokens: int,
  tunix_python: str,
) -> dict:
  """Compiles the update of each side in its own process.

  Args:
    topology: the slice, such as `v5p:2x4x4`.
    layers: number of decoder layers.
    rows: rows of the one micro-batch; all devices share them.
    tensor: shards of every matrix product; all others split rows and params.
    prompt_tokens: tokens of a row's prompt.
    response_tokens: tokens of a row's response.
    tunix_python: interpreter that has google-tunix and libtpu.
  """
  given = {
    'topology': topology,
    'layers': layers,
    'rows': rows,
    'tensor': tensor,
    'prompt_tokens': prompt_tokens,
    'response_tokens': response_tokens,
  }
  pythons = {'ours': sys.executable, 'tunix': tunix_python}
  found = {}
  for side in _SIDES:
    found[side] = workers.run_once(
      f'tpu_aot_{side}', python=pythons[side], **given
    )
    print(f'{side:6} {_line(found[side])}', flush=True)
  ours, theirs = (found[side] for side in _SIDES)
  ratios = {
    name: ours[name] / theirs[name] for name in ('peak_bytes', 'hbm_bytes')
  }
  print('ours / tunix: ' + '  '.join(f'{k} {v:.2f}' for k, v in ratios.items()))
  return {'workload': given, **found, 'ratios': ratios}


def _line(side: dict) -> str:
  return (
    f'peak {side["peak_bytes"] / 2**30:.2f} GiB  '
    f'moved {side["hbm_bytes"] / 1e9:.1f} GB of HBM, '
    f'{side["link_bytes"] / 1e9:.2f} GB of links  '
    f'{side["flops"] / 1e12:.2f} TFLOP'
  )


def compile_ours(
  *,
  topology: str,
  layers: int,
  rows: int,
  tensor: int,
  prompt_tokens: int,
  response_tokens: int,
) -> None:
  """Prints what our update costs a device."""
  import dataclasses

  from memagent_jax import sharding
  from memagent_jax.planning import chips, programs, shapes
  from memagent_jax.rl.grpo import GrpoConfig
  from memagent_jax.train.train_state import OptimizerConfig

  model = dataclasses.replace(
    shapes.CONFIGS['Qwen2.5-7B-Instruct'],
    num_layers=layers,
    dtype='bfloat16',
    remat=True,
  )
  workload = programs.Workload(
    model=model,
    objective=GrpoConfig(kl_coefficient=0.0, log_entropy=False),
    optimizer=OptimizerConfig(),
    memory_prompt_tokens=prompt_tokens,
    answer_prompt_tokens=prompt_tokens,
    memory_tokens=response_tokens,
    answer_tokens=response_tokens,
    # One turn a row: a document without chunks has only its answer turn.
    chunks=0,
    documents=rows,
    rollouts=1,
    sample_rows=rows,
    micro_tokens=rows * (prompt_tokens + response_tokens),
  )
  mesh = sharding.make_mesh(
    sharding.MeshConfig(tensor=tensor), chips.devices(topology)
  )
  compiled = programs.compile_phase('update', workload, mesh)
  _print(topology, compiled)


def compile_tunix(
  *,
  topology: str,
  layers: int,
  rows: int,
  tensor: int,
  prompt_tokens: int,
  response_tokens: int,
) -> None:
  """Prints what google-tunix's step costs a device; runs in its interpreter."""
  import types

  from flax import nnx
  import jax
  from jax.experimental import topologies
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec
  import optax
  from tunix.models.qwen2 import model as qwen2
  from tunix.rl import algo_core, common
  from tunix.sft import peft_trainer

  from memagent_jax.planning import aot

  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=topology
  ).devices
  mesh = jax.make_mesh(
    (len(devices) // tensor, tensor),
    ('fsdp', 'tp'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=devices,
  )
  config = qwen2.ModelConfig.qwen2p5_7b()
  config.num_layers = layers
  config.dtype, config.param_dtype = jnp.bfloat16, jnp.float32
  config.remat_config = qwen2.RematConfig.DECODER
  config.use_flash_attention = True

  def make() -> Any:
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    return model, nnx.Optimizer(model, adamw, wrt=nnx.Param)

  graph, state = nnx.split(nnx.eval_shape(make))
  specs = nnx.get_partition_spec(state)

  def placed(leaf: Any, spec: Any) -> Any:
    sharding = NamedSharding(mesh, spec or PartitionSpec())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  state = jax.tree.map(placed, state, specs)

  def given(*shape: int, dtype: Any = jnp.int32) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec('fsdp'))
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

  example = common.TrainExample(
    prompt_ids=given(prompt_tokens),
    prompt_mask=given(prompt_tokens),
    completion_ids=given(response_tokens),
    completion_mask=given(response_tokens),
    advantages=given(dtype=jnp.float32),
    ref_per_token_logps=None,
    old_per_token_logps=given(response_tokens, dtype=jnp.float32),
  )
  algorithm = types.SimpleNamespace(
    beta=0.0,
    epsilon=0.2,
    epsilon_high=0.28,
    loss_algo='grpo',
    loss_agg_mode='token-mean',
    temperature=1.0,
  )
  # The attributes that tunix's step reads from its trainer.
  trainer = types.SimpleNamespace(
    gen_model_input_fn=lambda x: {
      'train_example': x,
      'algo_config': algorithm,
      'pad_id': 0,
      'eos_id': 1,
    },
    loss_fn=algo_core.grpo_loss_fn,
    _lora_enabled=False,
    _has_aux=True,
  )

  def step(state: Any, example: Any) -> Any:
    model, optimizer = nnx.merge(graph, state)
    loss, _, norm = peft_trainer.PeftTrainer._train_step(
      trainer, model, optimizer, example
    )
    return nnx.state((model, optimizer)), loss, norm

  out = jax.tree.map(lambda leaf: leaf.sharding, state)
  program = jax.jit(step, donate_argnums=0, out_shardings=(out, None, None))
  # tunix's layers take the mesh from this context.
  with mesh:
    _print(topology, aot.compile_program(mesh, program, state, example))


def _print(topology: str, compiled: Any) -> None:
  from memagent_jax.planning import chips, hlo

  cost = hlo.cost(compiled.hlo, chips.chip(topology).rates)
  peak = (
    compiled.argument_bytes + compiled.output_bytes + compiled.temporary_bytes
  )
  print(
    json.dumps(
      {
        'peak_bytes': peak,
        'temporary_bytes': compiled.temporary_bytes,
        'hbm_bytes': cost.hbm_bytes,
        'link_bytes': cost.link_bytes,
        'flops': cost.flops,
      }
    )
  )
