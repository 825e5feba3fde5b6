"""Kernels against the formulas that they compute.

TPU kernels run step by step on the CPU, compared with `attention` there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import sharding
from memagent_jax.models import attention, kernels
from memagent_jax.models.attention import Segment
from memagent_jax.models.kernels import gpu, tpu

interpreted = functools.partial(tpu.causal, interpret=True)


def arrays(n, j, g, t, s, d):
  """Queries [N,J,G,T,D], keys and values [N,J,D,S]."""
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (n, j, g, t, d)) * d**-0.5
  k, v = (jax.random.normal(key, (n, j, d, s)) for key in keys[1:])
  return q, k, v


def test_gradient_of_the_gated_mlp_equals_that_of_the_formula():
  gate_up = jax.random.normal(jax.random.key(0), (2, 3, 2, 5)) * 3
  weight = jax.random.normal(jax.random.key(1), (2, 3, 5))

  def formula(x):
    gate, up = x[:, :, 0], x[:, :, 1]
    return gate / (1 + jnp.exp(-gate)) * up

  def gradient(f):
    return jax.jit(jax.grad(lambda x: (weight * f(x)).sum()))(gate_up)

  np.testing.assert_allclose(
    gradient(kernels.swiglu), gradient(formula), rtol=0, atol=1e-5
  )


@pytest.mark.parametrize('inputs', [1, 2])
def test_a_projection_sums_over_the_first_axes_of_its_kernel(inputs):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, *(4, 5)[:inputs])).astype(np.float32)
  kernel = rng.normal(size=(*(4, 5)[:inputs], 2, 6)).astype(np.float32)
  got = kernels.linear(x, kernel, inputs)
  assert got.shape == (2, 3, 2, 6)
  expected = np.einsum(
    'abi,icd->abcd' if inputs == 1 else 'abij,ijcd->abcd', x, kernel
  )
  np.testing.assert_allclose(got, expected, atol=1e-5)


# Up to 8 rows are computed one by one on the CPU, more at once.
@pytest.mark.parametrize('rows', [1, 3, 8, 9])
def test_rows_times_matrices_in_float32(rows):
  x, y = (
    jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
    for i, shape in enumerate([(2, 3, rows, 8), (2, 3, 8, 5)])
  )
  got = jax.jit(kernels.matmul, static_argnums=0)('njrd,njds->njrs', x, y)
  assert got.dtype == jnp.float32
  expected = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
  np.testing.assert_allclose(got, expected, atol=1e-5)


# Whole blocks, a ragged end, and dimensions that do not fill a register.
@pytest.mark.parametrize(('t', 'd'), [(128, 128), (200, 64), (250, 64)])
@pytest.mark.parametrize('causal', [interpreted, gpu.causal])
@pytest.mark.slow
def test_causal_values_and_gradients(causal, t, d):
  given = arrays(2, 2, 3, t, t, d)

  def total(function):
    return lambda *given: (function(*given) * jnp.cos(jnp.arange(d))).sum()

  np.testing.assert_allclose(
    causal(*given), attention._causal(*given), atol=1e-5
  )
  got = jax.grad(total(causal), (0, 1, 2))(*given)
  expected = jax.grad(total(attention._causal), (0, 1, 2))(*given)
  for one, two in zip(got, expected, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_blocks_are_as_large_as_a_little_padding_allows():
  blocks = {t: tpu._splash_block(t) for t in (60, 130, 250, 700, 5200, 7168)}
  assert blocks == {
    60: 128,
    130: 128,
    250: 256,
    700: 256,
    5200: 512,
    7168: 1024,
  }


def live(q, segments):
  """The kernel's version of `attend` for one query."""
  return attention.merged(
    [
      tpu.live(
        q[:, :, :, 0],
        s.k_NxJxDxS,
        s.v_NxJxDxS,
        s.visible_NxT[:, 0],
        interpret=True,
      )
      for s in segments
    ]
  )[:, :, :, None]


@pytest.mark.slow
def test_one_softmax_over_the_live_slots_of_two_segments():
  q, k, v = arrays(3, 2, 2, 1, 700, 64)
  _, k2, v2 = arrays(3, 2, 2, 1, 96, 64)
  segments = [
    Segment(k, v, jnp.array([[700], [513], [1]])),
    # The first row has nothing written yet.
    Segment(k2, v2, jnp.array([[0], [96], [5]])),
  ]
  expected, _ = attention.attend([(q, s) for s in segments])
  np.testing.assert_allclose(live(q, segments), expected, atol=1e-6)


@pytest.mark.slow
def test_blocks_behind_the_last_live_slot_are_not_read():
  q, k, v = arrays(2, 1, 2, 1, 2048, 64)
  length_Nx1 = jnp.array([[600], [512]])
  poisoned = [
    x.at[0, ..., 1024:].set(jnp.nan).at[1, ..., 512:].set(jnp.nan)
    for x in (k, v)
  ]
  got = live(q, [Segment(*poisoned, length_Nx1)])
  expected, _ = attention.attend([(q, Segment(k, v, length_Nx1))])
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.slow
def test_each_platform_has_its_own(monkeypatch):
  q, k, v = arrays(2, 2, 2, 130, 130, 64)
  q_NxTxHxD = attention.ungrouped(q) * 64**0.5
  causal = [Segment(k, v)]
  step = [Segment(k, v, jnp.array([[130], [7]]))]
  expected = [
    attention.attention(q_NxTxHxD, causal),
    attention.attention(q_NxTxHxD[:, :1], step),
  ]
  called = []

  def interpret(name):
    kernel = functools.partial(getattr(tpu, name), interpret=True)

    def spy(*args):
      called.append(name)
      return kernel(*args)

    return spy

  monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
  monkeypatch.setitem(kernels.CAUSAL, 'tpu', interpret('causal'))
  monkeypatch.setitem(kernels.LIVE, 'tpu', interpret('live'))
  got = [
    attention.attention(q_NxTxHxD, causal),
    attention.attention(q_NxTxHxD[:, :1], step),
  ]
  assert called == ['causal', 'live']
  for one, two in zip(got, expected, strict=True):
    np.testing.assert_allclose(one, two, atol=1e-5)


def compare_on_eight_devices():
  """Each device has its own rows and heads of the kernels."""
  q, k, v = arrays(4, 2, 2, 128, 128, 64)
  length_N = jnp.array([128, 3, 60, 100])
  expected = (
    attention._causal(q, k, v),
    tpu.live(q[:, :, :, 0], k, v, length_N, interpret=True),
  )
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  with jax.set_mesh(mesh):
    got = jax.jit(
      lambda: (
        interpreted(q, k, v),
        tpu.live(q[:, :, :, 0], k, v, length_N, interpret=True),
      )
    )()
    parts = [x.data.shape for x in got[0].addressable_shards]
  assert parts == [(1, 1, 2, 128, 64)] * 8
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-5), got, expected
  )


@pytest.mark.slow
def test_on_eight_devices(run_on_eight_devices):
  run_on_eight_devices(
    'from tests.models import test_kernels as t; t.compare_on_eight_devices()'
  )
