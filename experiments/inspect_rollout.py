"""`memagent_jax.commands.inspect_rollout`, started in a checkout."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.run('inspect_rollout')
