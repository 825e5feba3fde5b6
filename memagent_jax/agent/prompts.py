r"""The templates, tokenised once, and their assembly into prompts.

A template's two turns go through the model's chat format, are split at their
fields and tokenised; `assemble` then joins pieces and ids under jit, `assemble_ids`
on the host. Nothing is decoded and re-encoded: memory moves as ids.

    <|im_start|>user ... {question} ... {memory} ... {chunk} ... assistant
    `----- ids ----'     ids_NxQ        ids_NxM      ids_NxK     ids ----'

Fields are `{question}`, `{memory}` and `{chunk}`, or `{document}` where a whole
document is one turn; other braces, `\boxed{}` among them, are text.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
import re

from memagent_jax import tokens as tokens_lib
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import Tokens

_FIELD = re.compile(r'\{([A-Za-z_]\w*)\}')
# Fields of each kind of turn.
TURNS: Mapping[str, tuple[str, ...]] = {
  'memory_turn': ('question', 'memory', 'chunk'),
  'answer_turn': ('question', 'memory'),
  'document_turn': ('question', 'document'),
  'question_turn': ('question',),
}


@dataclasses.dataclass(frozen=True)
class Template:
  """Wording of the two turns, and of the memory before the first chunk.

  Raises ValueError if a turn lacks or repeats one of these fields, or if the
  answer turn has any other. Which others a memory turn may have depends on the
  memory rule and is checked when the template is compiled.
  """

  memory_turn: str  # with {question}, {memory} and {chunk}, once each
  answer_turn: str  # with {question} and {memory}, once each
  empty_memory: str  # plain text

  def __post_init__(self) -> None:
    _check_once('memory_turn', self.memory_turn, TURNS['memory_turn'])
    _check_turn('answer_turn', self.answer_turn)
    if not self.empty_memory.strip():
      raise ValueError('template: empty_memory is blank; expected some text.')


@dataclasses.dataclass(frozen=True)
class OneTurnTemplate:
  """Wording of a single turn, with or without the document in it.

  Raises ValueError as `Template` does.
  """

  document_turn: str  # with {question} and {document}, once each
  question_turn: str  # with {question}, once

  def __post_init__(self) -> None:
    _check_turn('document_turn', self.document_turn)
    _check_turn('question_turn', self.question_turn)


def _check_turn(
  turn: str, text: str, fields: Sequence[str] | None = None
) -> None:
  """Raises ValueError unless a turn has exactly `fields`; None: its kind's."""
  fields = TURNS[turn] if fields is None else fields
  _check_once(turn, text, fields)
  unknown = sorted(set(_FIELD.findall(text)) - set(fields))
  if unknown:
    raise ValueError(
      f'template: {turn} has unknown fields {unknown}; known: {list(fields)}.'
    )


def _check_once(turn: str, text: str, fields: Sequence[str]) -> None:
  got = _FIELD.findall(text)
  for field in fields:
    if got.count(field) != 1:
      raise ValueError(
        f'template: {turn} has {{{field}}} {got.count(field)} times; '
        'expected once.'
      )


def read_template(path: str | os.PathLike) -> Template:
  """Reads a template from a JSON file with exactly the fields of `Template`.

  Raises:
    ValueError: an unreadable file, invalid JSON, or a missing, unknown or
      non-text field.
  """
  try:
    spec = json.loads(Path(path).read_text(encoding='utf-8'))
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
    raise ValueError(f'template {path}: {e}') from e
  fields = [f.name for f in dataclasses.fields(Template)]
  if not isinstance(spec, dict) or sorted(spec) != sorted(fields):
    got = sorted(spec) if isinstance(spec, dict) else type(spec).__name__
    raise ValueError(f'template {path}: got {got}; expected {sorted(fields)}.')
  for name, text in spec.items():
    if not isinstance(text, str):
      raise ValueError(
        f'template {path}: {name} is {type(text).__name__}; expected text.'
      )
  return Template(**spec)


# The wording with the highest score in docs/results/templates*.json.
DEFAULT_TEMPLATE = Template(
  memory_turn=(
    '<question>{question}</question>\n<memory>{memory}</memory>\n'
    '<section>\n{chunk}\n</section>\n\n'
    'Update the memory with the facts of the section that help to answer the '
    'question. Keep the useful facts that are already in it.\n\n'
    'Updated memory:'
  ),
  answer_turn=(
    '<question>{question}</question>\n<memory>{memory}</memory>\n\n'
    'Answer the question from the memory, inside \\boxed{}.'
  ),
  empty_memory='(empty)',
)

DEFAULT_ONE_TURN_TEMPLATE = OneTurnTemplate(
  document_turn=(
    '<document>\n{document}\n</document>\n\n<question>{question}</question>\n\n'
    'Answer the question from the document, inside \\boxed{}.'
  ),
  question_turn=(
    '<question>{question}</question>\n\nAnswer the question, inside \\boxed{}.'
  ),
)

# A piece of a turn: token ids, or the name of a field.
Piece = tuple[int, ...] | str


@dataclasses.dataclass(frozen=True)
class Prompts:
  """A template tokenised for one model; hashable, so static under jit."""

  memory_turn: tuple[Piece, ...]
  answer_turn: tuple[Piece, ...]
  empty_memory: tuple[int, ...]
  # The empty memory as a model writes it, after a space.
  spaced_empty_memory: tuple[int, ...]

  @property
  def memory_turn_tokens(self) -> int:
    """Tokens of a memory turn's prompt without question, memory and chunk."""
    return literal_tokens(self.memory_turn)

  @property
  def answer_turn_tokens(self) -> int:
    """Tokens of an answer turn's prompt without question and memory."""
    return literal_tokens(self.answer_turn)


def literal_tokens(pieces: Sequence[Piece]) -> int:
  """Tokens of a turn without its fields."""
  return sum(len(p) for p in pieces if not isinstance(p, str))


def compile_template(
  template: Template,
  tokenizer: Tokenizer,
  fields: Sequence[str] = TURNS['memory_turn'],
) -> Prompts:
  """The template inside the model's chat format, as pieces of token ids.

  Args:
    template: the wording.
    tokenizer: the model's tokenizer.
    fields: fields of the memory turn, as the memory rule defines them.

  Raises:
    ValueError: a memory turn with other fields, or a chat format that loses or
      repeats one.
  """
  _check_turn('memory_turn', template.memory_turn, fields)
  return Prompts(
    memory_turn=compile_turn(template.memory_turn, tokenizer, fields),
    answer_turn=compile_turn(
      template.answer_turn, tokenizer, TURNS['answer_turn']
    ),
    empty_memory=tuple(tokenizer.encode(template.empty_memory)),
    spaced_empty_memory=tuple(tokenizer.encode(' ' + template.empty_memory)),
  )


def compile_turn(
  text: str, tokenizer: Tokenizer, fields: Sequence[str]
) -> tuple[Piece, ...]:
  """One turn inside the model's chat format, as pieces of token ids.

  Args:
    text: the wording.
    tokenizer: the model's tokenizer.
    fields: fields of the wording, such as those in `TURNS`.

  Raises:
    ValueError: the chat format loses or repeats a field.
  """
  # Fields pass through the chat format under names that no format touches.
  for field in fields:
    text = text.replace(f'{{{field}}}', f'@@memagent:{field}@@')
  chat = tokenizer.render([{'role': 'user', 'content': text}])
  parts = re.split(r'@@memagent:(\w+)@@', chat)
  if sorted(parts[1::2]) != sorted(fields):
    raise ValueError(
      f'template: the chat format turns the fields {list(fields)} into '
      f'{parts[1::2]}.'
    )
  pieces: list[Piece] = []
  for i, part in enumerate(parts):
    if i % 2:
      pieces.append(part)
    elif part:
      pieces.append(tuple(tokenizer.encode_template(part)))
  return tuple(pieces)


def memory_prompt(
  prompts: Prompts, question: Tokens, memory: Tokens, chunk: Tokens
) -> Tokens:
  """The prompt of a memory turn; its width is the sum of all caps."""
  fields = {'question': question, 'memory': memory, 'chunk': chunk}
  return assemble(prompts.memory_turn, fields)


def before_chunk(prompts: Prompts, question: Tokens, memory: Tokens) -> Tokens:
  """The part of a memory turn's prompt before its chunk.

  Raises:
    ValueError: the template has question or memory after the chunk.
  """
  pieces = prompts.memory_turn[: prompts.memory_turn.index('chunk')]
  if not {'question', 'memory'} <= set(pieces):
    raise ValueError(
      'template: memory_turn has its chunk before question or memory; expected '
      'it behind both.'
    )
  return assemble(pieces, {'question': question, 'memory': memory})


def answer_prompt(prompts: Prompts, question: Tokens, memory: Tokens) -> Tokens:
  """The prompt of an answer turn; its width is the sum of all caps."""
  return assemble(prompts.answer_turn, {'question': question, 'memory': memory})


def assemble_ids(
  pieces: Sequence[Piece], fields: Mapping[str, Sequence[int]]
) -> list[int]:
  """The ids of one turn, on the host: what `assemble` gives for one row."""
  ids: list[int] = []
  for piece in pieces:
    ids += fields[piece] if isinstance(piece, str) else piece
  return ids


def assemble(pieces: Sequence[Piece], fields: Mapping[str, Tokens]) -> Tokens:
  """The rows of a turn: its pieces and the fields' tokens, without gaps."""
  rows = fields['question'].length_N.shape[0]
  parts = [
    fields[piece]
    if isinstance(piece, str)
    else tokens_lib.repeat_ids(piece, rows)
    for piece in pieces
  ]
  return tokens_lib.concatenate(parts)
