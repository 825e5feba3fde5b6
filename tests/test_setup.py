"""What an installation requires: no accelerator unless an extra names it."""

from pathlib import Path
import re
import runpy

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
ACCELERATORS = re.compile(r'cuda|tpu|rocm|nvidia|triton|cudnn|metal', re.I)


@pytest.fixture(scope='module')
def asked():
  """The arguments that setup.py gives setuptools; nothing is installed."""
  told = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setuptools, 'setup', lambda **given: told.update(given))
    # setuptools looks for packages in the working directory.
    patch.chdir(ROOT)
    runpy.run_path('setup.py')
  return told


def test_no_accelerator_is_required(asked):
  required = asked['install_requires']
  assert any(line.startswith('jax>=') for line in required)
  assert [line for line in required if ACCELERATORS.search(line)] == []
  for extra, lines in asked['extras_require'].items():
    found = [line for line in lines if ACCELERATORS.search(line)]
    assert bool(found) == (extra in ('cuda', 'tpu', 'tpu_aot')), extra


def test_accelerators_are_extras_of_jax(asked):
  extras = asked['extras_require']
  assert extras['cuda'] == ['jax[cuda]'] and extras['tpu'] == ['jax[tpu]']
