"""What every data set becomes: an `Example`, or a `Demonstration` of one turn.

    RULER | HotpotQA | upstream's files | own JSONL -> Example -> seqio task
    skills | demonstration_files -> Demonstration -> sft/demonstrations.py

Examples are JSONL with exactly the fields below; `document` is the long text.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import random


@dataclasses.dataclass(frozen=True)
class Example:
  """A document, a question about it, and the answers that are right."""

  id: str
  # Name of the task that it belongs to, such as `niah_single_1`.
  task: str
  document: str
  question: str
  # Equivalent answers, or all that are required: `reward` says which.
  answers: tuple[str, ...]
  # Name of the training reward and of the evaluation metric in `rewards.py`.
  reward: str = 'boxed_em'
  metric: str = 'sub_em_strict'
  # Document, question, template and answer budget, counted with `tokenizer`;
  # 0 where nobody counted.
  tokens: int = 0
  tokenizer: str = ''
  # Spans of the evidence in `document`, in characters: (start, end).
  gold_spans: tuple[tuple[int, int], ...] = ()
  # Where the filler came from and how often any of it repeats.
  source: str = ''

  def to_json(self) -> str:
    """One line of JSON, without the line end; the same bytes everywhere."""
    return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A turn and the response to learn; one without a chunk is an answer turn."""

  question: str
  memory: str
  chunk: str | None
  response: str


def from_json(line: str) -> Example:
  """The Example of one line of `to_json`."""
  fields = json.loads(line)
  fields['answers'] = tuple(fields['answers'])
  fields['gold_spans'] = tuple(tuple(span) for span in fields['gold_spans'])
  return Example(**fields)


def read_jsonl(path: str | os.PathLike) -> Iterator[Example]:
  """The examples of a file of `to_json` lines."""
  with Path(path).open(encoding='utf-8') as lines:
    for line in lines:
      yield from_json(line)


def check_question(name: str, tokens: int, question_tokens: int) -> None:
  """Refuses an example whose question has more tokens than its cap.

  Raises:
    ValueError: it is over the cap; the message names the example.
  """
  if tokens > question_tokens:
    raise ValueError(
      f'example {name}: the question has {tokens} tokens; the cap, '
      f'question_tokens, is {question_tokens}.'
    )


def seeded(*names: object) -> random.Random:
  """A generator seeded by names; equal on every machine and in every process.

  Python seeds from text with its own, documented hash (SHA-512); here SHA-256
  of the names joined by `/` is the seed, so that other languages can follow.
  """
  digest = hashlib.sha256('/'.join(map(str, names)).encode()).digest()
  return random.Random(int.from_bytes(digest, 'big'))
