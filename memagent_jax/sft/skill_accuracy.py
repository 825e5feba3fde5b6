"""The measure of the warm-up: single turns that are right token for token.

params -> greedy responses -> accuracy of every skill
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import os

import numpy as np

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts
from memagent_jax.agent.prompts import Template
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.model import Model
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.sft import demonstrations
from memagent_jax.sft.skills import SkillConfig
from memagent_jax.structs import Params

# Prompts are padded to a multiple of this, so that programs are reused.
_PROMPT_STEP = 64


class SkillAccuracy:
  """Share of single turns whose greedy response is right token for token."""

  def __init__(
    self,
    model: Model,
    workdir: str | os.PathLike,
    *,
    template: Template,
    skills: Mapping[str, SkillConfig],
    essays: Sequence[str],
    count: int = 512,
    batch_size: int = 128,
    response_tokens: int = 64,
    seed: int = 0,
    respond: Callable[..., list[list[int]]] | None = None,
  ):
    """Prepares the measurement.

    Args:
      model: the model, of which config and tokenizer are used.
      workdir: not used.
      template: wording of the turns.
      skills: skills to measure, by name.
      essays: files or folders of filler text, other than in training.
      count: demonstrations per skill, the same ones at every call.
      batch_size: turns per device call.
      response_tokens: longest response.
      seed: seed of the demonstrations.
      respond: function like `greedy_responses`, which is the default.
    """
    del workdir
    self._skills, self._count, self._seed = dict(skills), count, seed
    self._encode = functools.partial(
      demonstrations.encode,
      prompts.compile_template(template, model.tokenizer),
      model.tokenizer,
    )
    self._fillers = demonstrations.fillers(essays)
    self._respond = functools.partial(
      respond or greedy_responses,
      model.config,
      model.tokenizer.control_ids,
      batch_size,
      response_tokens,
    )

  def __call__(self, params: dict, step: int) -> dict[str, float]:
    """`accuracy/NAME` of every skill."""
    del step
    respond = functools.partial(self._respond, params)
    return {
      f'accuracy/{name}': demonstrations.accuracy(
        respond, self._encode, config, self._fillers, self._count, self._seed
      )
      for name, config in self._skills.items()
    }


def greedy_responses(
  model: ModelConfig,
  control_ids: tuple[int, ...],
  batch_size: int,
  response_tokens: int,
  params: Params,
  prompt_ids: list[list[int]],
) -> list[list[int]]:
  """Greedy responses with their ending control id, in batches of one shape."""
  width = max(map(len, prompt_ids))
  width = -(-width // _PROMPT_STEP) * _PROMPT_STEP
  # Required, but unused by greedy decoding.
  key_N = decode.row_keys(
    0,
    sharding.shard_rows(np.arange(batch_size, dtype=np.uint32)),
    sharding.shard_rows(np.zeros(batch_size, np.int32)),
  )
  responses = []
  for start in range(0, len(prompt_ids), batch_size):
    part = prompt_ids[start : start + batch_size]
    # The last batch is filled with its first row.
    full = part + part[:1] * (batch_size - len(part))
    response = sharding.to_host(
      decode.generate_jitted(
        model,
        params,
        sharding.shard_rows(tokens_lib.pad_rows(full, width)),
        SamplingConfig(response_tokens),
        control_ids,
        key_N,
      )
    )
    responses += [
      response.ids_NxR[n, : response.length_N[n]].tolist()
      for n in range(len(part))
    ]
  return responses
