"""Baselines that answer in one turn, from what of the document they show.

    document -> context (all, latest, retrieved, none) -> one prompt -> answer

A prompt beyond the model's window needs an extension, which stretches the rotary
positions or replaces the attention; while it fits, all of them are plain.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts, trajectories
from memagent_jax.agent.prompts import (
  DEFAULT_ONE_TURN_TEMPLATE,
  OneTurnTemplate,
)
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
# Prompts are padded to a multiple of this, so that programs recur.
_PROMPT_STEP = 128
_WORD = re.compile(r'\w+')


@dataclasses.dataclass(frozen=True)
class OneTurn:
  """Answers from one prompt."""

  # Of the document: `full`, all, or its two ends where that is too long;
  # `recent`, its end; `retrieved`, the chunks that BM25 finds for the question;
  # `none`, nothing, which shows what the model knows anyway.
  context: str = 'full'
  # Beyond the window: `none`, nothing longer is shown; `linear`, `dynamic` and
  # `yarn` scale the rotary embedding, `dual_chunk` and `sinks` the attention.
  extension: str = 'none'
  template: OneTurnTemplate = DEFAULT_ONE_TURN_TEMPLATE
  answer_tokens: int = 128
  # Longest prompt; None: the window less the answer, or none with an extension.
  prompt_tokens: int | None = None
  # Longer documents are not run at all; None: there is no limit.
  document_tokens: int | None = None
  # Prompt tokens of a batch; a batch has one document at least.
  batch_tokens: int = 65_536
  # Chunks that `retrieved` chooses from.
  chunk_tokens: int = 128
  # As in `models.configs`: chunks of `dual_chunk` as a share of the window.
  chunk_share: float = 0.75
  sinks: int = 4
  # 0 is greedy.
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0

  independent_rows = False
  needs_params = True

  def __post_init__(self):
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
    """Empty: it has no turns."""
    return {}

  def batch_rows(self, config: ModelConfig, rows: int, tokens: int) -> int:
    """As many as `batch_tokens` hold."""
    shown = min(tokens, self._prompt_cap(config) or tokens)
    return max(1, min(rows, self.batch_tokens // max(shown, 1)))

  def most_tokens(self) -> int | None:
    """Longer documents are not run."""
    return self.document_tokens

  def flops(self, config: ModelConfig, tokens: int) -> float:
    """About what a document of so many tokens costs."""
    shown = 0 if self.context == 'none' else tokens
    shown = min(shown, self._prompt_cap(config) or shown)
    return flops_lib.turn_flops(
      self._extended(config, shown), shown, self.answer_tokens
    )

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Answers all questions in one batch; a kill loses it.

    Prompts that fit the window are read as they are, those that do not with the
    extension: two calls of the same number of rows where a batch has both.

    Raises:
      ValueError: a prompt without room for any of the document.
    """
    del progress
    kind = 'question_turn' if self.context == 'none' else 'document_turn'
    pieces = prompts.compile_turn(
      kind, getattr(self.template, kind), model.tokenizer
    )
    made = [self._prompt(model, pieces, example) for example in examples]
    room = model.config.max_positions - self.answer_tokens
    fits = [len(ids) <= room for ids, _, _ in made]
    results: dict[int, Result] = {}
    begun = time.perf_counter()
    for extended in (False, True):
      places = [n for n, fit in enumerate(fits) if fit != extended]
      if places:
        # The shape is the whole batch's.
        full = places + places[:1] * (len(made) - len(places))
        found = self._results(
          model, [examples[n] for n in full], [made[n] for n in full], extended
        )
        results |= zip(full, found, strict=True)
    seconds = time.perf_counter() - begun
    return Answered([results[n] for n in range(len(made))], [seconds])

  def _results(
    self,
    model: Model,
    examples: Sequence[Example],
    made: Sequence[tuple[list[int], int, int]],
    extended: bool,
  ) -> list[Result]:
    """Answers to prompts, as `_prompt` makes them, by one call."""
    longest = max(len(ids) for ids, _, _ in made)
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
        tokens_lib.pad_rows([ids for ids, _, _ in made], width),
        SamplingConfig(self.answer_tokens, self.temperature, 0, self.top_p),
        model.tokenizer.control_ids,
        key_N,
      )
    )
    texts = trajectories.texts(
      model.tokenizer, trajectories.without_control_id(response)
    )
    return [
      Result(
        answer=text,
        finish_reason=FINISH_REASONS[int(response.finish_N[n])],
        own_tokens=own,
        read_tokens=read,
        turns={},
        flops=flops_lib.turn_flops(config, len(ids), int(response.length_N[n])),
      )
      for n, (text, (ids, own, read)) in enumerate(
        zip(texts, made, strict=True)
      )
    ]

  def _prompt_cap(self, config: ModelConfig) -> int | None:
    if self.prompt_tokens is not None or self.extension != 'none':
      return self.prompt_tokens
    return config.max_positions - self.answer_tokens

  def _prompt(
    self, model: Model, pieces: Sequence[prompts.Piece], example: Example
  ) -> tuple[list[int], int, int]:
    """Ids of the prompt, and the document's tokens: all, and those in it."""
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
            'the document beside question and template.'
          )
      shown = self._shown(tokenizer, document, example.question, room)
      fields['document'] = shown
    ids = [
      i
      for piece in pieces
      for i in (fields[piece] if isinstance(piece, str) else piece)
    ]
    return ids, len(document), len(shown)

  def _shown(
    self, tokenizer: Tokenizer, document: list[int], question: str, room: int
  ) -> list[int]:
    if len(document) <= room:
      return document
    if self.context == 'recent':
      return document[-room:]
    if self.context == 'retrieved':
      return retrieve(tokenizer, document, question, self.chunk_tokens, room)
    head = room // 2
    return document[:head] + document[len(document) - (room - head) :]

  def _extended(self, config: ModelConfig, width: int) -> ModelConfig:
    """The model with its extension, for prompts of so many tokens."""
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
    # Dynamic NTK takes the factor from each row's own length.
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

  Source: Robertson and Zaragoza 2009; the variant that Lucene has.

  Args:
    tokenizer: of the document.
    document: ids.
    question: words that are searched for.
    chunk_tokens: of a chunk at most; chunks end with sentences.
    room: tokens of all chosen chunks together, at most.
  """
  import bm25s

  chunks = ChunkCutter(tokenizer, chunk_tokens).split(document)
  words = [_words(tokenizer.decode(chunk)) for chunk in chunks]
  asked = _words(question)
  score = np.zeros(len(chunks))
  # Without a word on either side there is nothing to rank by.
  if asked and any(words):
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    score = index.get_scores(asked)
  chosen = []
  for i in np.argsort(-score, kind='stable'):
    if len(chunks[i]) <= room:
      chosen.append(i)
      room -= len(chunks[i])
  return [token for i in sorted(chosen) for token in chunks[i]]


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())
