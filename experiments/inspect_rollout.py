"""Starts `memagent_jax.commands.inspect_rollout` in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('inspect_rollout')
