"""The gin files that ship with the package, found from any folder.

path | gin_configs/train/tiny_grpo.gin | tiny_grpo -> find -> path
"""

import difflib
import os
from pathlib import Path
from typing import TextIO

_FOLDER = 'gin_configs'
_PACKAGE = Path(__file__).parents[1]
# Holds the folder: a wheel has it inside the package, a checkout next to it.
_ROOT = next(
  path for path in (_PACKAGE, _PACKAGE.parent) if (path / _FOLDER).is_dir()
)


def shipped() -> tuple[str, ...]:
  """Every shipped file, such as gin_configs/train/tiny_grpo.gin."""
  return tuple(
    path.relative_to(_ROOT).as_posix()
    for path in sorted((_ROOT / _FOLDER).rglob('*.gin'))
  )


def find(name: str | os.PathLike) -> Path:
  """The path of a gin file.

  Args:
    name: a path; a shipped file as in `shipped`; or a bare name that only one
      shipped file has, with or without `.gin`.

  Raises:
    ValueError: no such file; says which shipped one is nearest.
  """
  path = Path(name)
  for known in (path, _ROOT / path):
    if known.is_file():
      return known
  stem = path.name.removesuffix('.gin')
  same = [file for file in shipped() if Path(file).stem == stem]
  if len(same) == 1 and str(name) in (stem, f'{stem}.gin'):
    return _ROOT / same[0]
  if not same:
    stems = {Path(file).stem: file for file in shipped()}
    same = [stems[s] for s in difflib.get_close_matches(stem, stems, n=1)]
  nearest = (
    f'did you mean {" or ".join(same)}?'
    if same
    else f'expected a path, or one of {_ROOT / _FOLDER}.'
  )
  raise ValueError(f'gin file {str(name)!r}: no such file; {nearest}')


def is_found(name: str) -> bool:
  """True if the gin file exists; gin asks before it opens one.

  Raises:
    ValueError: as `find`.
  """
  return find(name).is_file()


def open_found(name: str) -> TextIO:
  """Opens the file that `find` gives."""
  return find(name).open(encoding='utf-8')
