"""Starts `memagent_jax.commands.compare_templates` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('compare_templates')
