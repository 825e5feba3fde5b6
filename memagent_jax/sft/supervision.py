"""Supervised sequences of a curriculum as experience.

stages -> demonstrations.Curriculum -> sequences of the step -> Experience
"""

from collections.abc import Mapping, Sequence
import time
from typing import Any

import jax
import numpy as np

from memagent_jax.agent.prompts import DEFAULT_TEMPLATE, Template
from memagent_jax.models.model import Model
from memagent_jax.sft import demonstrations
from memagent_jax.sft.demonstrations import Curriculum, Stage
from memagent_jax.sft.imitation import Imitation
from memagent_jax.train import sequences, source
from memagent_jax.train.source import Experience


class Demonstrations:
  """Supervised sequences of a curriculum: advantage 1, no ratio."""

  def __init__(
    self,
    model: Model,
    *,
    stages: Sequence[Stage],
    template: Template = DEFAULT_TEMPLATE,
    essays: Sequence[str] = (),
    micro_tokens: int = 32_768,
    seed: int = 0,
  ):
    """Makes a source.

    Args:
      model: model that learns.
      stages: the curriculum.
      template: wording of the turns; the default is that of `Reader`.
      essays: files or folders of filler text, in addition to RULER's sentences.
      micro_tokens: slots of one micro-batch.
      seed: seed of the demonstrations.

    Raises:
      ValueError: sequences longer than the model's window.
    """
    self._model, self._micro_tokens = model, micro_tokens
    self._curriculum = Curriculum(
      stages,
      template,
      model.tokenizer,
      demonstrations.fillers(essays),
      seed,
    )
    self.num_steps = self._curriculum.num_steps
    longest = max(
      mix.sequence_tokens for stage in stages for mix in stage.mixes
    )
    if longest > model.config.max_positions:
      raise ValueError(
        f'sequence_tokens is {longest}; the window of the model is '
        f'{model.config.max_positions}.'
      )

  def next(self, step: int, params: dict) -> Experience:
    """The sequences of a step; params play no part."""
    del params
    begun = time.perf_counter()
    mix = self._curriculum.mix(step)
    drawn = jax.tree.map(np.asarray, self._curriculum.sequences(step))
    batches = sequences.micro_batches(
      drawn,
      widths=(mix.sequence_tokens,),
      micro_tokens=self._micro_tokens,
      capacity=mix.batch_size,
    )
    return Experience(
      objective=Imitation(self._model.config, mix.response_tokens),
      mini_batches=[batches],
      metrics={},
      seconds={'sequences': time.perf_counter() - begun},
      trained_tokens=source.trained_tokens(drawn),
    )

  def state(self) -> dict[str, Any]:
    """SHA-256 by file: step and files alone determine the sequences."""
    return dict(self._curriculum.file_hashes)

  def restore(self, state: Mapping[str, Any]) -> None:
    """Checks that the files are the same as in `state`.

    Raises:
      ValueError: a file has changed.
    """
    now = self._curriculum.file_hashes
    for path, sha256 in state.items():
      if now.get(path) != sha256:
        raise ValueError(
          f'{path}: SHA-256 is {now.get(path)}; the run began with {sha256}. '
          'Put the old file back, or use another workdir.'
        )
