"""Starts commands by name: `python -m experiments.NAME` comes through here."""

import importlib
import sys

from absl import app, flags


def run(name: str) -> None:
  """Runs a command as if its module were the program.

  Args:
    name: a module of `memagent_jax.commands`.
  """
  command = importlib.import_module(f'memagent_jax.commands.{name}')
  # absl shows the docstring and the flags of the program's own module.
  sys.modules['__main__'].__doc__ = command.__doc__
  for flag in flags.FLAGS.get_key_flags_for_module(command):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
  app.run(command.main)
