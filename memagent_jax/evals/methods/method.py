"""The interface of every way to answer a question about a long document.

    Model + examples of one batch -> Method.answer -> Results, in their order

The agent and its baselines are values of this one interface, so that a grid runs
any of them on the same examples.
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
  """A method's answer to one example; a failure is a result, too."""

  answer: str
  # How the answer ended: `eos` or `length`; `error` if there is none.
  finish_reason: str
  # Tokens of the document by the model's own tokenizer, and those it was shown.
  own_tokens: int
  read_tokens: int
  # Number of turns that read the document, by finish reason.
  turns: Mapping[str, int]
  flops: float
  # Memory health over all turns: shares, lengths, turns with the evidence.
  health: Mapping[str, float | int | bool | None] = dataclasses.field(
    default_factory=dict
  )
  # Turns that changed the memory, with the fields that `trace.write_page` takes.
  trace: Sequence[Mapping[str, Any]] = ()
  # Why there is no answer; empty if there is one.
  error: str = ''


@dataclasses.dataclass(frozen=True)
class Answered:
  """The results of a batch, and how long its chunks took."""

  results: Sequence[Result]
  # Wall seconds per chunk of the whole batch, one value for each window.
  chunk_seconds: Sequence[float] = ()


def sampling_name(temperature: float, top_p: float) -> str:
  """The name of a way to draw tokens, such as `greedy`."""
  if temperature == 0.0:
    return 'greedy'
  return f'temperature {temperature:g}, top-p {top_p:g}'


class Method(Protocol):
  """A way to answer questions: a frozen dataclass of its settings."""

  # Name of the way tokens are drawn; greedy and sampled results never mix.
  sampling: str
  # `chunk_tokens` and `memory_tokens` of its turns; empty for methods without.
  caps: Mapping[str, int]
  # Whether an example's result is bitwise independent of the rest of its batch.
  independent_examples: bool
  # Whether the model's weights are used in this process.
  needs_params: bool

  def batch_size(self, config: ModelConfig, limit: int, tokens: int) -> int:
    """The number of documents in a batch, `limit` at most.

    Here as in `flops`, `tokens` is the rough length of a document.
    """

  def most_tokens(self) -> int | None:
    """The longest document that is run; None: there is no limit."""

  def flops(self, config: ModelConfig, tokens: int) -> float:
    """Rough FLOPs of one document."""

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Answers every example of a batch; the results are in their order.

    Nothing but the examples decides the shapes of arrays. `progress` holds the
    last save of a killed run, and takes new ones.
    """
