"""How a document is read: the user's settings, and what is static under jit.

Model + ReadingConfig -> make_agent -> AgentConfig
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from memagent_jax.agent import memory_rules
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.memory_rules import MemoryRule, Overwrite
from memagent_jax.agent.prompts import DEFAULT_TEMPLATE, Prompts, Template
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.model import Model
from memagent_jax.sampling.decode import SamplingConfig


@dataclasses.dataclass(frozen=True)
class AgentConfig:
  """Everything that is static in a rollout; hashable."""

  model: ModelConfig
  prompts: Prompts
  # What a turn leaves in memory.
  rule: MemoryRule
  # Ids that end a turn and never enter a memory, and the one to end a response.
  control_ids: tuple[int, ...]
  end_id: int
  # `<think>` and `</think>`, or None.
  think_ids: tuple[int, int] | None
  # Sampling of memories and answers; memory.max_tokens is the memory's cap M.
  memory: SamplingConfig
  answer: SamplingConfig
  # Caps on the chunk and the question, in tokens.
  chunk_tokens: int
  question_tokens: int
  # Maximum number of prompts prefilled at once, see `decode.prefill`.
  prefill_prompts: int = 0

  def __post_init__(self) -> None:
    if len(self.prompts.empty_memory) > self.memory.max_tokens:
      raise ValueError(
        f'the first memory has {len(self.prompts.empty_memory)} tokens; '
        f'memory_tokens is {self.memory.max_tokens}.'
      )
    for name, value in (
      ('chunk_tokens', self.chunk_tokens),
      ('question_tokens', self.question_tokens),
    ):
      if value < 1:
        raise ValueError(f'{name} is {value}; expected at least 1.')
    turns = {
      'memory turn': {
        'template': self.prompts.memory_turn_tokens,
        'question_tokens': self.question_tokens,
        'memory_tokens': self.memory.max_tokens,
        'chunk_tokens': self.chunk_tokens,
        'new memory': self.memory.max_tokens,
      },
      'answer turn': {
        'template': self.prompts.answer_turn_tokens,
        'question_tokens': self.question_tokens,
        'memory_tokens': self.memory.max_tokens,
        'answer_tokens': self.answer.max_tokens,
      },
    }
    for turn, parts in turns.items():
      total = sum(parts.values())
      if total > self.model.max_positions:
        terms = ' + '.join(f'{v} ({k})' for k, v in parts.items())
        raise ValueError(
          f'a {turn} needs {terms} = {total} tokens; the model sees '
          f'{self.model.max_positions}. Lower one of the caps.'
        )


@dataclasses.dataclass(frozen=True)
class ReadingConfig:
  """How a document is read. The paper's caps: 5000, 1024, 1024, 1024 tokens."""

  # Budget of a chunk, in tokens.
  chunk_tokens: int = 1024
  # Cap on the memory, in tokens.
  memory_tokens: int = 256
  # Cap on the answer, in tokens.
  answer_tokens: int = 128
  # Longest accepted question, in tokens.
  question_tokens: int = 1024
  # Sampling temperature; 0 is greedy.
  temperature: float = 0.0
  top_p: float = 1.0
  # Seed of all sampling; unused at temperature 0.
  seed: int = 0
  # Where a chunk ends: `sentence`, or `token` as in the paper.
  chunk_cut: str = 'sentence'
  # Wording of the turns.
  template: Template = DEFAULT_TEMPLATE
  # What a turn leaves in memory; a value of `memory_rules`.
  rule: MemoryRule = dataclasses.field(default_factory=Overwrite)

  def to_json(self) -> dict[str, Any]:
    """The settings as JSON-able values."""
    rule = memory_rules.to_json(self.rule)
    return dataclasses.asdict(self) | {'rule': rule}

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'ReadingConfig':
    """The settings that `to_json` returned.

    Raises:
      KeyError, TypeError, ValueError: wrong fields, or an unknown rule.
    """
    template = Template(**fields['template'])
    rule = memory_rules.from_json(fields['rule'])
    return cls(**{**fields, 'template': template, 'rule': rule})


def make_agent(
  model: Model, config: ReadingConfig, *, question_tokens: int | None = None
) -> AgentConfig:
  """The static configuration of a model that reads as `config` says.

  Args:
    model: the model, of which config and tokenizer are used.
    config: caps, sampling, wording and memory rule.
    question_tokens: width of the question rows; None: the config's cap.

  Raises:
    ValueError: the caps together exceed the model's window, or the template's
      fields are not the rule's.
  """
  tokenizer = model.tokenizer
  if question_tokens is None:
    question_tokens = config.question_tokens
  memory, answer = (
    SamplingConfig(cap, temperature=config.temperature, top_p=config.top_p)
    for cap in (config.memory_tokens, config.answer_tokens)
  )
  return AgentConfig(
    model=model.config,
    prompts=prompts_lib.compile_template(
      config.template, tokenizer, config.rule.fields
    ),
    rule=config.rule.bind(tokenizer),
    control_ids=tokenizer.control_ids,
    end_id=tokenizer.eos_ids[0],
    think_ids=tokenizer.think_ids,
    memory=memory,
    answer=answer,
    chunk_tokens=config.chunk_tokens,
    question_tokens=question_tokens,
  )
