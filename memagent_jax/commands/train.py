"""Trains as a gin file says; repeating the command resumes.

  memagent train --gin_file=gin_configs/train/tiny_warmup.gin \\
    --workdir=runs/tiny_warmup

The hardware is at the top of each gin file, the expected numbers are in
docs/results.md.
"""

from collections.abc import Sequence

from absl import flags
import gin

from memagent_jax.commands import runs

flags.adopt_module_key_flags(runs)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything goes.')
_LIVE = flags.DEFINE_bool(
  'live', False, 'Show the reward as it climbs instead of a line a step.'
)


def main(argv: Sequence[str]) -> None:
  given = {'operative_config': gin.operative_config_str}
  if not _LIVE.value:
    runs.main(argv, _WORKDIR.value, **given)
    return
  from memagent_jax.commands.live import LiveReward

  with LiveReward() as display:
    runs.main(argv, _WORKDIR.value, on_step=display, **given)
