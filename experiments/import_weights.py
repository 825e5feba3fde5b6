"""Starts `memagent_jax.commands.import_weights` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('import_weights')
