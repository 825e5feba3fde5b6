"""The peak memory of this process while a block of code runs."""

import contextlib
from pathlib import Path
import resource


class Peak:
  """Measures a `with` block: afterwards `host_bytes` is its peak in RAM.

  On Linux the earlier peak is cleared first; elsewhere it is included.
  """

  host_bytes: int = 0

  def __enter__(self) -> 'Peak':
    with contextlib.suppress(OSError):
      Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    return self

  def __exit__(self, *exception: object) -> None:
    try:
      lines = Path('/proc/self/status').read_text(encoding='ascii').split('\n')
      (line,) = (text for text in lines if text.startswith('VmHWM:'))
      self.host_bytes = 1024 * int(line.split()[1])
    except (OSError, ValueError):
      usage = resource.getrusage(resource.RUSAGE_SELF)
      self.host_bytes = 1024 * usage.ru_maxrss
