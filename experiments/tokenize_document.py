"""Starts `memagent_jax.commands.tokenize_document` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('tokenize_document')
