"""Starts `memagent_jax.commands.make_data` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('make_data')
