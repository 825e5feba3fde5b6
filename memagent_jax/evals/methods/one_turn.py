"""Baselines that answer in one turn, from the part of the document they show.

    document -> context (all, latest, retrieved, none) -> one prompt -> answer

A prompt beyond the model's window needs an extension, which stretches the rotary
positions or replaces the attention; a prompt that fits is read without it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts
from memagent_jax.agent.prompts import (
  DEFAULT_ONE_TURN_TEMPLATE,
  OneTurnTemplate,
)
from memagent_jax.agent.turns import texts, without_control_id
from memagent_jax.data.chunks import ChunkCutter
from memagent_jax.data.examples import Example
from memagent_jax.evals.methods.method import Answered, Result, sampling_name
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models import flops as flops_lib
from memagent_jax.models.configs import (
  DualChunkAttention,
  ModelConfig,
  SinkAttention,
)
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.sampling import decode
from memagent_jax.sampling.decode import SamplingConfig
from memagent_jax.structs import FINISH_REASONS

CONTEXTS = ('full', 'recent', 'retrieved', 'none')
EXTENSIONS = ('none', 'linear', 'dynamic', 'yarn', 'dual_chunk', 'sinks')
# Prompts are padded to a multiple of this, so that few programs are compiled.
_PROMPT_STEP = 128
_WORD = re.compile(r'\w+')


@dataclasses.dataclass(frozen=True)
class _Prompt:
  """A prompt, and how much of the document it shows."""

  ids: list[int]
  document_tokens: int
  shown_tokens: int


@dataclasses.dataclass(frozen=True)
class OneTurn:
  """Answers from one prompt."""

  # The part that is shown: `full`, all of the document, or its two ends if it is
  # too long; `recent`, its end; `retrieved`, the chunks that BM25 ranks highest;
  # `none`, nothing, which shows what the model knows without it.
  context: str = 'full'
  # Way to read beyond the window: `none`, nothing longer is shown; `linear`,
  # `dynamic` and `yarn` scale the rotary embedding; `dual_chunk` and `sinks`
  # replace the attention.
  extension: str = 'none'
  template: OneTurnTemplate = DEFAULT_ONE_TURN_TEMPLATE
  answer_tokens: int = 128
  # Longest prompt; None: the window less the answer, no limit with an extension.
  prompt_tokens: int | None = None
  # Longest document that is run; None: there is no limit.
  document_tokens: int | None = None
  # Most prompt tokens in a batch, which has at least one document.
  batch_tokens: int = 65_536
  # Length of the chunks that `retrieved` chooses from.
  chunk_tokens: int = 128
  # Chunk length of `dual_chunk` as a share of the window.
  chunk_share: float = 0.75
  # Number of first tokens that `sinks` keeps in view.
  sinks: int = 4
  # Sampling temperature; 0 is greedy.
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0

  independent_examples = False
  needs_params = True

  def __post_init__(self) -> None:
    for name, choices in (('context', CONTEXTS), ('extension', EXTENSIONS)):
      if getattr(self, name) not in choices:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}; choose from '
          f'{", ".join(choices)}.'
        )
    if self.extension != 'none' and self.context != 'full':
      raise ValueError(
        f'extension is {self.extension!r} and context is {self.context!r}: only '
        'a full context is longer than the window.'
      )

  @property
  def sampling(self) -> str:
    """Greedy, or temperature and top-p."""
    return sampling_name(self.temperature, self.top_p)

  @property
  def caps(self) -> Mapping[str, int]:
    """Empty: no turn reads a part of the document."""
    return {}

  def batch_size(self, config: ModelConfig, limit: int, tokens: int) -> int:
    """As many documents as `batch_tokens` holds, and at most `limit`."""
    shown = min(tokens, self._prompt_cap(config) or tokens)
    return max(1, min(limit, self.batch_tokens // max(shown, 1)))

  def most_tokens(self) -> int | None:
    """The longest document that is run."""
    return self.document_tokens

  def flops(self, config: ModelConfig, tokens: int) -> float:
    """Rough FLOPs of a document of `tokens` tokens."""
    shown = 0 if self.context == 'none' else tokens
    shown = min(shown, self._prompt_cap(config) or shown)
    return flops_lib.turn_flops(
      self._extended(config, shown), shown, self.answer_tokens
    )

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Answers all questions in one batch, without saving any progress.

    Prompts that fit the window are read as they are, others with the extension.
    A batch with both takes two calls, each with the whole batch's shape.

    Raises:
      ValueError: a prompt without room for any of the document.
    """
    del progress
    kind = 'question_turn' if self.context == 'none' else 'document_turn'
    pieces = prompts.compile_turn(
      getattr(self.template, kind), model.tokenizer, prompts.TURNS[kind]
    )
    all_prompts = [self._prompt(model, pieces, e) for e in examples]
    room = model.config.max_positions - self.answer_tokens
    fits = [len(prompt.ids) <= room for prompt in all_prompts]
    results: dict[int, Result] = {}
    started_at = time.perf_counter()
    for extended in (False, True):
      numbers = [n for n, fit in enumerate(fits) if fit != extended]
      if numbers:
        # Filled up to the whole batch's shape.
        filled = numbers + numbers[:1] * (len(examples) - len(numbers))
        answers = self._results(
          model,
          [examples[n] for n in filled],
          [all_prompts[n] for n in filled],
          extended,
        )
        results |= zip(filled, answers, strict=True)
    seconds = time.perf_counter() - started_at
    return Answered([results[n] for n in range(len(examples))], [seconds])

  def _results(
    self,
    model: Model,
    examples: Sequence[Example],
    all_prompts: Sequence[_Prompt],
    extended: bool,
  ) -> list[Result]:
    """The answers to prompts, in one call."""
    longest = max(len(prompt.ids) for prompt in all_prompts)
    width = -(-longest // _PROMPT_STEP) * _PROMPT_STEP
    config = self._extended(model.config, width) if extended else model.config
    key_N = decode.row_keys(
      self.seed,
      jnp.asarray([decode.example_number(e.id) for e in examples], jnp.uint32),
      jnp.zeros(len(examples), jnp.int32),
    )
    response = jax.device_get(
      decode.generate_jitted(
        config,
        model.params,
        tokens_lib.pad_rows([prompt.ids for prompt in all_prompts], width),
        SamplingConfig(self.answer_tokens, self.temperature, 0, self.top_p),
        model.tokenizer.control_ids,
        key_N,
      )
    )
    answers = texts(model.tokenizer, without_control_id(response))
    return [
      Result(
        answer=text,
        finish_reason=FINISH_REASONS[int(response.finish_N[n])],
        own_tokens=prompt.document_tokens,
        read_tokens=prompt.shown_tokens,
        turns={},
        flops=flops_lib.turn_flops(
          config, len(prompt.ids), int(response.length_N[n])
        ),
      )
      for n, (text, prompt) in enumerate(zip(answers, all_prompts, strict=True))
    ]

  def _prompt_cap(self, config: ModelConfig) -> int | None:
    if self.prompt_tokens is not None or self.extension != 'none':
      return self.prompt_tokens
    return config.max_positions - self.answer_tokens

  def _prompt(
    self, model: Model, pieces: Sequence[prompts.Piece], example: Example
  ) -> _Prompt:
    tokenizer = model.tokenizer
    document = tokenizer.encode(example.document)
    fields = {'question': tokenizer.encode(example.question)}
    shown: list[int] = []
    if self.context != 'none':
      cap = self._prompt_cap(model.config)
      room = len(document)
      if cap is not None:
        room = cap - prompts.literal_tokens(pieces) - len(fields['question'])
        if room < 1:
          raise ValueError(
            f'example {example.id}: a prompt of {cap} tokens leaves no room for '
            'the document next to question and template.'
          )
      shown = self._shown(tokenizer, document, example.question, room)
      fields['document'] = shown
    ids = prompts.assemble_ids(pieces, fields)
    return _Prompt(ids, len(document), len(shown))

  def _shown(
    self, tokenizer: Tokenizer, document: list[int], question: str, room: int
  ) -> list[int]:
    """At most `room` tokens of the document."""
    if len(document) <= room:
      return document
    if self.context == 'recent':
      return document[-room:]
    if self.context == 'retrieved':
      return retrieve(tokenizer, document, question, self.chunk_tokens, room)
    head = room // 2
    return document[:head] + document[len(document) - (room - head) :]

  def _extended(self, config: ModelConfig, width: int) -> ModelConfig:
    """The config with the extension, for prompts of `width` tokens."""
    window = config.max_positions
    factor = (width + self.answer_tokens) / window
    if self.extension == 'none' or factor <= 1:
      return config
    if self.extension == 'dual_chunk':
      variant = DualChunkAttention(math.ceil(self.chunk_share * window))
      return dataclasses.replace(config, long_attention=variant)
    if self.extension == 'sinks':
      return dataclasses.replace(
        config, long_attention=SinkAttention(self.sinks)
      )
    if config.rope.rope_type != 'default':
      raise ValueError(
        f'extension is {self.extension!r}, and the model has a rotary scaling '
        f'of its own, {config.rope.rope_type!r}; expected default.'
      )
    # Dynamic NTK takes the factor from the length of each prompt.
    rope = dataclasses.replace(
      config.rope,
      rope_type=self.extension,
      factor=1.0 if self.extension == 'dynamic' else factor,
      original_max_position_embeddings=window,
    )
    return dataclasses.replace(config, rope=rope)


def retrieve(
  tokenizer: Tokenizer,
  document: list[int],
  question: str,
  chunk_tokens: int,
  room: int,
) -> list[int]:
  """The chunks that BM25 ranks highest for a question, in the document's order.

  Source: Robertson and Zaragoza 2009; Lucene's variant.

  Args:
    tokenizer: tokenizer of the document.
    document: ids of the document.
    question: question whose words are searched for.
    chunk_tokens: longest chunk; chunks end with sentences.
    room: most tokens of all chosen chunks together.

  Returns:
    ids of the chosen chunks, one after another.
  """
  import bm25s

  # bm25s logs every index that it builds.
  logging.getLogger('bm25s').setLevel(logging.WARNING)
  chunks = ChunkCutter(tokenizer, chunk_tokens).split(document)
  words = [_words(tokenizer.decode(chunk)) for chunk in chunks]
  question_words = _words(question)
  score = np.zeros(len(chunks))
  # Without words on both sides there is nothing to rank by.
  if question_words and any(words):
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    score = index.get_scores(question_words)
  chosen = []
  for i in np.argsort(-score, kind='stable'):
    if len(chunks[i]) <= room:
      chosen.append(i)
      room -= len(chunks[i])
  return [token for i in sorted(chosen) for token in chunks[i]]


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())
