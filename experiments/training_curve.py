"""Starts `memagent_jax.commands.training_curve` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('training_curve')
