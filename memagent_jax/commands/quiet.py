"""Keeps libraries from reporting every accelerator that a machine does not have."""

from collections.abc import Iterator, Sequence
import contextlib
import importlib.abc
from importlib.machinery import ModuleSpec
import importlib.util
import logging as python_logging
import os
import re
import sys
import tempfile
from types import ModuleType

from absl import logging

# What TensorFlow's libraries print while loading: notes and warnings, and the
# lines before and after them.
_NOTES = re.compile(
  rb'WARNING: All log messages before|[IW]\d{4} |To enable the f'
)


def libraries() -> None:
  """Silences all but warnings and errors; call it before large imports.

  Child processes inherit what is in the environment; those that import
  TensorFlow call this too.
  """
  # jax sets this to 1 in every process that imports it; this may be its child.
  if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  # Silences the advice to install torch, which no tokenizer needs.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_handler().setFormatter(
    python_logging.Formatter('%(levelname)s: %(message)s')
  )
  if 'tensorflow' not in sys.modules:
    sys.meta_path.insert(0, _QuietTensorFlow())


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
  """Imports TensorFlow without the notes of its libraries.

  The libraries print them before they read TF_CPP_MIN_LOG_LEVEL.
  """

  def find_spec(
    self,
    fullname: str,
    path: Sequence[str] | None,
    target: ModuleType | None = None,
  ) -> ModuleSpec | None:
    """Finds TensorFlow as the other finders do, once; finds nothing else."""
    if fullname != 'tensorflow':
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(fullname)
    if spec is not None and spec.loader is not None:
      load = spec.loader.exec_module

      def load_quietly(module: ModuleType) -> None:
        with _without_notes():
          load(module)

      spec.loader.exec_module = load_quietly  # type: ignore[method-assign]
    return spec


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
  """Drops the notes from standard error, including that of C++."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as printed:
    os.dup2(printed.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
      printed.seek(0)
      for line in printed:
        if not _NOTES.match(line):
          os.write(2, line)
