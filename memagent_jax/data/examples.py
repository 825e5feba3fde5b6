"""What every data set turns into: an `Example`, or a `Demonstration` of a turn.

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
  # Name of the task it belongs to, such as `niah_single_1`.
  task: str
  document: str
  question: str
  # Answers that are equivalent, or all required: `reward` says which.
  answers: tuple[str, ...]
  # Names of the training reward and the evaluation metric in `rewards.py`.
  reward: str = 'boxed_em'
  metric: str = 'sub_em_strict'
  # Tokens of document, question, template and answer budget, as counted with
  # `tokenizer`; 0 if not counted.
  tokens: int = 0
  tokenizer: str = ''
  # Spans of the evidence in `document`, in characters: (start, end).
  gold_spans: tuple[tuple[int, int], ...] = ()
  # Where the filler came from and how often it repeats.
  source: str = ''

  def to_json(self) -> str:
    """One line of JSON, without the newline; the same bytes everywhere."""
    return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A turn and the response to learn; without a chunk it is an answer turn."""

  question: str
  memory: str
  chunk: str | None
  response: str


def from_json(line: str) -> Example:
  """The Example that `to_json` wrote as this line."""
  fields = json.loads(line)
  fields['answers'] = tuple(fields['answers'])
  fields['gold_spans'] = tuple(tuple(span) for span in fields['gold_spans'])
  return Example(**fields)


def read_jsonl(path: str | os.PathLike) -> Iterator[Example]:
  """The examples in a file of `to_json` lines."""
  with Path(path).open(encoding='utf-8') as lines:
    for line in lines:
      yield from_json(line)


def check_question(name: str, tokens: int, question_tokens: int) -> None:
  """Refuses an example whose question has more tokens than its cap.

  Raises:
    ValueError: the question is over the cap; the message names the example.
  """
  if tokens > question_tokens:
    raise ValueError(
      f'example {name}: the question has {tokens} tokens; the cap, '
      f'question_tokens, is {question_tokens}.'
    )


def seeded(*names: object) -> random.Random:
  """A generator seeded by names, the same on every machine, in every process.

  The seed is the SHA-256 of the names joined by `/`, which other languages can
  compute, not Python's own seeding from text (by SHA-512).
  """
  digest = hashlib.sha256('/'.join(map(str, names)).encode()).digest()
  return random.Random(int.from_bytes(digest, 'big'))
