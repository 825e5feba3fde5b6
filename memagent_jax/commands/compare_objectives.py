"""Prints the settings in which two objectives differ.

  memagent compare-objectives --gin_file=gin_configs/objectives/paper.gin \\
    --gin_file=gin_configs/objectives/dapo.gin

Any gin file that binds grpo.GrpoConfig will do, including that of a run.
"""

from collections.abc import Sequence

from absl import app, flags
import gin

from memagent_jax.commands import runs

flags.adopt_module_key_flags(runs)


def main(argv: Sequence[str]) -> None:
  files = runs.GIN_FILE.value
  if len(argv) > 1 or not files or len(files) != 2:
    raise app.UsageError('--gin_file is needed twice, and no other arguments.')
  with runs.clear_errors():
    from memagent_jax.rl import grpo

    found = []
    for path in files:
      gin.clear_config()
      runs.parse_files([path], runs.GIN_BINDINGS.value)
      found.append(gin.get_configurable(grpo.GrpoConfig)())
    difference = grpo.preset_difference(*found)
    for name, (first, second) in difference.items():
      print(f'{name}: {first} -> {second}')
    if not difference:
      print('no difference')
