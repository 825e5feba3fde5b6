"""Your own documents and questions as JSONL: read, checked, and what they cost.

    {"question": ..., "answers": [...], "document": ...} -> Example

One object a line; `FIELDS` is the schema. A field that is null counts as absent,
any other name is an error. Any one of the answers is right.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import os

from memagent_jax.data import text
from memagent_jax.data.examples import Example
from memagent_jax.data.files import checked_records, json_records
from memagent_jax.data.files.checked_records import Problem, Row, is_text

# Name and what is expected there; one of the two documents, the last two
# optional. Evidence counts characters of the document, as Python does.
FIELDS: Mapping[str, str] = {
  'question': 'a text that is not blank',
  'answers': 'a list of one or more texts that are not blank',
  'document': 'a text that is not blank, and no document_path',
  'document_path': 'a file of text in UTF-8, relative to the JSONL file',
  'id': 'a text that no other line has; without it, FILE/LINE is taken',
  'evidence': 'a list of [start, end) spans in the document',
}


@dataclasses.dataclass(frozen=True)
class Report:
  """What `validate` found; of many problems the first ones are kept."""

  path: str
  # Lines without a problem.
  examples: int
  problem_count: int
  problems: tuple[Problem, ...]
  # Examples none of whose answers occurs in the document.
  warning_count: int
  warnings: tuple[Problem, ...]

  def __str__(self) -> str:
    """Problems and warnings, one a line, and a line of counts."""
    lines = [f'error: {problem}' for problem in self.problems]
    lines += [f'warning: {warning}' for warning in self.warnings]
    return '\n'.join(
      [
        *lines,
        f'{self.path}: {self.examples:,} examples, {self.problem_count:,} '
        f'errors, {self.warning_count:,} warnings',
      ]
    )


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What reading a file will take."""

  documents: int
  # Memory turns and one answer turn per document, at least: chunks that end at
  # a sentence are shorter than their budget.
  turns: int
  # Of the documents.
  tokens_read: int
  # If every memory and answer of these turns takes its whole budget.
  tokens_generated: int
  seconds: float


def read(
  path: str | os.PathLike,
  *,
  strict: bool = False,
  max_line_bytes: int = json_records.MAX_ROW_BYTES,
) -> Iterator[Example]:
  """The examples of a file, in its order.

  Args:
    path: a JSONL file as `FIELDS` says.
    strict: whether it is an error that no answer occurs in the document.
    max_line_bytes: longest line; a longer document goes into its own file.

  Raises:
    ValueError: at the first problem: file and line, field, got, expected.
  """
  for example, problems, _ in _rows(
    path, search=strict, strict=strict, max_line_bytes=max_line_bytes
  ):
    if problems:
      raise ValueError(str(problems[0]))
    yield example


def validate(
  path: str | os.PathLike,
  *,
  strict: bool = False,
  max_line_bytes: int = json_records.MAX_ROW_BYTES,
  max_kept: int = 100,
) -> Report:
  """All that is wrong with a file; `read` raises exactly if a problem is found.

  Args:
    path: a JSONL file as `FIELDS` says.
    strict: whether it is an error, not a warning, that no answer occurs in the
      document (in whatever case).
    max_line_bytes: longest line.
    max_kept: problems, and warnings, that the report holds; all are counted.
  """
  examples = problem_count = warning_count = 0
  kept: tuple[list[Problem], list[Problem]] = ([], [])
  for example, problems, warnings in _rows(
    path, search=True, strict=strict, max_line_bytes=max_line_bytes
  ):
    examples += example is not None
    problem_count += len(problems)
    warning_count += len(warnings)
    for held, new in zip(kept, (problems, warnings), strict=True):
      held.extend(new[: max_kept - len(held)])
  return Report(
    str(path),
    examples,
    problem_count,
    tuple(kept[0]),
    warning_count,
    tuple(kept[1]),
  )


def estimate(
  path: str | os.PathLike,
  tokenizer,
  *,
  chunk_tokens: int,
  memory_tokens: int,
  answer_tokens: int,
  tokens_per_second: float,
) -> Estimate:
  """Turns, tokens and seconds that reading every document of a file takes.

  Args:
    path: a JSONL file as `FIELDS` says.
    tokenizer: has `encode(text) -> list[int]`.
    chunk_tokens: budget of a chunk.
    memory_tokens: budget of a memory.
    answer_tokens: budget of an answer.
    tokens_per_second: document tokens, memory turns included, as
      `experiments.ask` shows it for the same budgets.

  Raises:
    ValueError: a budget or a speed that is not positive, or as `read` does.
  """
  for name, value in (
    ('chunk_tokens', chunk_tokens),
    ('memory_tokens', memory_tokens),
    ('answer_tokens', answer_tokens),
    ('tokens_per_second', tokens_per_second),
  ):
    if not value > 0:
      raise ValueError(f'{name} is {value}; expected more than 0.')
  documents = chunks = tokens = 0
  for example in read(path):
    count = len(tokenizer.encode(example.document))
    documents += 1
    tokens += count
    chunks += -(-count // chunk_tokens)
  return Estimate(
    documents=documents,
    turns=chunks + documents,
    tokens_read=tokens,
    tokens_generated=chunks * memory_tokens + documents * answer_tokens,
    seconds=tokens / tokens_per_second,
  )


_Checked = tuple[Example | None, list[Problem], list[Problem]]


def _rows(
  path, *, search: bool, strict: bool, max_line_bytes: int
) -> Iterator[_Checked]:
  """Example (None where there is none), problems and warnings of each line."""
  for row in checked_records.read(
    path,
    FIELDS,
    noun='example',
    max_line_bytes=max_line_bytes,
    too_long=(
      '; a longer document goes into a file of its own, named by document_path'
    ),
  ):
    example = None if row.fields is None else _example(row)
    if example is None or not search or _answered(example):
      yield example, row.problems, []
      continue
    got = json_records.brief(list(example.answers))
    row.problem('answers', got, 'one that is in the document')
    if strict:
      yield None, row.problems, []
    else:
      yield example, [], row.problems


def _example(row: Row) -> Example | None:
  """The example of an object; None where it has a problem."""
  document = _document(row)
  row.check('question', is_text)
  row.check('answers', _are_texts)
  evidence = row.fields.get('evidence', [])
  wrong = _wrong_span(evidence, document)
  if wrong is not None:
    size = '' if document is None else f' of {len(document):,} characters'
    row.problem(
      'evidence', json_records.brief(wrong), FIELDS['evidence'] + size
    )
  if row.problems:
    return None
  return Example(
    id=row.fields['id'],
    task='own',
    document=document,
    question=row.fields['question'],
    answers=tuple(row.fields['answers']),
    reward='boxed_em',
    metric='sub_em_strict',
    gold_spans=tuple((start, end) for start, end in evidence),
    source=row.fields.get('document_path', row.path.name),
  )


def _document(row: Row) -> str | None:
  """The text of `document` or of the file that `document_path` names."""
  given = [name for name in ('document', 'document_path') if name in row.fields]
  if len(given) != 1:
    got = 'both' if given else 'neither'
    row.problem('document, document_path', got, 'exactly one of the two')
    return None
  (name,) = given
  document = row.fields[name]
  got = json_records.brief(document)
  if name == 'document_path' and is_text(document):
    try:
      document = ''.join(text.read_pieces(row.path.parent / document))
      got += ', a file without text'
    except (ValueError, OSError) as e:
      document, got = None, str(e)
  if is_text(document):
    return document
  row.problem(name, got)
  return None


def _are_texts(value) -> bool:
  return isinstance(value, list) and bool(value) and all(map(is_text, value))


def _wrong_span(spans, document: str | None) -> object | None:
  """The first that is no span of the document; None where all are."""
  if not isinstance(spans, list):
    return spans
  for span in spans:
    if (
      not isinstance(span, list)
      or [type(bound) for bound in span] != [int, int]
      or not 0 <= span[0] < span[1]
      or (document is not None and span[1] > len(document))
    ):
      return 'null' if span is None else span
  return None


def _answered(example: Example) -> bool:
  document = example.document.casefold()
  return any(answer.casefold() in document for answer in example.answers)
