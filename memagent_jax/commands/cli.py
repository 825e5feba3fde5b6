"""Starts commands by name: `memagent NAME`, and `python -m experiments.NAME`."""

import ast
from collections.abc import Callable, Sequence
import difflib
import importlib
import os
from pathlib import Path
import sys
import textwrap
from types import ModuleType
from typing import Any, NoReturn

from absl import app, flags

import memagent_jax
from memagent_jax.commands import extras, quiet

# Modules of this folder, in the order of a newcomer's questions.
COMMANDS = (
  'ask',
  'train',
  'evaluate',
  'report',
  'plan',
  'make_data',
  'tokenize_document',
  'import_weights',
  'inspect_rollout',
  'compare_objectives',
  'compare_templates',
  'measure_retention',
  'training_curve',
  'train_tokenizer',
  'benchmark',
)
_WIDTH = 79
_HELP = ('--help', '-help', '-h', '--helpshort', '-helpshort', '-?')


def main() -> None:
  """Runs the command that the first argument names."""
  given = sys.argv[1:2]
  if not given or given[0] in _HELP:
    _print(_overview())
    return
  if given == ['--version']:
    _print(f'memagent {memagent_jax.__version__}')
    return
  name = given[0].replace('-', '_')
  if name not in COMMANDS:
    nearest = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = (
      f'did you mean {_shown(nearest[0])}?'
      if nearest
      else 'see memagent --help.'
    )
    _fail(f'unknown command {given[0]}; {hint}')
  sys.argv = [f'memagent {_shown(name)}', *sys.argv[2:]]
  run(name)


def run(name: str) -> None:
  """Runs a command as if its module were the program.

  Args:
    name: one of COMMANDS.
  """
  quiet.libraries()
  command = _with_extras(
    name, importlib.import_module, f'memagent_jax.commands.{name}'
  )
  if set(_HELP) & set(sys.argv[1:]):
    _print(f'{command.__doc__}{flags.FLAGS.module_help(command)}')
    return
  app.run(
    lambda argv: _start(name, command, argv),
    flags_parser=lambda argv: _parse_flags(name, command, argv),
  )


def _overview() -> str:
  """The list of commands and what each does; imports none of them."""
  lines = [
    'usage: memagent NAME [flags]; memagent NAME --help lists the flags',
    '',
  ]
  width = max(map(len, COMMANDS)) + 4
  for name in COMMANDS:
    source = Path(__file__).with_name(f'{name}.py').read_text(encoding='utf-8')
    lines += textwrap.wrap(
      (ast.get_docstring(ast.parse(source)) or '').partition('\n')[0],
      _WIDTH,
      initial_indent=f'  {_shown(name)}'.ljust(width),
      subsequent_indent=' ' * width,
    )
  return '\n'.join(lines)


def _parse_flags(
  name: str, command: ModuleType, argv: Sequence[str]
) -> list[str]:
  """Parses the flags; returns the remaining arguments."""
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as e:
    known = [
      flag.name for flag in flags.FLAGS.get_key_flags_for_module(command)
    ]
    nearest = difflib.get_close_matches(e.flagname, known, n=1)
    hint = (
      f'did you mean --{nearest[0]}?'
      if nearest
      else f'see memagent {_shown(name)} --help.'
    )
    _fail(f'unknown flag --{e.flagname}; {hint}')
  except flags.Error as e:
    _fail(' '.join(str(e).split()))


def _start(name: str, command: ModuleType, argv: Sequence[str]) -> None:
  try:
    _with_extras(name, command.main, argv)
  except app.UsageError as e:
    _fail(f'{e} See memagent {_shown(name)} --help.')


def _with_extras(name: str, function: Callable[..., Any], *args: object) -> Any:
  """Calls a function; ends the process with one line if an extra is missing."""
  try:
    return function(*args)
  except ModuleNotFoundError as e:
    extra = extras.missing(e)
    if extra is None:
      raise
    sys.exit(
      f'error: {_shown(name)} needs the extra [{extra}]: pip install '
      f"'memagent-jax[{extra}]'"
    )


def _print(text: str) -> None:
  """Prints to a reader that may stop early, such as `head`."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    # Discard the rest, and whatever is flushed when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shown(name: str) -> str:
  """A command's name as people type it."""
  return name.replace('_', '-')


def _fail(message: str) -> NoReturn:
  """Ends the process with exit code 2, for wrong usage."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


if __name__ == '__main__':
  main()
