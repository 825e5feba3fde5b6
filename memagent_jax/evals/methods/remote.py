"""The same agent loop against any server with the OpenAI chat interface.

    text -> DocumentStream -> one chat completion a turn -> memory as text -> answer

Documents are read independently of each other, a bounded number at a time. What
a server cannot answer after all retries is a failed row, not the end of the grid.
"""

import asyncio
from collections.abc import Sequence
import dataclasses
import os
import re
import time
from typing import Any

from memagent_jax.data.examples import Example
from memagent_jax.evals.methods.chunked import ChunkMethod, DocumentStream
from memagent_jax.evals.methods.method import Answered, Result
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models import flops
from memagent_jax.models.model import Model
from memagent_jax.structs import EOS, FINISH_REASONS, LENGTH

_FINISH = {'stop': FINISH_REASONS[EOS], 'length': FINISH_REASONS[LENGTH]}
_THINKING = re.compile(r'<think>.*?(</think>|\Z)', re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote(ChunkMethod):
  """Reads chunk by chunk with a model that a server has (vLLM, SGLang, llama.cpp).

  The model of the grid gives tokenizer and config; its weights are not loaded.
  Memories travel as text: a server takes no ids.
  """

  # Such as http://localhost:8000/v1.
  base_url: str
  # What the server calls its model.
  served_model: str
  # Documents that are read at the same time: of one batch, so that more than the
  # grid's `rows` never are.
  concurrency: int = 8
  # Of one request; waits grow from try to try.
  max_retries: int = 4
  timeout_seconds: float = 300.0
  # Environment variable with the key, if the server wants one.
  api_key_variable: str = 'OPENAI_API_KEY'

  independent_examples = True
  needs_params = False

  def __post_init__(self):
    if self.concurrency < 1 or self.max_retries < 0:
      raise ValueError(
        f'concurrency is {self.concurrency} and max_retries is '
        f'{self.max_retries}; expected at least 1 and 0.'
      )
    if self.reading.least_ratio:
      raise ValueError(
        f'least_ratio is {self.reading.least_ratio}; a server tells no '
        'probabilities here. Set it to 0.'
      )

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Reads all documents; those that fail say why.

    Raises:
      ValueError: the package `openai` is missing.
    """
    try:
      import openai
    except ImportError as e:
      raise ValueError(
        "method Remote needs the package openai: pip install -e '.[remote]'."
      ) from e
    results, seconds = asyncio.run(
      self._answer_all(openai, model, examples, progress)
    )
    return Answered(results, seconds)

  async def _answer_all(self, openai, model, examples, progress):
    saved = _Saved(progress, examples)
    seconds: list[float] = []
    gate = asyncio.Semaphore(self.concurrency)
    async with openai.AsyncOpenAI(
      base_url=self.base_url,
      # The package insists on a key; servers of one's own want none.
      api_key=os.environ.get(self.api_key_variable) or 'none',
      max_retries=self.max_retries,
      timeout=self.timeout_seconds,
    ) as client:

      async def one(example: Example) -> Result:
        async with gate:
          row = _Row(self, client, model, example, saved, seconds)
          try:
            return await row.read()
          # ValueError: a body that is no JSON, or no text.
          except (openai.OpenAIError, ValueError, _NoAnswerError) as e:
            return row.failed(f'{type(e).__name__}: {e}')

      results = await asyncio.gather(*map(one, examples))
    return results, seconds


class _NoAnswerError(Exception):
  """The server's reply is not what a chat completion is."""


class _Saved:
  """Where every document of a batch is."""

  def __init__(self, progress: Progress, examples: Sequence[Example]):
    self._progress = progress
    self.rows: dict[str, dict[str, Any]] = progress.state or {}
    self._chars_read: dict[str, float] = {}
    self._all_chars = max(sum(len(e.document) for e in examples), 1)

  def put(self, name: str, state: dict[str, Any], chars_read: float) -> None:
    """Takes where a document is, after so many of its characters."""
    self.rows[name], self._chars_read[name] = state, chars_read
    share = sum(self._chars_read.values()) / self._all_chars
    self._progress.update(share, lambda: self.rows)


class _Row:
  """One document on its way."""

  def __init__(self, method: Remote, client, model, example, saved, seconds):
    self._method, self._client, self._model = method, client, model
    self._example, self._saved, self._seconds = example, saved, seconds
    self._state = saved.rows.get(example.id) or {
      'memory': method.template.empty_memory,
      'stream': None,
      'turns': dict.fromkeys(_FINISH.values(), 0),
      'tokens': 0,
      'flops': 0.0,
      'changes': [],
    }
    self._stream = DocumentStream(
      model.tokenizer, method.reading, example.document, self._state['stream']
    )

  async def read(self) -> Result:
    """Reads what is left of the document, and answers."""
    state, template = self._state, self._method.template
    while chunk := self._stream.next():
      begun = time.perf_counter()
      text = self._model.tokenizer.decode(chunk)
      memory, finish = await self._ask(
        template.memory_turn, self._method.reading.memory_tokens, chunk=text
      )
      self._seconds.append(time.perf_counter() - begun)
      if memory != state['memory']:
        change = {'chunk_index': sum(state['turns'].values()), 'chunk': text}
        change |= {'memory': memory, 'finish_reason': finish}
        change['chunk_tokens'] = len(chunk)
        change['memory_ids'] = self._model.tokenizer.encode(memory)
        state['changes'].append(change)
      state['memory'] = memory
      state['turns'][finish] += 1
      state['tokens'] += len(chunk)
      state['stream'] = self._stream.state()
      self._saved.put(
        self._example.id, state, self._stream.chars_read(state['tokens'])
      )
    answer, finish = await self._ask(
      template.answer_turn, self._method.reading.answer_tokens
    )
    return self._result(answer, finish)

  def failed(self, why: str) -> Result:
    """A row without an answer."""
    return dataclasses.replace(self._result('', 'error'), error=why)

  def _result(self, answer: str, finish: str) -> Result:
    state = self._state
    return Result(
      answer=answer,
      finish_reason=finish,
      own_tokens=state['tokens'],
      read_tokens=state['tokens'],
      turns=state['turns'],
      flops=state['flops'],
      trace=state['changes'],
    )

  async def _ask(self, turn: str, cap: int, **fields: str) -> tuple[str, str]:
    """Text of a chat completion, thinking left out, and how it finished."""
    fields |= {
      'question': self._example.question,
      'memory': self._state['memory'],
    }
    # All at once: a field's text may look like another field.
    prompt = re.sub(r'\{(\w+)\}', lambda m: fields.get(m[1], m[0]), turn)
    reading = self._method.reading
    reply = await self._client.chat.completions.create(
      model=self._method.served_model,
      messages=[{'role': 'user', 'content': prompt}],
      max_tokens=cap,
      temperature=reading.temperature,
      top_p=reading.top_p,
      seed=reading.seed,
    )
    try:
      (choice, *_) = reply.choices
      text = _THINKING.sub('', choice.message.content or '')
      finish = _FINISH[choice.finish_reason]
      if (usage := reply.usage) is not None:
        self._state['flops'] += flops.turn_flops(
          self._model.config, usage.prompt_tokens, usage.completion_tokens
        )
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise _NoAnswerError(f'{e!r} in the reply {str(reply)[:200]}') from e
    return text, finish
