"""Starts `memagent_jax.commands.measure_retention` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('measure_retention')
