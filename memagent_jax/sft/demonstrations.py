"""Where the sequences of supervised warm-up come from, step by step.

stage of the step -> skill -> demonstrations seeded by (seed, step) -.
                  `-> file -> the next ones of the epoch's order ----+-> Sequences
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import random

import numpy as np

from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent.prompts import Prompts, Template
from memagent_jax.data.benchmarks import haystack
from memagent_jax.data.benchmarks.haystack import Filler
from memagent_jax.data.examples import Demonstration, seeded
from memagent_jax.data.files.checked_records import Problem
from memagent_jax.io import assets, downloads
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.sft import demonstration_files, skills
from memagent_jax.sft.skills import SkillConfig
from memagent_jax.train import sequences as sequences_lib
from memagent_jax.train.sequences import Ids, Sequences

# Maximum draws per sequence to find demonstrations that fit.
_MAX_DRAWS = 100
# Prompt ids and response ids.
_Pair = tuple[Ids, Ids]


@dataclasses.dataclass(frozen=True)
class _Line:
  """One encoded demonstration of a file."""

  number: int  # from 1
  prompt: np.ndarray  # int32
  response: np.ndarray  # int32


@dataclasses.dataclass(frozen=True)
class EchoConfig:
  """Random ids that repeat: the start of learning to copy.

  The first period is given; everything after it is learned.
  """

  # Number of distinct ids, at most all but the control ids.
  symbols: int = 32
  # Whether every sequence draws its own ids instead of sharing one set.
  fresh: bool = False
  # Number of ids until they repeat, drawn uniformly.
  min_period: int = 8
  max_period: int = 32

  def __post_init__(self) -> None:
    if not 1 <= self.min_period <= self.max_period:
      raise ValueError(
        f'periods from {self.min_period} to {self.max_period}; expected '
        '1 <= min <= max.'
      )
    if self.symbols < 1:
      raise ValueError(f'symbols is {self.symbols}; expected at least 1.')


@dataclasses.dataclass(frozen=True)
class FileConfig:
  """The demonstrations of a file, epoch by epoch: each is used equally often.

  All mixes of equal content share one pass through the file.
  """

  # JSONL file as `sft.demonstration_files.FIELDS` says.
  path: str
  # Whether every epoch has its own order; False: the order of the file.
  shuffle: bool = True


@dataclasses.dataclass(frozen=True)
class Mix:
  """Batches of one kind and one shape."""

  content: SkillConfig | EchoConfig | FileConfig
  # Demonstrations per batch.
  batch_size: int = 64
  # Slots of a sequence, for prompt and response. Demonstrations that do not fit
  # are redrawn; in a file they are an error.
  sequence_tokens: int = 192
  # Longest response, including the ending control id.
  response_tokens: int = 48

  def __post_init__(self) -> None:
    if not 1 <= self.response_tokens < self.sequence_tokens:
      raise ValueError(
        f'response_tokens {self.response_tokens} must be at least 1 and below '
        f'sequence_tokens {self.sequence_tokens}.'
      )


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of the curriculum: its batches, and how long it lasts."""

  # First step after this stage.
  until_step: int
  # The mixes that batches are made of, in turn.
  mixes: tuple[Mix, ...]

  def __post_init__(self) -> None:
    object.__setattr__(self, 'mixes', tuple(self.mixes))
    if not self.mixes:
      raise ValueError('a stage has no mixes; give it one or more.')


class Curriculum:
  """The sequences of every step: a pure function of the step."""

  def __init__(
    self,
    stages: Sequence[Stage],
    template: Template,
    tokenizer: Tokenizer,
    fillers: Sequence[Filler],
    seed: int = 0,
  ) -> None:
    """Makes a curriculum.

    Raises:
      ValueError: no stages, stages that do not follow one another, or a file
        with a demonstration that is invalid or does not fit.
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
    of_files = [
      (mix, mix.content.path)
      for stage in self.stages
      for mix in stage.mixes
      if isinstance(mix.content, FileConfig)
    ]
    paths = {path for _, path in of_files}
    self._files = {path: self._read(path) for path in paths}
    # Sequences are determined by the step and these files.
    self.file_hashes = {
      path: downloads.sha256(assets.text(path)) for path in paths
    }
    for mix, path in of_files:
      _check_fit(mix, path, self._files[path])

  @property
  def num_steps(self) -> int:
    """The number of steps of all stages together."""
    return self.stages[-1].until_step

  def stage(self, step: int) -> Stage:
    """The stage that a step belongs to; the last one never ends."""
    for stage in self.stages:
      if step < stage.until_step:
        return stage
    return self.stages[-1]

  def mix(self, step: int) -> Mix:
    """The mix that the batch of a step is made of."""
    mixes = self.stage(step).mixes
    return mixes[step % len(mixes)]

  def sequences(self, step: int) -> Sequences:
    """The batch of a step."""
    mix = self.mix(step)
    if isinstance(mix.content, FileConfig):
      pairs = self._of_file(mix, mix.content, step)
    else:
      rng = seeded('demonstrations', self.seed, step)
      pairs = self._made(mix, mix.content, rng)
    return sequences_lib.demonstration_sequences(pairs, mix.sequence_tokens)

  def _read(self, path: str) -> list[_Line]:
    """The encoded demonstrations of a file."""
    return [
      _Line(
        number,
        *(
          np.asarray(ids, np.int32)
          for ids in encode(self._prompts, self._tokenizer, made)
        ),
      )
      for number, made in demonstration_files.read(assets.text(path))
    ]

  def _of_file(self, mix: Mix, content: FileConfig, step: int) -> list[_Pair]:
    """The next `mix.batch_size` demonstrations after those of earlier steps."""
    lines = self._files[content.path]
    first = self._taken_before(content, step)
    pairs: list[_Pair] = []
    for position in range(first, first + mix.batch_size):
      epoch, i = divmod(position, len(lines))
      if content.shuffle:
        i = _order(len(lines), self.seed, epoch)[i]
      pairs.append((lines[i].prompt, lines[i].response))
    return pairs

  def _taken_before(self, content: FileConfig, step: int) -> int:
    """Number of demonstrations that all earlier steps take from a file."""
    total = start = 0
    for stage in self.stages:
      last = stage is self.stages[-1]
      end = step if last else min(step, stage.until_step)
      count = len(stage.mixes)
      for i, mix in enumerate(stage.mixes):
        if mix.content == content:
          # Steps from `start` on whose remainder modulo `count` is i.
          steps = range(start + (i - start) % count, end, count)
          total += len(steps) * mix.batch_size
      start = stage.until_step
    return total

  def _made(
    self, mix: Mix, content: SkillConfig | EchoConfig, rng: random.Random
  ) -> list[_Pair]:
    """Random demonstrations that fit.

    Raises:
      ValueError: too few fit.
    """
    pairs: list[_Pair] = []
    for _ in range(_MAX_DRAWS * mix.batch_size):
      if isinstance(content, EchoConfig):
        prompt, response = self._echo(mix, content, rng)
      else:
        made = skills.demonstrate(content, self._fillers, rng)
        prompt, response = encode(self._prompts, self._tokenizer, made)
      fits = len(prompt) + len(response) <= mix.sequence_tokens
      if fits and 0 < len(response) <= mix.response_tokens:
        pairs.append((prompt, response))
      if len(pairs) == mix.batch_size:
        return pairs
    raise ValueError(
      f'of {_MAX_DRAWS * mix.batch_size} demonstrations {len(pairs)} fit into '
      f'{mix.sequence_tokens} tokens with a response of {mix.response_tokens}; raise '
      f'sequence_tokens or response_tokens, or shorten {content}.'
    )

  def _echo(
    self, mix: Mix, echo: EchoConfig, rng: random.Random
  ) -> tuple[list[int], list[int]]:
    period = rng.randint(echo.min_period, echo.max_period)
    symbols = self._symbols[: echo.symbols]
    if echo.fresh:
      count = min(echo.symbols, len(self._symbols))
      symbols = rng.sample(self._symbols, count)
    ids = rng.choices(symbols, k=period)
    row = (ids * (1 + mix.sequence_tokens // period))[: mix.sequence_tokens]
    # The repeat's first id cannot be predicted.
    prompt = period + 1
    return row[:prompt], row[prompt:][: mix.response_tokens]


@functools.lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
  """The order of an epoch's lines, drawn from (seed, epoch)."""
  order = list(range(count))
  seeded('epoch', seed, epoch).shuffle(order)
  return tuple(order)


def _check_fit(mix: Mix, path: str, lines: Sequence[_Line]) -> None:
  """Raises ValueError for the first line that is longer than the mix's sequences."""
  for line in lines:
    p, r = len(line.prompt), len(line.response)
    for field, got, size, cap in (
      ('response', f'{r} tokens, its end included', r, 'response_tokens'),
      ('line', f'{p} + {r} = {p + r} tokens', p + r, 'sequence_tokens'),
    ):
      most = getattr(mix, cap)
      if size > most:
        expected = f'at most {most}, the {cap} of its mix'
        problem = Problem(path, line.number, field, got, expected)
        raise ValueError(str(problem))


def encode(
  prompts: Prompts, tokenizer: Tokenizer, demonstration: Demonstration
) -> tuple[list[int], list[int]]:
  """(prompt ids, response ids with the ending control id) of one turn.

  Args:
    prompts: the compiled template.
    tokenizer: the model's tokenizer.
    demonstration: the turn to encode.
  """
  d = demonstration
  texts = {'question': d.question, 'memory': d.memory, 'chunk': d.chunk or ''}
  fields = {name: tokenizer.encode(text) for name, text in texts.items()}
  turn = prompts.answer_turn if d.chunk is None else prompts.memory_turn
  prompt = prompts_lib.assemble_ids(turn, fields)
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
    respond: prompts -> greedy responses with their ending control id.
    encode: demonstration -> prompt and response.
    config: which demonstrations to draw.
    fillers: text to hide needles in.
    count: number of demonstrations, the same ones at every call.
    seed: seed of the demonstrations.
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
