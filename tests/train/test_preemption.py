"""One latch for SIGTERM, in one process or in many."""

import os
import signal

import jax
from jax.experimental import multihost_utils
import pytest

from memagent_jax.train.preemption import Preemption


@pytest.fixture
def handler():
  """The test's own handler of SIGTERM outside a `Preemption`."""

  def handle(*unused):
    del unused

  before = signal.signal(signal.SIGTERM, handle)
  yield handle
  signal.signal(signal.SIGTERM, before)


def test_a_signal_is_latched_and_then_handled_as_before(handler):
  with Preemption() as preemption:
    assert not preemption.reached(0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.reached(1) and preemption.reached(2)
  assert signal.getsignal(signal.SIGTERM) == handler


def test_the_step_that_two_processes_agreed_on_is_latched(handler, monkeypatch):
  """JAX's service says yes only at that step; a save may ask a step later."""
  asked = []

  def agreed(step):
    asked.append(step)
    return step == 3

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', agreed)
  with Preemption() as preemption:
    # The signal belongs to the service: our own handler would take it away.
    assert signal.getsignal(signal.SIGTERM) == handler
    reached = [preemption.reached(step) for step in range(6)]
  assert reached == [False, False, False, True, True, True]
  # All processes ask at every step, whatever each of them has latched.
  assert asked == [0, 1, 2, 3, 4, 5]
