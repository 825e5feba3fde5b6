"""What tests that compile for TPUs need: a compiler, and leave to load it twice."""

import importlib.util
import os

import pytest

# Read when the compiler is loaded, which is after this.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install ".[tpu_aot]"',
)
