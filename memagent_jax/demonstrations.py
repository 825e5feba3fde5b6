"""Where the rows of supervised warm-up come from, step by step.

stage of the step -> skill -> demonstrations seeded by (seed, step) -> TurnRows
"""

from collections.abc import Callable, Sequence
import dataclasses
import random

from memagent_jax import prompts as prompts_lib
from memagent_jax import turn_rows
from memagent_jax.data import haystack, skills
from memagent_jax.data.examples import seeded
from memagent_jax.data.haystack import Filler
from memagent_jax.data.skills import Demonstration, SkillConfig
from memagent_jax.prompts import Prompts, Template
from memagent_jax.turn_rows import TurnRows


@dataclasses.dataclass(frozen=True)
class EchoConfig:
  """Rows of random ids that repeat: where copying starts.

  The first period is given, all that follows is learned.
  """

  # Different ids that occur, out of all but the control ids.
  symbols: int = 32
  # Ids until they repeat, drawn uniformly.
  min_period: int = 8
  max_period: int = 32

  def __post_init__(self):
    if not 1 <= self.min_period <= self.max_period:
      raise ValueError(
        f'periods from {self.min_period} to {self.max_period}; expected '
        '1 <= min <= max.'
      )


@dataclasses.dataclass(frozen=True)
class Mix:
  """Batches of one kind and one shape."""

  content: SkillConfig | EchoConfig
  rows: int = 64
  # Slots of a row; demonstrations that do not fit are drawn again.
  row_tokens: int = 192
  # Longest response, the ending control id included.
  response_tokens: int = 48

  def __post_init__(self):
    if not 1 <= self.response_tokens < self.row_tokens:
      raise ValueError(
        f'response_tokens {self.response_tokens} must be at least 1 and below '
        f'row_tokens {self.row_tokens}.'
      )


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of the curriculum: its batches, and how long it lasts."""

  # First step after this stage.
  until_step: int
  # The batch of a step is one of these, in turn.
  mixes: tuple[Mix, ...]

  def __post_init__(self):
    object.__setattr__(self, 'mixes', tuple(self.mixes))
    if not self.mixes:
      raise ValueError('a stage has no mixes; give it one or more.')


class Curriculum:
  """Rows of every step: a pure function of the step."""

  def __init__(
    self,
    stages: tuple[Stage, ...],
    template: Template,
    tokenizer,
    fillers: tuple[Filler, ...],
    seed: int = 0,
  ):
    """Makes a curriculum.

    Raises:
      ValueError: no stages, or stages that do not follow one another.
    """
    ends = [stage.until_step for stage in stages]
    if not ends or ends != sorted(set(ends)) or ends[0] < 1:
      raise ValueError(
        f'stages end at steps {ends}; expected one or more, rising.'
      )
    self.stages, self.seed = tuple(stages), seed
    self._prompts = prompts_lib.compile_template(template, tokenizer)
    self._tokenizer, self._fillers = tokenizer, tuple(fillers)
    self._symbols = sorted(
      set(range(tokenizer.vocab_size)) - set(tokenizer.control_ids)
    )
    seeded('symbols', seed).shuffle(self._symbols)

  @property
  def num_steps(self) -> int:
    """Steps of all stages together."""
    return self.stages[-1].until_step

  def stage(self, step: int) -> Stage:
    """The stage that a step belongs to; the last one goes on for ever."""
    for stage in self.stages:
      if step < stage.until_step:
        return stage
    return self.stages[-1]

  def mix(self, step: int) -> Mix:
    """What the batch of a step is made of."""
    mixes = self.stage(step).mixes
    return mixes[step % len(mixes)]

  def rows(self, step: int) -> TurnRows:
    """The batch of a step."""
    mix = self.mix(step)
    rng = seeded('demonstrations', self.seed, step)
    pairs = []
    while len(pairs) < mix.rows:
      if isinstance(mix.content, EchoConfig):
        prompt, response = self._echo(mix, rng)
      else:
        made = skills.demonstrate(mix.content, self._fillers, rng)
        prompt, response = encode(self._prompts, self._tokenizer, made)
      if (
        len(prompt) + len(response) <= mix.row_tokens
        and len(response) <= mix.response_tokens
      ):
        pairs.append((prompt, response))
    return turn_rows.demonstration_rows(pairs, mix.row_tokens)

  def _echo(self, mix: Mix, rng: random.Random) -> tuple[list[int], list[int]]:
    echo = mix.content
    period = rng.randint(echo.min_period, echo.max_period)
    ids = rng.choices(self._symbols[: echo.symbols], k=period)
    row = ids * (1 + mix.response_tokens // period)
    # The repeat's first id follows from nothing.
    prompt = period + 1
    return row[:prompt], row[prompt : mix.response_tokens]


def encode(
  prompts: Prompts, tokenizer, demonstration: Demonstration
) -> tuple[list[int], list[int]]:
  """(prompt ids, response ids with the ending control id) of one turn.

  Args:
    prompts: the compiled template.
    tokenizer: of the model.
    demonstration: what to encode.
  """
  d = demonstration
  fields = {'question': d.question, 'memory': d.memory, 'chunk': d.chunk}
  ids = {name: tokenizer.encode(text) for name, text in fields.items() if text}
  turn = prompts.answer_turn if d.chunk is None else prompts.memory_turn
  prompt: list[int] = []
  for piece in turn:
    prompt += ids.get(piece, []) if isinstance(piece, str) else piece
  return prompt, [*tokenizer.encode(d.response), tokenizer.eos_ids[0]]


def fillers(essays: Sequence[str]) -> tuple[Filler, ...]:
  """The repeated sentences of RULER, and the text of files or folders."""
  texts = (haystack.essays(*essays),) if essays else ()
  return (haystack.noise(), *texts)


def accuracy(
  respond: Callable[[list[list[int]]], list[list[int]]],
  encode: Callable[[Demonstration], tuple[list[int], list[int]]],
  config: SkillConfig,
  fillers: Sequence[Filler],
  count: int,
  seed: int = 0,
) -> float:
  """Share of exactly right responses to `count` demonstrations.

  Args:
    respond: prompts -> responses with their ending control id, greedy.
    encode: demonstration -> prompt and response.
    config: what demonstrations to draw.
    fillers: what to hide needles in.
    count: how many; the same ones at every call.
    seed: of the demonstrations.
  """
  rng = seeded('accuracy', seed)
  drawn = [
    skills.demonstrate(config, tuple(fillers), rng) for _ in range(count)
  ]
  pairs = [encode(made) for made in drawn]
  responses = respond([prompt for prompt, _ in pairs])
  right = [
    response == wanted
    for response, (_, wanted) in zip(responses, pairs, strict=True)
  ]
  return sum(right) / len(right)
