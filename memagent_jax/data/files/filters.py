"""Leaves out questions that a model answers without the document.

    examples + {"id": ..., "answers": [...]} -> drop_answerable -> examples

Such a question teaches little: its reward hardly depends on the memory.
Source: MemAgent, arXiv 2507.02259, and its `taskutils/memory_data/filter*.py`:
two samples from each of two models; a question is dropped if any is right.
There a right answer anywhere in the response counts, as in `ruler_part`.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import os
from pathlib import Path

from memagent_jax import rewards
from memagent_jax.data.examples import Example
from memagent_jax.data.files import json_records


@dataclasses.dataclass
class Counts:
  """Numbers of examples so far."""

  kept: int = 0
  dropped: int = 0
  # Kept examples for which the file has no answers.
  without_answers: int = 0


def drop_answerable(
  examples: Iterable[Example],
  answers_path: str | os.PathLike,
  counts: Counts,
) -> Iterator[Example]:
  """The examples that the model did not answer from its own knowledge.

  An example is dropped if any sample is right by the scorer `em`.

  Args:
    examples: the examples, with the ids used in the file of answers.
    answers_path: JSONL, `{"id": ..., "answers": [...]}`: samples that a model
      gave without the document. Another line with the same id adds samples, for
      instance another model's.
    counts: counts to update as examples are yielded or dropped.

  Raises:
    ValueError: the file has an invalid line (file and line are named) or, after
      the last example, turns out to have answers to none of them.
  """
  samples_by_id = _read_answers(Path(answers_path))
  example, matched = None, 0
  for example in examples:
    samples = samples_by_id.get(example.id)
    matched += samples is not None
    if samples is not None and any(
      rewards.score('em', sample, example.answers).value >= 1
      for sample in samples
    ):
      counts.dropped += 1
      continue
    counts.kept += 1
    counts.without_answers += samples is None
    yield example
  if example is not None and not matched:
    raise ValueError(
      f'{answers_path}: has answers to {next(iter(samples_by_id), None)!r} and '
      f'others, but to no example; their ids are like {example.id!r}.'
    )


def _read_answers(path: Path) -> dict[str, list[str]]:
  """Samples by example id."""
  if not path.is_file():
    raise ValueError(f'{path}: no such file; expected answers as JSONL.')
  samples_by_id: dict[str, list[str]] = {}
  for number, size, line in json_records.read_lines(path):
    try:
      if size > json_records.MAX_RECORD_BYTES:
        raise ValueError(f'{size:,} bytes')
      record = json_records.parse_line(line)
      if not _is_answers(record):
        raise ValueError(json_records.brief(record))
    except ValueError as e:
      raise ValueError(
        f'{path}:{number}: got {e}; expected '
        '{"id": text, "answers": [text, ...]}, one or more answers.'
      ) from None
    samples_by_id.setdefault(record['id'], []).extend(record['answers'])
  return samples_by_id


def _is_answers(record: object) -> bool:
  return (
    isinstance(record, dict)
    and set(record) == {'id', 'answers'}
    and isinstance(record['id'], str)
    and isinstance(record['answers'], list)
    and bool(record['answers'])
    and all(isinstance(answer, str) for answer in record['answers'])
  )
