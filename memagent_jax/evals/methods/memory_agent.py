"""MemAgent as a method: many documents side by side, of any length.

    texts -> a DocumentReading each -> windows of chunk slots -> Session.read
      -> memories, traces, health; now and then a Progress -> Session.answer

A killed reading resumes after the last window whose progress was saved.
"""

from collections.abc import Sequence
import dataclasses
import time

import jax

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import rollout
from memagent_jax.agent import session as session_lib
from memagent_jax.agent.config import AgentConfig, make_agent
from memagent_jax.agent.engine import Engine, Lockstep
from memagent_jax.agent.session import WINDOW_CHUNKS, Start
from memagent_jax.agent.turns import texts, turn_record, without_control_id
from memagent_jax.data.examples import Example, check_question
from memagent_jax.evals.methods.chunked import (
  ChunkMethod,
  DocumentReading,
  ReadingState,
)
from memagent_jax.evals.methods.method import Answered
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import FINISH_REASONS, Turns


@dataclasses.dataclass(frozen=True)
class MemAgent(ChunkMethod):
  """Reads chunk by chunk and answers from the memory."""

  # Engine that takes the turns.
  engine: Engine = dataclasses.field(default_factory=Lockstep)
  # Chunks of every document between two saves of its progress.
  window_chunks: int = WINDOW_CHUNKS

  independent_examples = False
  needs_params = True

  def answer(
    self, model: Model, examples: Sequence[Example], progress: Progress
  ) -> Answered:
    """Reads all documents side by side, then answers every question.

    Raises:
      ValueError: a question over its cap, or caps beyond the model's window.
    """
    agent = make_agent(model, self.reading)
    questions = [_question_ids(model, self, example) for example in examples]
    session = self.engine.open(
      agent,
      model.params,
      Start(
        tokens_lib.pad_rows(questions, self.reading.question_tokens),
        [example.id for example in examples],
        seed=self.reading.seed,
      ),
    )
    if progress.state is None:
      first = list(agent.prompts.empty_memory)
      states = [ReadingState(first) for _ in examples]
    else:
      session.restore(progress.state['session'])
      states = [ReadingState.from_json(s) for s in progress.state['documents']]
    documents = [
      DocumentReading(model.tokenizer, self.reading, example, state)
      for example, state in zip(examples, states, strict=True)
    ]
    all_chars = max(sum(len(example.document) for example in examples), 1)
    chunk_seconds: list[float] = []
    while any(
      window := [
        document.next_chunks(self.window_chunks) for document in documents
      ]
    ):
      begun, programs = time.perf_counter(), rollout.compiled_programs()
      first_chunk = session.turns_read
      turns = session.read(
        session_lib.slots(window, self.window_chunks, self.reading.chunk_tokens)
      )
      # A call that compiled says nothing of the others.
      if rollout.compiled_programs() == programs:
        # Seconds for a chunk of every document, though some may have ended.
        spent = time.perf_counter() - begun
        chunk_seconds.append(spent * len(documents) / sum(map(len, window)))
      # Sliced once a window, not once a document.
      slots = [
        jax.tree.map(lambda x, c=c: x[c], turns)
        for c in range(max(map(len, window)))
      ]
      for n, (document, chunks) in enumerate(
        zip(documents, window, strict=True)
      ):
        for c, chunk in enumerate(chunks):
          _add(
            document,
            agent,
            model.tokenizer,
            slots[c],
            n,
            question_tokens=len(questions[n]),
            chunk_index=first_chunk + c,
            chunk=chunk,
          )
      progress.update(
        sum(document.chars_read() for document in documents) / all_chars,
        lambda: {
          'session': session.state(),
          'documents': [dataclasses.asdict(d.state) for d in documents],
        },
      )
    response = session.answer()
    answers = texts(model.tokenizer, without_control_id(response))
    return Answered(
      [
        document.result(
          answers[n],
          FINISH_REASONS[int(response.finish_N[n])],
          agent.rule.turn_flops(
            agent.model,
            agent.prompts.answer_turn_tokens
            + len(questions[n])
            + len(document.memory_ids),
            int(response.length_N[n]),
          ),
        )
        for n, document in enumerate(documents)
      ],
      chunk_seconds,
    )


def _add(
  document: DocumentReading,
  agent: AgentConfig,
  tokenizer: Tokenizer,
  slot: Turns,
  n: int,
  *,
  question_tokens: int,
  chunk_index: int,
  chunk: Sequence[int],
) -> None:
  """Adds row n of one slot's turns to its document."""
  memory_ids = slot.memory.ids_NxW[n, : slot.memory.length_N[n]].tolist()
  document.add(
    memory_ids=memory_ids,
    chunk_tokens=len(chunk),
    finish=FINISH_REASONS[int(slot.response.finish_N[n])],
    outcome=agent.rule.outcomes[int(slot.outcome_CxN[n])],
    flops=agent.rule.turn_flops(
      agent.model,
      agent.prompts.memory_turn_tokens
      + question_tokens
      + len(document.memory_ids)
      + len(chunk),
      int(slot.response.length_N[n]),
    ),
    record=lambda: turn_record(
      tokenizer, agent, slot, n, chunk_index=chunk_index, chunk=chunk
    ),
  )


def _question_ids(
  model: Model, method: ChunkMethod, example: Example
) -> list[int]:
  ids = model.tokenizer.encode(example.question)
  check_question(example.id, len(ids), method.reading.question_tokens)
  return ids
