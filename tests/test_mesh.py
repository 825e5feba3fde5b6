"""Whole runs split over devices and processes match a run on one device."""

import os
from pathlib import Path
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MESHES = ('8x1x1', '1x8x1', '2x2x2', '1x2x4')
pytestmark = pytest.mark.slow


def start(out, shape, *process, devices):
  flags = (
    f'--xla_force_host_platform_device_count={devices} '
    '--xla_cpu_collective_call_terminate_timeout_seconds=600 '
    '--xla_backend_optimization_level=0'
  )
  return subprocess.Popen(
    [sys.executable, '-m', 'tests.mesh_runs', str(out), shape, *process],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*processes):
  for process in processes:
    told, _ = process.communicate(timeout=500)
    assert process.returncode == 0, told[-3000:]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The run of one device."""
  out = tmp_path_factory.mktemp('alone') / 'run'
  finish(start(out, 'none', devices=1))
  return np.load(f'{out}.npz')


def assert_same_run(got, expected):
  """Equal tokens; sums in another order are compared by the norm of differences.

  Params after Adam are not compared: it divides by the root of a mean square, so
  that values near 0 can go anywhere.
  """
  assert set(got) == set(expected)
  for name in expected:
    one, two = got[name], expected[name]
    if name.startswith(('ids', 'lengths', 'answers')):
      np.testing.assert_array_equal(one, two, err_msg=name)
    elif name.startswith('logprobs'):
      np.testing.assert_allclose(one, two, atol=1e-4, err_msg=name)
    elif not name.startswith('params'):
      difference = np.linalg.norm(one - two) / np.linalg.norm(two)
      assert difference < 1e-5, name


@pytest.mark.parametrize('shape', MESHES)
def test_a_run_on_a_mesh_is_that_of_one_device(shape, alone, tmp_path):
  finish(start(tmp_path / 'run', shape, devices=8))
  assert_same_run(np.load(tmp_path / 'run.npz'), alone)


def test_two_processes_are_one(alone, tmp_path):
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    port = str(found.getsockname()[1])
  finish(
    *(
      start(tmp_path / 'run', '2x2x2', '2', str(i), port, devices=4)
      for i in range(2)
    )
  )
  assert_same_run(np.load(tmp_path / 'run.npz'), alone)
