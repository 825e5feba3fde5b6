"""Every task by name: the texts it needs, and its examples of any size.

    Texts -> obtain(task) -> files -> Benchmark(task, files) -> Example

Sizes are in tokens for RULER's tasks, in paragraphs for those of question sets;
the user's own documents have none.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

from memagent_jax.data.benchmarks import (
  haystack,
  needle_documents,
  paragraphs,
  question_sets,
  ruler,
)
from memagent_jax.data.benchmarks.fit_length import count_tokens
from memagent_jax.data.encoders import Encoder
from memagent_jax.data.examples import Example
from memagent_jax.data.files import own_documents
from memagent_jax.io import downloads
from memagent_jax.models.tokenizer import Tokenizer

# Download that holds the paragraphs, and their usual number per document.
_PARAGRAPH_TASKS: Mapping[str, tuple[str, int]] = {
  'ruler_hqa': ('hotpotqa_dev', 200),
  'hotpotqa': ('hotpotqa_dev', 10),
  # The form MemAgent trains on, about 28K tokens: arXiv 2507.02259, section 4.
  'hotpotqa_train': ('hotpotqa_train', 200),
  'squad': ('squad_dev', 1),
}
OWN = 'own'
TASKS = (*ruler.TASKS, *_PARAGRAPH_TASKS, OWN)
_READERS: dict[str, Callable[..., Any]] = {
  'essay': haystack.essays,
  'squad': question_sets.read_squad,
  'hotpotqa': question_sets.read_hotpotqa,
}


@dataclasses.dataclass(frozen=True)
class Texts:
  """Files that hold the texts of tasks."""

  # Files or folders of prose to hide needles in.
  essays: tuple[str, ...] = ()
  # Files of the data sets; None: taken from the cache, or downloaded.
  squad: str | None = None
  hotpotqa: str | None = None
  # File of the user's own documents, with the fields of `own_documents.FIELDS`.
  own: str | None = None

  def __post_init__(self) -> None:
    object.__setattr__(self, 'essays', tuple(self.essays))


def check(task: str) -> None:
  """Raises ValueError for an unknown task; it lists the known ones."""
  if task not in TASKS:
    raise ValueError(
      f'task {task!r} is unknown; choose from {", ".join(TASKS)}.'
    )


def unit(task: str) -> str:
  """What a size counts: `tokens`, `paragraphs`, or `documents` as they are."""
  if task in ruler.TASKS:
    return 'tokens'
  return 'documents' if task == OWN else 'paragraphs'


def obtain(
  task: str, texts: Texts, cache: str | os.PathLike
) -> dict[str, list[str]]:
  """Local files of a task by part of its corpus, downloaded if missing.

  Raises:
    ValueError: an unknown task, a missing text, or no network.
  """
  check(task)
  if task in ruler.NEEDLE_TASKS:
    if ruler.NEEDLE_TASKS[task].haystack != 'essay':
      return {}
    if not texts.essays:
      raise ValueError(f'task {task} needs essays; give a file or a folder.')
    return {'essay': list(texts.essays)}
  if task == OWN:
    if texts.own is None:
      raise ValueError(f'task {task} needs a JSONL file of documents.')
    return {OWN: [texts.own]}
  if task in _PARAGRAPH_TASKS:
    source, _ = _PARAGRAPH_TASKS[task]
  else:
    source = {'qa_1': 'squad2_dev', 'qa_2': 'hotpotqa_dev'}.get(task, '')
  if not source:
    return {}
  part = 'squad' if source.startswith('squad') else 'hotpotqa'
  paths = downloads.obtain(source, getattr(texts, part), cache)
  return {part: [str(path) for path in paths]}


class Benchmark:
  """The examples of one task, each a pure function of its index and size."""

  def __init__(self, task: str, files: Mapping[str, Sequence[str]]):
    """Reads the task's texts from the files that `obtain` returned.

    Raises:
      ValueError: a file is missing, or is not what it should be.
    """
    check(task)
    self._task = task
    self._own = [
      e for path in files.get(OWN, ()) for e in own_documents.read(path)
    ]
    self._corpus = ruler.Corpus(
      **{
        part: _READERS[part](*paths)
        for part, paths in files.items()
        if part != OWN
      }
    )

  @property
  def count(self) -> int | None:
    """The number of different examples; None: it is unlimited."""
    if self._task == OWN:
      return len(self._own)
    if self._task in _PARAGRAPH_TASKS:
      return len(self._questions().questions)
    return None

  def example(
    self,
    index: int,
    size: int | None,
    *,
    encoder: Encoder,
    encoder_name: str,
    seed: int = 0,
    template_tokens: int = 0,
    answer_tokens: int | None = None,
  ) -> Example:
    """Example number `index`.

    Args:
      index: 0, 1, ...; examples repeat from `count` on.
      size: in the unit that `unit` says; None: the usual number of paragraphs.
      encoder: tokenizer to count with.
      encoder_name: name of the encoder, recorded in the example.
      seed: seed of the whole set.
      template_tokens, answer_tokens: as in `ruler.example`, for RULER's tasks.

    Raises:
      ValueError: a size that the task cannot have.
    """
    counted: Any = {'encoder': encoder, 'encoder_name': encoder_name}
    if self._task == OWN:
      example = self._own[index % len(self._own)]
      return dataclasses.replace(
        example,
        tokens=count_tokens(encoder, example),
        tokenizer=encoder_name,
      )
    if self._task in _PARAGRAPH_TASKS:
      _, usual = _PARAGRAPH_TASKS[self._task]
      return paragraphs.hqa_example(
        self._questions(),
        index,
        num_paragraphs=usual if size is None else size,
        seed=seed,
        task=self._task,
        **counted,
      )
    if size is None:
      raise ValueError(f'task {self._task} needs a number of tokens.')
    return ruler.example(
      self._task,
      index,
      tokens=size,
      corpus=self._corpus,
      seed=seed,
      template_tokens=template_tokens,
      answer_tokens=answer_tokens,
      **counted,
    )

  def example_of_chunks(
    self,
    index: int,
    chunks: int,
    *,
    tokenizer: Tokenizer,
    chunk_tokens: int,
    chunk_cut: str = 'sentence',
    seed: int = 0,
  ) -> Example:
    """Example number `index` of a needle task, `chunks` chunks long.

    The arguments are those of `needle_documents.example`.

    Raises:
      ValueError: not a needle task, or no document of that many chunks.
    """
    if self._task not in ruler.NEEDLE_TASKS:
      raise ValueError(
        f'task {self._task} has no sizes in chunks; choose from '
        f'{", ".join(ruler.NEEDLE_TASKS)}.'
      )
    return needle_documents.example(
      self._task,
      index,
      tokenizer=tokenizer,
      chunks=chunks,
      chunk_tokens=chunk_tokens,
      chunk_cut=chunk_cut,
      corpus=self._corpus,
      seed=seed,
    )

  def _questions(self) -> question_sets.QuestionSet:
    part = 'hotpotqa' if self._corpus.squad is None else 'squad'
    return self._corpus.need(part, self._task)
