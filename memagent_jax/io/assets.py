"""Models, texts and wordings that ship with the package, by name.

    name | path -> model, text, template -> path

A path that exists takes precedence over a name.
"""

import os
from pathlib import Path

_ROOT = Path(__file__).parents[1] / 'assets'
# Extensions, which names leave out.
_TEXTS = ('.txt', '.txt.gz', '.jsonl')
_TEMPLATES = ('.json',)


def models() -> tuple[str, ...]:
  """The names of all shipped models, and of tokenizers without a model."""
  return tuple(sorted(path.name for path in (_ROOT / 'models').iterdir()))


def texts() -> tuple[str, ...]:
  """The names of all shipped texts."""
  return tuple(_files('texts', _TEXTS))


def templates() -> tuple[str, ...]:
  """The names of all shipped wordings of the prompts."""
  return tuple(_files('templates', _TEMPLATES))


def model(name_or_path: str | os.PathLike) -> Path | None:
  """The path of a model; None if it is neither a path nor a shipped name."""
  if Path(name_or_path).exists():
    return Path(name_or_path)
  if str(name_or_path) in models():
    return _ROOT / 'models' / str(name_or_path)
  return None


def text(name_or_path: str | os.PathLike) -> Path:
  """The path of a text.

  Raises:
    ValueError: neither a path nor a shipped name; the names are listed.
  """
  return _file('text', name_or_path, _files('texts', _TEXTS))


def template(name_or_path: str | os.PathLike) -> Path:
  """The path of a wording of the prompts; see `text`."""
  return _file('template', name_or_path, _files('templates', _TEMPLATES))


def _files(folder: str, endings: tuple[str, ...]) -> dict[str, Path]:
  """Files of a folder by name."""
  return {
    path.name.removesuffix(ending): path
    for path in sorted((_ROOT / folder).iterdir())
    for ending in endings
    if path.name.endswith(ending)
  }


def _file(
  kind: str, name_or_path: str | os.PathLike, files: dict[str, Path]
) -> Path:
  if Path(name_or_path).exists():
    return Path(name_or_path)
  if str(name_or_path) in files:
    return files[str(name_or_path)]
  raise ValueError(
    f'{kind} {name_or_path}: no such file; expected a path or one of '
    f'{", ".join(files)}.'
  )
