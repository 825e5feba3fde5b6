"""How much memory this process needed for something."""

import contextlib
from pathlib import Path
import resource


class Peak:
  """Most memory in RAM while the block runs; `host_bytes` afterwards.

  Linux can forget the peak of before; elsewhere it is that of the process.
  """

  host_bytes = 0

  def __enter__(self) -> 'Peak':
    with contextlib.suppress(OSError):
      Path('/proc/self/clear_refs').write_text('5', encoding='ascii')
    return self

  def __exit__(self, *exception) -> None:
    try:
      lines = Path('/proc/self/status').read_text(encoding='ascii').split('\n')
      (line,) = (text for text in lines if text.startswith('VmHWM:'))
      self.host_bytes = 1024 * int(line.split()[1])
    except (OSError, ValueError):
      usage = resource.getrusage(resource.RUSAGE_SELF)
      self.host_bytes = 1024 * usage.ru_maxrss
