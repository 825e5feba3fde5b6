"""What an installation asks for: no accelerator unless an extra names it."""

from distutils import core
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[1]
ACCELERATORS = re.compile(r'cuda|tpu|rocm|nvidia|triton|cudnn|metal', re.I)


@pytest.fixture(scope='module')
def distribution():
  """What setup.py says, with nothing installed or built."""
  with pytest.MonkeyPatch.context() as patch:
    # Packages are looked for in the working directory.
    patch.chdir(ROOT)
    return core.run_setup('setup.py', stop_after='init')


def test_no_accelerator_is_required(distribution):
  required = distribution.install_requires
  assert any(line.startswith('jax>=') for line in required)
  assert [line for line in required if ACCELERATORS.search(line)] == []
  for extra, lines in distribution.extras_require.items():
    found = [line for line in lines if ACCELERATORS.search(line)]
    assert bool(found) == (extra in ('cuda', 'tpu', 'tpu_aot')), extra


def test_accelerators_are_extras_of_jax(distribution):
  extras = distribution.extras_require
  assert extras['cuda'] == ['jax[cuda]'] and extras['tpu'] == ['jax[tpu]']
