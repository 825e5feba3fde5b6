"""MemAgent's published data files: training, evaluation, RULER evaluation.

    hotpotqa_train.parquet | eval_200.json | eval_vt_8192.json -> Example
      -> commands/make_data.py

Source: the data set BytedTsinghua-SIA/hotpotqa and the scripts in
`taskutils/memory_data` that wrote it. Files of more than 6,400 paragraphs hold
paragraph numbers instead of text; `hotpotqa_paragraphs` gives the texts.
"""

from collections.abc import Iterator, Mapping, Sequence
import os
from pathlib import Path
import re
from typing import Any

from memagent_jax.data.examples import Example
from memagent_jax.data.files import json_records, record_files

# Fields that a record of each kind must have; others are allowed.
SCHEMAS: Mapping[str, tuple[str, ...]] = {
  'training': ('prompt', 'context', 'reward_model'),
  'evaluation': ('input', 'context', 'answers'),
  'RULER evaluation': ('input', 'context', 'outputs'),
}
# Columns read from Parquet files (their nested scores are not needed).
_COLUMNS = frozenset(n for names in SCHEMAS.values() for n in names) | {
  'extra_info',
  'index',
}
# Number of distinct paragraphs in HotpotQA's dev set (distractor setting), as
# in the longest published evaluation.
DEV_PARAGRAPHS = 66_635
_RULER_FILE = re.compile(r'eval_(.+)_\d+')


def read(
  path: str | os.PathLike,
  *,
  paragraphs: Sequence[str] | None = None,
  max_record_bytes: int = json_records.MAX_RECORD_BYTES,
) -> Iterator[Example]:
  """The examples of a published file, in the file's order.

  One record is in memory at a time; for Parquet, eight records and a page.

  Args:
    path: Parquet, a JSON array, or JSON lines; its content says which.
    paragraphs: the result of `hotpotqa_paragraphs`, for records that hold
      paragraph numbers.
    max_record_bytes: longest line of JSON lines in bytes; longest record of a
      JSON array in characters.

  Raises:
    ValueError: a file or record is not as published; names file, record, field
      and got.
  """
  path = Path(path)
  number = 0
  for number, record in enumerate(
    record_files.read(path, _COLUMNS, max_record_bytes), 1
  ):
    yield from_record(record, number, path, paragraphs)
  if not number:
    raise ValueError(f'{path}: no records; expected one or more.')


def from_record(
  record: Any,
  number: int,
  path: str | os.PathLike,
  paragraphs: Sequence[str] | None = None,
) -> Example:
  """The Example of one record, a mapping with the fields of one of SCHEMAS.

  The record's number, from 1, and its file's path go into id, source and
  messages; for RULER, the path names the task. `paragraphs` is as in `read`.

  Raises:
    ValueError: a field is missing or not as published; names file, record,
      field and got.
  """
  path = Path(path)
  where = f'{path}: record {number}'
  kind = _kind(record, where)
  index = record.get('index')
  if kind == 'training':
    question = _last_user_message(record['prompt'], where)
    answers = _field(
      record['reward_model'], 'ground_truth', 'reward_model', where
    )
    extra = record.get('extra_info')
    index = extra.get('index') if isinstance(extra, Mapping) else None
  else:
    question = _text(record['input'], 'input', where)
    answers = record['answers' if kind == 'evaluation' else 'outputs']
  answers = _answers(answers, where)
  task, reward, metric = 'hotpotqa_published', 'boxed_em', 'sub_em_strict'
  if kind == 'RULER evaluation':
    task, reward, metric = _ruler(path, answers)
  return Example(
    id=f'{path.stem}/{number}' + ('' if index is None else f'/{index}'),
    task=task,
    document=_document(record['context'], paragraphs, where),
    question=question,
    answers=answers,
    reward=reward,
    metric=metric,
    source=path.name,
  )


def hotpotqa_paragraphs(
  path: str | os.PathLike, *, count: int = DEV_PARAGRAPHS
) -> list[str]:
  """The paragraphs that the numbers in published files refer to.

  They are all distinct `title, newline, text` of HotpotQA's dev set in the
  distractor setting (`hotpot_dev_distractor_v1.json`), sorted by code point.

  Raises:
    ValueError: the file is not in HotpotQA's form, or does not have `count`
      distinct paragraphs, so that the numbers would refer to others.
  """
  path = Path(path)
  paragraphs = set()
  for number, record in enumerate(record_files.read(path), 1):
    try:
      for title, sentences in record['context']:
        paragraphs.add(f'{title}\n{"".join(sentences)}')
    except (KeyError, TypeError, ValueError):
      raise ValueError(
        f'{path}: record {number}: context: expected HotpotQA paragraphs, '
        '[[title, [sentence, ...]], ...].'
      ) from None
  if len(paragraphs) != count:
    raise ValueError(
      f'{path}: got {len(paragraphs):,} distinct paragraphs; expected {count:,}. '
      'Take the whole hotpot_dev_distractor_v1.json.'
    )
  return sorted(paragraphs)


def _kind(record: object, where: str) -> str:
  """The schema that fits the record."""
  fields = set(record) if isinstance(record, Mapping) else set()
  missing = {
    kind: [name for name in names if name not in fields]
    for kind, names in SCHEMAS.items()
  }
  kind = min(missing, key=lambda kind: len(missing[kind]))
  if not missing[kind]:
    return kind
  got = type(record).__name__
  if isinstance(record, Mapping):
    got = f'the fields {", ".join(sorted(map(str, fields)))[:200] or "none"}'
  known = '; '.join(f'{k}: {", ".join(v)}' for k, v in SCHEMAS.items())
  raise ValueError(
    f'{where}: {", ".join(missing[kind])}: missing; got {got}. '
    f'Fields of a record: {known}.'
  )


def _ruler(path: Path, answers: Sequence[str]) -> tuple[str, str, str]:
  """Task, reward and metric: `qa` needs any of the answers, the others all."""
  match = _RULER_FILE.fullmatch(path.stem)
  name = match.group(1) if match else 'ruler'
  task = f'{name}_published'
  if name.startswith('qa_'):
    return task, 'boxed_em', 'ruler_part'
  return task, 'boxed_em' if len(answers) == 1 else 'boxed_all', 'ruler_all'


def _last_user_message(prompt: object, where: str) -> str:
  if isinstance(prompt, str):
    return _text(prompt, 'prompt', where)
  for message in reversed(_list(prompt, 'prompt', where)):
    if _field(message, 'role', 'prompt', where) == 'user':
      content = _field(message, 'content', 'prompt', where)
      return _text(content, 'prompt', where)
  raise ValueError(f'{where}: prompt: got no message with the role user.')


def _answers(value: object, where: str) -> tuple[str, ...]:
  values = [value] if isinstance(value, str) else _list(value, 'answers', where)
  if not values:
    raise ValueError(f'{where}: answers: got none; expected one or more.')
  # Several people may have given the same answer.
  return tuple(dict.fromkeys(_text(v, 'answers', where) for v in values))


def _document(
  context: object, paragraphs: Sequence[str] | None, where: str
) -> str:
  if isinstance(context, str):
    return _text(context, 'context', where)
  numbers = _list(context, 'context', where)
  if paragraphs is None:
    raise ValueError(
      f'{where}: context: got {len(numbers):,} paragraph numbers instead of '
      'text; give `paragraphs`, from hotpotqa_paragraphs(...), or make_data '
      '--hotpotqa=hotpot_dev_distractor_v1.json.'
    )
  for number in numbers:
    if type(number) is not int or not 0 <= number < len(paragraphs):
      raise ValueError(
        f'{where}: context: got paragraph {json_records.brief(number)}; expected 0 to '
        f'{len(paragraphs) - 1:,}.'
      )
  return '\n\n'.join(
    f'Document {place}:\n{paragraphs[number]}'
    for place, number in enumerate(numbers, 1)
  )


def _field(value: object, name: str, field: str, where: str) -> object:
  if not isinstance(value, Mapping) or name not in value:
    raise ValueError(
      f'{where}: {field}: got {json_records.brief(value)}; expected an object with {name}.'
    )
  return value[name]


def _list(value: object, field: str, where: str) -> list:
  if not isinstance(value, (list, tuple)):
    raise ValueError(
      f'{where}: {field}: got {json_records.brief(value)}; expected a list.'
    )
  return list(value)


def _text(value: object, field: str, where: str) -> str:
  if not isinstance(value, str) or not value or value.isspace():
    raise ValueError(
      f'{where}: {field}: got {json_records.brief(value)}; expected a text, not blank.'
    )
  return value
