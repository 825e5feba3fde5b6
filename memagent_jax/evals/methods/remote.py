"""Runs the same agent loop against any server with the OpenAI chat interface.

    text -> DocumentReading -> one chat completion a turn -> memory as text -> answer

Documents are read independently of each other, a bounded number at a time. What
a server cannot answer after all retries is a failed record, not the end of the grid.
"""

import asyncio
from collections.abc import Mapping, Sequence
import dataclasses
import os
import re
import time
from typing import Any

from memagent_jax.agent.memory_rules import Overwrite
from memagent_jax.agent.turns import Turn
from memagent_jax.data.examples import Example
from memagent_jax.evals.methods.chunked import (
  ChunkMethod,
  DocumentReading,
  ReadingState,
)
from memagent_jax.evals.methods.method import Answered, Result
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models.model import Model
from memagent_jax.structs import EOS, FINISH_REASONS, LENGTH

_FINISH = {'stop': FINISH_REASONS[EOS], 'length': FINISH_REASONS[LENGTH]}
_THINKING = re.compile(r'<think>.*?(</think>|\Z)', re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote(ChunkMethod):
  """Reads chunk by chunk with the model of a server (vLLM, SGLang, llama.cpp).

  The grid's model gives tokenizer and config; its weights are not loaded.
  Memories travel as text: a server takes no ids.
  """

  # Address of the server, such as http://localhost:8000/v1.
  base_url: str
  # Name of the model on the server.
  served_model: str
  # Most documents read at the same time; never more than a batch has.
  concurrency: int = 8
  # Repeats of a failed request; waits grow with every try.
  max_retries: int = 4
  timeout_seconds: float = 300.0
  # Environment variable with the key, if the server wants one.
  api_key_variable: str = 'OPENAI_API_KEY'

  independent_examples = True
  needs_params = False

  def __post_init__(self) -> None:
    if self.concurrency < 1 or self.max_retries < 0:
      raise ValueError(
        f'concurrency is {self.concurrency} and max_retries is '
        f'{self.max_retries}; expected at least 1 and 0.'
      )
    if type(self.reading.rule) is not Overwrite:
      raise ValueError(
        f'the memory rule is {self.reading.rule}; a server gives no '
        'probabilities and no ids here. Use Overwrite().'
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
    return asyncio.run(self._answer_all(openai, model, examples, progress))

  async def _answer_all(
    self,
    openai: Any,
    model: Model,
    examples: Sequence[Example],
    progress: Progress,
  ) -> Answered:
    states: dict[str, dict[str, Any]] = progress.state or {}
    chars_read: dict[str, float] = {}
    all_chars = max(sum(len(example.document) for example in examples), 1)
    seconds: list[float] = []
    gate = asyncio.Semaphore(self.concurrency)

    def save(document: '_Document') -> None:
      name = document.example.id
      states[name] = document.state()
      chars_read[name] = document.reading.chars_read()
      progress.update(sum(chars_read.values()) / all_chars, lambda: states)

    async with openai.AsyncOpenAI(
      base_url=self.base_url,
      # The package insists on a key; self-hosted servers need none.
      api_key=os.environ.get(self.api_key_variable) or 'none',
      max_retries=self.max_retries,
      timeout=self.timeout_seconds,
    ) as client:

      async def one(example: Example) -> Result:
        async with gate:
          state = states.get(example.id)
          document = _Document(self, client, model, example, state)
          try:
            while (spent := await document.read_chunk()) is not None:
              seconds.append(spent)
              save(document)
            return await document.answer()
          # ValueError: a body that is not JSON, or not text.
          except (openai.OpenAIError, ValueError, _NoAnswerError) as e:
            why = f'{type(e).__name__}: {e}'
            return document.reading.result('', 'error', 0.0, error=why)

      results = await asyncio.gather(*map(one, examples))
    return Answered(results, seconds)


class _NoAnswerError(Exception):
  """The server's reply is not a chat completion."""


class _Document:
  """One document in progress, with its memory as text."""

  def __init__(
    self,
    method: Remote,
    client: Any,
    model: Model,
    example: Example,
    state: Mapping[str, Any] | None,
  ) -> None:
    self._method, self._client, self._model = method, client, model
    self.example = example
    if state is None:
      self._memory = method.reading.template.empty_memory
      reading = ReadingState(model.tokenizer.encode(self._memory))
    else:
      self._memory = state['memory']
      reading = ReadingState.from_json(state['reading'])
    self.reading = DocumentReading(
      model.tokenizer, method.reading, example, reading
    )

  def state(self) -> dict[str, Any]:
    """The current state, from which another `_Document` can resume."""
    reading = dataclasses.asdict(self.reading.state)
    return {'memory': self._memory, 'reading': reading}

  async def read_chunk(self) -> float | None:
    """Takes the next turn; returns its seconds, None at the document's end."""
    chunks = self.reading.next_chunks(1)
    if not chunks:
      return None
    begun, (chunk,) = time.perf_counter(), chunks
    tokenizer, caps = self._model.tokenizer, self._method.reading
    text = tokenizer.decode(chunk)
    reply = await self._ask(
      caps.template.memory_turn, caps.memory_tokens, chunk=text
    )
    seconds = time.perf_counter() - begun
    self._memory = reply.text
    memory_ids = tokenizer.encode(reply.text)
    outcome = caps.rule.outcomes[0]
    index = self.reading.turn_count
    self.reading.add(
      memory_ids=memory_ids,
      chunk_tokens=len(chunk),
      finish=reply.finish,
      outcome=outcome,
      flops=reply.flops,
      record=lambda: Turn(
        question_index=0,
        chunk_index=index,
        chunk=text,
        chunk_tokens=len(chunk),
        memory=reply.text,
        memory_ids=memory_ids,
        response_tokens=reply.tokens,
        thought_tokens=0,
        finish_reason=reply.finish,
        outcome=outcome,
      ),
    )
    return seconds

  async def answer(self) -> Result:
    """Takes the answer turn."""
    caps = self._method.reading
    reply = await self._ask(caps.template.answer_turn, caps.answer_tokens)
    return self.reading.result(reply.text, reply.finish, reply.flops)

  async def _ask(self, turn: str, cap: int, **fields: str) -> '_Reply':
    """The reply of a chat completion.

    Raises:
      _NoAnswerError: the reply is not a chat completion.
    """
    fields |= {'question': self.example.question, 'memory': self._memory}
    # All fields at once: a field's text may look like another field.
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
      flops, tokens = 0.0, 0
      if (usage := reply.usage) is not None:
        tokens = usage.completion_tokens
        flops = reading.rule.turn_flops(
          self._model.config, usage.prompt_tokens, tokens
        )
    except (AttributeError, KeyError, TypeError, ValueError) as e:
      raise _NoAnswerError(f'{e!r} in the reply {str(reply)[:200]}') from e
    return _Reply(text, finish, tokens, flops)


@dataclasses.dataclass(frozen=True)
class _Reply:
  """A server's reply to one turn."""

  text: str  # text without its thinking
  finish: str  # `eos` or `length`
  tokens: int  # sampled tokens as the server counts them; 0 if it does not
  flops: float
