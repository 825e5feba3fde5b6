"""HotpotQA and SQuAD in one form: questions, their paragraphs, and the pool.

    *.json | *.jsonl | *.parquet -> files/record_files.py
      -> QuestionSet(questions, pool) -> paragraphs.py

Sources: Yang et al. 2018 (HotpotQA, distractor setting), Rajpurkar et al. 2016
and 2018 (SQuAD 1.1 and 2.0). Files are the data sets' own JSON, or the same
records one per line.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
from pathlib import Path
from typing import Any

from memagent_jax.data.files import json_records, record_files


@dataclasses.dataclass(frozen=True)
class Question:
  """A question, its answers, and its own paragraphs as indices of the pool."""

  id: str
  question: str
  answers: tuple[str, ...]
  # Paragraphs that hold the evidence, in the file's order.
  gold: tuple[int, ...]
  # The file's other paragraphs for this question: its near distractors.
  near: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class QuestionSet:
  """Questions over one pool of distinct paragraphs."""

  name: str
  questions: tuple[Question, ...]
  # Distinct texts; each of HotpotQA's begins with a line that is its title.
  pool: tuple[str, ...]


class _Pool:
  """Distinct paragraphs, numbered in order of appearance."""

  def __init__(self) -> None:
    self.index: dict[str, int] = {}

  def add(self, paragraph: str) -> int:
    """The index of a paragraph, which is added if the pool lacks it."""
    return self.index.setdefault(paragraph, len(self.index))


def read_hotpotqa(*paths: str | os.PathLike) -> QuestionSet:
  """The questions of HotpotQA files in the distractor or fullwiki form.

  Raises:
    ValueError: no such file, not JSON, or a record without a field; names
      record, field, got and expected.
  """
  pool = _Pool()
  questions: list[Question] = []
  for where, record in _records(paths):
    context = _pairs(record, 'context', ('title', 'sentences'), where)
    facts = _pairs(record, 'supporting_facts', ('title', 'sent_id'), where)
    question = _field(record, 'question', str, where)
    answer = _field(record, 'answer', str, where)
    try:
      supporting = {title for title, _ in facts}
      paragraphs = [
        (title, pool.add(f'{title}\n{"".join(sentences).strip()}'))
        for title, sentences in context
      ]
    except (TypeError, ValueError) as e:
      raise ValueError(
        f'{where}: context or supporting_facts is not a list of [title, ...] '
        f'pairs ({e}).'
      ) from None
    gold = tuple(i for title, i in paragraphs if title in supporting)
    if not gold:
      raise ValueError(
        f'{where}: no paragraph of context has a title of supporting_facts; '
        f'expected one of {sorted(supporting)}.'
      )
    near = tuple(i for title, i in paragraphs if title not in supporting)
    name = str(record.get('_id', record.get('id', len(questions))))
    questions.append(Question(name, question, (answer,), gold, near))
  return _question_set(paths, questions, pool)


def read_squad(*paths: str | os.PathLike) -> QuestionSet:
  """The answerable questions of SQuAD files; equal answers appear once.

  Raises:
    ValueError: as in `read_hotpotqa`.
  """
  pool = _Pool()
  questions: list[Question] = []
  for where, record in _squad_records(paths):
    context = pool.add(_field(record, 'context', str, where).strip())
    listed = _field(record, 'answers', list, where)
    question = _field(record, 'question', str, where)
    if not listed:
      continue  # SQuAD 2.0's unanswerable questions; their paragraphs stay
    texts = [_field(answer, 'text', str, where) for answer in listed]
    answers = tuple(dict.fromkeys(texts))
    name = str(record.get('id', len(questions)))
    questions.append(Question(name, question.strip(), answers, (context,)))
  return _question_set(paths, questions, pool)


def _pairs(record: Any, name: str, keys: tuple[str, str], where: str) -> list:
  """A list of pairs; the data set's Parquet form has two lists instead."""
  value = record.get(name) if isinstance(record, Mapping) else None
  if isinstance(value, Mapping):
    columns = [_field(value, key, list, f'{where}: {name}') for key in keys]
    return list(zip(*columns, strict=False))
  return _field(record, name, list, where)


def _question_set(
  paths: Sequence[str | os.PathLike], questions: Sequence[Question], pool: _Pool
) -> QuestionSet:
  path = Path(paths[0])
  if not questions:
    raise ValueError(f'{path}: no question in it.')
  name = f'{path.parent.name}/{path.name}'
  return QuestionSet(name, tuple(questions), tuple(pool.index))


def _squad_records(
  paths: Sequence[str | os.PathLike],
) -> Iterator[tuple[str, Any]]:
  """One record per question, whether or not the file nests them."""
  for where, record in _records(paths):
    articles = record.get('data') if isinstance(record, Mapping) else None
    if articles is None:
      yield where, record
      continue
    for article in articles:
      for paragraph in _field(article, 'paragraphs', list, where):
        context = _field(paragraph, 'context', str, where)
        for question in _field(paragraph, 'qas', list, where):
          place = f'{where}: question {question.get("id")}'
          yield place, {'context': context, **question}


def _records(
  paths: Sequence[str | os.PathLike],
) -> Iterator[tuple[str, Any]]:
  """(place, record) pairs; a whole `.json` file may be one object."""
  for path in map(Path, paths):
    if path.suffix == '.json' and path.is_file() and _is_object(path):
      try:
        yield (
          f'{path}: record 1',
          json_records.parse(path.read_text(encoding='utf-8')),
        )
      except ValueError as e:
        raise ValueError(
          f'{path}: got {e}; expected one JSON object.'
        ) from None
      continue
    for number, record in enumerate(record_files.read(path), 1):
      yield f'{path}: record {number}', record


def _is_object(path: Path) -> bool:
  with path.open('rb') as file:
    return file.read(64).removeprefix(b'\xef\xbb\xbf').lstrip()[:1] == b'{'


def _field(record: Any, name: str, kind: type, where: str) -> Any:
  got = record.get(name) if isinstance(record, Mapping) else record
  if not isinstance(got, kind) or not isinstance(record, Mapping):
    raise ValueError(
      f'{where}: field {name} is {type(got).__name__}; expected '
      f'{kind.__name__}.'
    )
  return got
