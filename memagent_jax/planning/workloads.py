"""The workload of a run, from what its gin files bind to training."""

from collections.abc import Callable
import dataclasses
import itertools
import math

from memagent_jax.agent.engine import Lockstep
from memagent_jax.agent.prompts import DEFAULT_TEMPLATE, Template
from memagent_jax.planning import shapes
from memagent_jax.planning.programs import Workload
from memagent_jax.sharding import MeshConfig

# Characters a token stands for, taken low: a plan may ask for too much.
_TOKEN_CHARACTERS = 3
# Control tokens of a chat format around a turn.
_CHAT_TOKENS = 32


def of_run(
  bound: Callable, document_tokens: int
) -> tuple[Workload, MeshConfig, int]:
  """What a run of `trainer.train` on `rollouts.Rollouts` asks of its devices.

  Args:
    bound: as `experiments.runs.bound`.
    document_tokens: of a document.

  Returns:
    the workload, the mesh, and the steps of the run.

  Raises:
    ValueError: a run of another kind, a model whose shape is not known, or
      trajectories that do not divide into the parts of its engine.
  """

  def given(argument, *path, default):
    try:
      return bound(argument, *path)
    except ValueError:
      return default

  reading, config = bound('reading', 'source'), bound('config', 'source')
  template = given('template', 'source', default=DEFAULT_TEMPLATE)
  engine = given('engine', 'source', default=Lockstep())
  trajectories = config.documents_per_step * config.rollouts
  model = dataclasses.replace(
    shapes.config(bound('name_or_dir', 'model')),
    dtype=given('compute_dtype', default='float32'),
    remat=given('remat', default=False),
    lora=given('lora', default=None),
  )
  work = Workload(
    model=model,
    objective=bound('objective', 'source'),
    optimizer=bound('optimizer'),
    memory_prompt_tokens=(
      _template_tokens(template, 'memory_turn')
      + reading.question_tokens
      + reading.memory_tokens
      + reading.chunk_tokens
    ),
    answer_prompt_tokens=(
      _template_tokens(template, 'answer_turn')
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
    prefill_rows=engine.prefill_prompts,
    temperature=reading.temperature,
    frozen_dtype=given('dtype', 'model', default='float32'),
  )
  return work, bound('mesh'), bound('num_steps')


def variants(
  workload: Workload, mesh: MeshConfig
) -> list[tuple[Workload, MeshConfig]]:
  """The same run with other splits, micro-batches, and rows at once."""
  found = []
  for tensor, micro, part in itertools.product(
    sorted({1, 2, 4, 8, mesh.tensor}), (1, 2), (1, 2)
  ):
    rows = workload.sample_rows // part
    found.append(
      (
        dataclasses.replace(
          workload,
          micro_tokens=micro * workload.micro_tokens,
          sample_rows=rows,
        ),
        dataclasses.replace(mesh, tensor=tensor),
      )
    )
  return found


def _template_tokens(template: Template, turn: str) -> int:
  """At most, without the tokenizer."""
  text = getattr(template, turn)
  return math.ceil(len(text) / _TOKEN_CHARACTERS) + _CHAT_TOKENS
