"""The workload of a run, from what its gin files bind to training."""

from collections.abc import Callable
import dataclasses
import itertools
import math
from typing import Any

from memagent_jax.agent.engine import Lockstep
from memagent_jax.agent.prompts import Template
from memagent_jax.planning import shapes
from memagent_jax.planning.programs import Workload
from memagent_jax.sharding import MeshConfig

# Characters per token, a low estimate: a plan may ask for too much.
_TOKEN_CHARACTERS = 3
# Control tokens of a chat format around a turn.
_CHAT_TOKENS = 32


def of_run(
  bound: Callable, document_tokens: int
) -> tuple[Workload, MeshConfig, int]:
  """The workload of a run of `trainer.train` on `rollouts.Rollouts`.

  Args:
    bound: a function like `commands.runs.bound`.
    document_tokens: length of a document.

  Returns:
    the workload, the mesh, and the steps of the run.

  Raises:
    ValueError: a run of another kind, a model whose shape is not known, or
      trajectories that do not divide into the parts of its engine.
  """

  def bound_or(default: Any, argument: str, *path: str) -> Any:
    try:
      return bound(argument, *path)
    except ValueError:
      return default

  reading, config = bound('reading', 'source'), bound('config', 'source')
  engine = bound_or(Lockstep(), 'engine', 'source')
  trajectories = config.documents_per_step * config.rollouts
  model = dataclasses.replace(
    shapes.config(bound('name_or_dir', 'model')),
    dtype=bound_or('float32', 'compute_dtype'),
    remat=bound_or(False, 'remat'),
    lora=bound_or(None, 'lora'),
  )
  work = Workload(
    model=model,
    objective=bound('objective', 'source'),
    optimizer=bound('optimizer'),
    memory_prompt_tokens=(
      _template_tokens(reading.template, 'memory_turn')
      + reading.question_tokens
      + reading.memory_tokens
      + reading.chunk_tokens
    ),
    answer_prompt_tokens=(
      _template_tokens(reading.template, 'answer_turn')
      + reading.question_tokens
      + reading.memory_tokens
    ),
    memory_tokens=reading.memory_tokens,
    answer_tokens=reading.answer_tokens,
    chunks=math.ceil(document_tokens / reading.chunk_tokens),
    documents=config.documents_per_step,
    rollouts=config.rollouts,
    sample_rows=engine.part_size(trajectories),
    micro_tokens=config.micro_tokens,
    prefill_prompts=engine.prefill_prompts,
    temperature=reading.temperature,
    frozen_dtype=bound_or('float32', 'dtype', 'model'),
  )
  return work, bound('mesh'), bound('num_steps')


def variants(
  workload: Workload, mesh: MeshConfig
) -> list[tuple[Workload, MeshConfig]]:
  """The same run with other meshes, micro-batches, and rows at once."""
  return [
    (
      dataclasses.replace(
        workload,
        micro_tokens=micro * workload.micro_tokens,
        sample_rows=workload.sample_rows // part,
      ),
      dataclasses.replace(mesh, tensor=tensor),
    )
    for tensor, micro, part in itertools.product(
      sorted({1, 2, 4, 8, mesh.tensor}), (1, 2), (1, 2)
    )
  ]


def _template_tokens(template: Template, turn: str) -> int:
  """An upper estimate, without the tokenizer, of a turn's wording in tokens."""
  text = getattr(template, turn)
  return math.ceil(len(text) / _TOKEN_CHARACTERS) + _CHAT_TOKENS
