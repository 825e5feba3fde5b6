"""Which extra of the package installs what a command could not import."""

from collections.abc import Mapping
import re

# Extra by package; the base installation has none of these.
_EXTRAS: Mapping[str, str] = dict.fromkeys(
  (
    *('bm25s', 'gin', 'matplotlib', 'seqio', 'tensorboardX', 'tensorflow'),
    'wonderwords',
  ),
  'train',
)


def missing(error: ModuleNotFoundError) -> str | None:
  """The extra that has the missing package; None if no extra has it."""
  # From the message, which gin keeps; it drops the error's `name`.
  match = re.match(r"No module named '(\w+)", str(error))
  return _EXTRAS.get(match[1]) if match else None
