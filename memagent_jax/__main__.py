"""`python -m memagent_jax NAME`, which is what `memagent NAME` runs."""

from memagent_jax.commands import cli

if __name__ == '__main__':
  cli.main()
