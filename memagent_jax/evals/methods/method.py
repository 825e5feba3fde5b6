"""What every way to answer a question about a long document has in common.

    Model + examples of one batch -> Method.answer -> Results, in their order

The agent and its baselines are values of this one interface, so that a grid runs
any of them on the same rows.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Protocol

from memagent_jax.data.examples import Example
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.model import Model


@dataclasses.dataclass(frozen=True)
class Result:
  """What a method made of one example; a failure is a result, too."""

  answer: str
  # `eos` or `length` of the answer; `error` where there is none.
  finish_reason: str
  # Document tokens of the model's own tokenizer, and how many of them it saw.
  own_tokens: int
  read_tokens: int
  # Turns that read the document, by finish reason.
  turns: Mapping[str, int]
  flops: float
  # Of the memory over all turns: shares, mean tokens, when the evidence came.
  health: Mapping[str, float | int | bool | None] = dataclasses.field(
    default_factory=dict
  )
  # Turns that changed the memory, with the fields that `trace.write_page` wants.
  trace: Sequence[Mapping[str, Any]] = ()
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Answered:
  """Results of a batch, and how long its chunks took."""

  results: Sequence[Result]
  # Wall seconds per chunk of the whole batch, of one window each.
  chunk_seconds: Sequence[float] = ()


def sampling_name(temperature: float, top_p: float) -> str:
  """How results that are drawn like this are called."""
  if temperature == 0.0:
    return 'greedy'
  return f'temperature {temperature:g}, top-p {top_p:g}'


class Method(Protocol):
  """A way to answer; a frozen dataclass, so that its settings are its value."""

  # How tokens are drawn: greedy and sampled results are never compared.
  sampling: str
  # Of its turns, chunk_tokens and memory_tokens; empty where there are none.
  caps: Mapping[str, int]
  # Whether rows of a batch influence neither each other's bits nor shapes.
  independent_rows: bool
  # Whether the model's weights are used here.
  needs_params: bool

  def batch_rows(self, config: ModelConfig, rows: int, tokens: int) -> int:
    """Documents of about so many tokens in a batch, `rows` at most."""

  def most_tokens(self) -> int | None:
    """Longer documents are not run; None: there is no limit."""

  def flops(self, config: ModelConfig, tokens: int) -> float:
    """About what one document of so many tokens costs."""

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Answers every example.

    Args:
      model: params, config and tokenizer.
      examples: of one batch; shapes depend on them alone.
      progress: what a killed run goes on from, and gets to know of this one.
    """
