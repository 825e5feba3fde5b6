"""Explains errors in gin files and bindings; suggests the name meant."""

from collections.abc import Iterable, Sequence
import difflib
import inspect
from pathlib import Path
import re
import sys

import gin

_PACKAGE = Path(__file__).parents[1]
# What gin adds to the message of an error inside a configurable.
_CALL = '\n  In call to configurable '


def explain(error: Exception) -> str:
  """Gin's message without its call stack, with the nearest known name."""
  text = str(error).split(_CALL)[0]
  for pattern, known in _UNKNOWN:
    if match := re.match(pattern, text):
      *owner, name = match.groups()
      place = '' if known is _macros else text[match.end() :].removeprefix('.')
      return f'{match[0]}{_hint(name, known(*owner))}{place}'
  return text


def check_used(bindings: Sequence[str]) -> None:
  """Raises ValueError for a macro or scope that nothing refers to.

  Args:
    bindings: those of the command line, after the whole configuration was read.
  """
  text = gin.config_str()
  macros = set(re.findall(r'%(\w+)', text))
  paths = re.findall(r'@([\w/]+)/', text)
  scopes = {scope for path in paths for scope in path.split('/')}
  for binding in bindings:
    if match := re.match(r'\s*([\w./]+)\s*=', binding):
      *own_scopes, name = match[1].split('/')
      names = [('scope', scope, scopes) for scope in own_scopes]
      if '.' not in name:
        names.append(('macro', name, macros))
      for kind, used, known in names:
        if used not in known:
          raise ValueError(
            f'binding {binding!r}: nothing refers to the {kind} {used}'
            f'{_hint(used, known)}'
          )


def _hint(name: str, known: Iterable[str]) -> str:
  nearest = difflib.get_close_matches(name, sorted(known), n=1)
  return f'; did you mean {nearest[0]}?' if nearest else '.'


def _parameters(selector: str) -> Iterable[str]:
  """The parameters of a configurable."""
  return inspect.signature(
    gin.config._REGISTRY.get_match(selector).wrapped
  ).parameters


def _configurables() -> Iterable[str]:
  """The definitions in all loaded modules, by their names in gin files."""
  return {
    f'{module.__name__.rpartition(".")[2]}.{name}'
    for module in list(sys.modules.values())
    if module.__name__.startswith('memagent_jax.')
    for name, value in vars(module).items()
    if getattr(value, '__module__', '') == module.__name__
  }


def _modules() -> Iterable[str]:
  """The package's modules."""
  return {
    '.'.join(path.relative_to(_PACKAGE.parent).with_suffix('').parts)
    for path in _PACKAGE.rglob('*.py')
  }


def _macros() -> Iterable[str]:
  """The macros that have a value."""
  return re.findall(r'^(\w+) = ', gin.config_str(), re.MULTILINE)


# How gin's messages about unknown names begin, and what lists the known ones.
_UNKNOWN = (
  (r"Configurable '(.+?)' doesn't have a parameter named '(.+?)'", _parameters),
  (r"No configurable matching (?:reference )?'@?(.+?)'", _configurables),
  (r"No module named '(memagent_jax\..+?)'", _modules),
  (r"No bindings specified for '(\w+)/gin\.macro'", _macros),
)
