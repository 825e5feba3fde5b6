"""Your own documents and questions as JSONL: read, checked and estimated.

    {"question": ..., "answers": [...], "document": ...} -> Example

One object per line; `FIELDS` is the schema. A field that is null counts as
absent; any other name is an error. Any one of the answers is right.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import os

from memagent_jax.data import text
from memagent_jax.data.encoders import Encoder
from memagent_jax.data.examples import Example
from memagent_jax.data.files import checked_records, json_records
from memagent_jax.data.files.checked_records import Problem, Record, is_text

# What is expected in each field. Exactly one of `document` and `document_path`
# is needed; the last two fields are optional. Evidence is given in characters
# of the document, as Python counts them.
FIELDS: Mapping[str, str] = {
  'question': 'a text that is not blank',
  'answers': 'a list of one or more texts that are not blank',
  'document': 'a text that is not blank, and no document_path',
  'document_path': 'a file of text in UTF-8, relative to the JSONL file',
  'id': 'a text that no other line has; without it, FILE/LINE is taken',
  'evidence': 'a list of [start, end) spans in the document',
}


@dataclasses.dataclass
class Report:
  """The problems of a file; if there are many, only the first are kept."""

  path: str
  # Number of lines without a problem.
  examples: int = 0
  problem_count: int = 0
  problems: list[Problem] = dataclasses.field(default_factory=list)
  # Number of examples whose document contains none of the answers.
  warning_count: int = 0
  warnings: list[Problem] = dataclasses.field(default_factory=list)

  def __str__(self) -> str:
    """Problems and warnings, one per line, and a line of counts."""
    lines = [f'error: {problem}' for problem in self.problems]
    lines += [f'warning: {warning}' for warning in self.warnings]
    lines.append(
      f'{self.path}: {self.examples:,} examples, {self.problem_count:,} '
      f'errors, {self.warning_count:,} warnings'
    )
    return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What reading a file will take."""

  documents: int
  # Memory turns, and one answer turn per document: a lower bound, as chunks
  # that end at a sentence are shorter than their budget.
  turns: int
  # Tokens in the documents.
  tokens_read: int
  # Upper bound on the tokens of memories and answers in these turns.
  tokens_generated: int
  seconds: float


def read(
  path: str | os.PathLike,
  *,
  strict: bool = False,
  max_line_bytes: int = json_records.MAX_RECORD_BYTES,
) -> Iterator[Example]:
  """The examples of a file, in the file's order.

  Args:
    path: a JSONL file with the fields of `FIELDS`.
    strict: whether a document without any of its answers is an error.
    max_line_bytes: longest line; a longer document goes into its own file.

  Raises:
    ValueError: at the first problem; names file, line, field, got and expected.
  """
  for example, problems, _ in _examples(
    path, search=strict, strict=strict, max_line_bytes=max_line_bytes
  ):
    if example is None:
      raise ValueError(str(problems[0]))
    yield example


def validate(
  path: str | os.PathLike,
  *,
  strict: bool = False,
  max_line_bytes: int = json_records.MAX_RECORD_BYTES,
  max_kept: int = 100,
) -> Report:
  """All problems of a file; `read` raises if and only if there is one.

  Args:
    path: a JSONL file with the fields of `FIELDS`.
    strict: whether a document without any of its answers (ignoring case) is an
      error rather than a warning.
    max_line_bytes: longest line.
    max_kept: most problems, and most warnings, to report; all are counted.
  """
  report = Report(str(path))
  for example, problems, warnings in _examples(
    path, search=True, strict=strict, max_line_bytes=max_line_bytes
  ):
    report.examples += example is not None
    report.problem_count += len(problems)
    report.warning_count += len(warnings)
    report.problems += problems[: max_kept - len(report.problems)]
    report.warnings += warnings[: max_kept - len(report.warnings)]
  return report


def estimate(
  path: str | os.PathLike,
  tokenizer: Encoder,
  *,
  chunk_tokens: int,
  memory_tokens: int,
  answer_tokens: int,
  tokens_per_second: float,
) -> Estimate:
  """Turns, tokens and seconds that reading every document of a file takes.

  The tokens of chunk, memory and answer are budgets; `tokens_per_second` is the
  speed `memagent ask` shows for them: document tokens, memory turns included.

  Raises:
    ValueError: a budget or the speed is not positive, or as in `read`.
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


def _examples(
  path: str | os.PathLike, *, search: bool, strict: bool, max_line_bytes: int
) -> Iterator[tuple[Example | None, list[Problem], list[Problem]]]:
  """Example (None if unusable), problems and warnings of each line."""
  for record in checked_records.read(
    path,
    FIELDS,
    noun='example',
    max_line_bytes=max_line_bytes,
    too_long=(
      '; a longer document goes into a file of its own, named by document_path'
    ),
  ):
    example = _example(record) if record.fields else None
    if example is None or not search or _answered(example):
      yield example, record.problems, []
      continue
    got = json_records.brief(list(example.answers))
    record.problem('answers', got, 'one that is in the document')
    if strict:
      yield None, record.problems, []
    else:
      yield example, [], record.problems


def _example(record: Record) -> Example | None:
  """The example in a record; None if the record has a problem."""
  document = _document(record)
  record.check('question', is_text)
  record.check('answers', _are_texts)
  evidence = record.fields.get('evidence', [])
  wrong = _wrong_span(evidence, document)
  if wrong is not None:
    size = '' if document is None else f' of {len(document):,} characters'
    record.problem(
      'evidence', json_records.brief(wrong), FIELDS['evidence'] + size
    )
  if record.problems or document is None:
    return None
  return Example(
    id=record.fields['id'],
    task='own',
    document=document,
    question=record.fields['question'],
    answers=tuple(record.fields['answers']),
    reward='boxed_em',
    metric='sub_em_strict',
    gold_spans=tuple((start, end) for start, end in evidence),
    source=record.fields.get('document_path', record.path.name),
  )


def _document(record: Record) -> str | None:
  """The text of `document` or of the file that `document_path` names."""
  given = [
    name for name in ('document', 'document_path') if name in record.fields
  ]
  if len(given) != 1:
    got = 'both' if given else 'neither'
    record.problem('document, document_path', got, 'exactly one of the two')
    return None
  (name,) = given
  document = record.fields[name]
  got = json_records.brief(document)
  if name == 'document_path' and is_text(document):
    try:
      document = ''.join(text.read_pieces(record.path.parent / document))
      got += ', a file without text'
    except (ValueError, OSError) as e:
      document, got = None, str(e)
  if is_text(document):
    return document
  record.problem(name, got)
  return None


def _are_texts(value: object) -> bool:
  return isinstance(value, list) and bool(value) and all(map(is_text, value))


def _wrong_span(spans: object, document: str | None) -> object | None:
  """The first entry that is not a span of the document; None if all are."""
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
