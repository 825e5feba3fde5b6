"""Requirements of tests that compile for TPUs: a compiler, loadable twice."""

import importlib.util
import os

import pytest

# Read when the compiler is loaded, which happens later.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs the TPU compiler: pip install ".[tpu_aot]"',
)
