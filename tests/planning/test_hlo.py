"""Costs read from programs, against arithmetic."""

import jax
from jax import lax
import jax.numpy as jnp
import pytest

from memagent_jax.planning import hlo

RATES = hlo.Rates(flops=1e12, hbm_bytes=1e11, link_bytes=1e10)


def cost_of(function, *shapes):
  given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return hlo.cost(jax.jit(function).lower(*given).compile().as_text(), RATES)


def test_a_product_costs_two_flops_for_each_of_its_terms():
  found = cost_of(lambda a, b: a @ b, (64, 32), (32, 16))
  assert found.flops == 2 * 64 * 32 * 16
  assert found.hbm_bytes >= 4 * (64 * 32 + 32 * 16 + 64 * 16)
  batched = cost_of(
    lambda a, b: jnp.einsum('nij,njk->nik', a, b), (5, 64, 32), (5, 32, 16)
  )
  assert batched.flops == 5 * found.flops


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
  def loop(x, a):
    return lax.scan(lambda x, _: (jnp.tanh(x @ a), None), x, length=12)[0]

  assert cost_of(loop, (64, 32), (32, 32)).flops == 12 * 2 * 64 * 32 * 32
  nested = cost_of(
    lambda x, a: lax.fori_loop(0, 3, lambda _, x: loop(x, a), x),
    (64, 32),
    (32, 32),
  )
  assert nested.flops == 3 * 12 * 2 * 64 * 32 * 32
  assert nested.unknown_loops == 0
  until = cost_of(
    lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x), (4,)
  )
  assert until.unknown_loops == 1


# As the TPU compiler writes it: products are convolutions, fused, and loops count
# to a constant without saying so; attributes extend over several lines.
TPU = """HloModule jit_f, is_scheduled=true

%fused_dot (p0: bf16[4,128,64,1], p1: bf16[64,2,32,1]) -> bf16[4,128,2,32] {
  %p0 = bf16[4,128,64,1]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[64,2,32,1]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[4,128,2,32]{3,1,2,0:T(8,128)(2,1)} convolution(%p0, %p1), window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
}

%fused_slice (p.0: f32[100,64], p.1: s32[]) -> f32[1,64] {
  %p.0 = f32[100,64]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  ROOT %slice = f32[1,64]{1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,64}
}

%body (arg: (s32[], f32[100,64])) -> (s32[], f32[100,64]) {
  %arg = (s32[]{:T(128)}, f32[100,64]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = f32[100,64]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %row = f32[1,64]{1,0:T(8,128)S(1)} fusion(%x, %i), kind=kLoop, calls=%fused_slice
  ROOT %next = (s32[]{:T(128)}, f32[100,64]{1,0:T(8,128)}) tuple(%i, %x)
}

%condition (arg.1: (s32[], f32[100,64])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[100,64]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %limit = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (a: bf16[4,128,64,1], b: bf16[64,2,32,1], c: (s32[], f32[100,64]), q: bf16[2,8,512,128], k: bf16[2,2,512,128], m: s8[1,2,2]) -> f32[8] {
  %a = bf16[4,128,64,1]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[64,2,32,1]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %c = (s32[]{:T(128)}, f32[100,64]{1,0:T(8,128)}) parameter(2)
  %q = bf16[2,8,512,128]{3,2,1,0:T(8,128)(2,1)} parameter(3)
  %k = bf16[2,2,512,128]{3,2,1,0:T(8,128)(2,1)} parameter(4)
  %m = s8[1,2,2]{2,1,0:T(8,128)} parameter(5)
  %y = bf16[4,128,2,32]{3,1,2,0:T(8,128)(2,1)} fusion(%a, %b), kind=kOutput, calls=%fused_dot, frontend_attributes={kernel_metadata={
}
}, backend_config={"aliasing_operands":{"lists":[]}}
  %loop = (s32[]{:T(128)}, f32[100,64]{1,0:T(8,128)}) while(%c), condition=%condition, body=%body
  %gathered = bf16[256,2,32,1]{3,2,1,0:T(8,128)(2,1)} all-gather(%b), dimensions={0}
  ROOT %splash_mha_fwd.1 = f32[2,8,512,128]{3,2,1,0:T(8,128)} custom-call(%m, %q, %k, %k), custom_call_target="tpu_custom_call"
}
"""


def test_what_the_tpu_compiler_writes():
  found = hlo.cost(TPU, RATES)
  product = 2 * 4 * 128 * 64 * (2 * 32)
  # Two block rows: one of the four blocks is above the diagonal and skipped.
  attention = 2 * (2 * 2 * 8 * 512 * 512 * 128) * 3 / 4
  assert found.flops == product + attention
  moved = 2 * (4 * 128 * 64 + 64 * 2 * 32 + 4 * 128 * 2 * 32)
  # One row of the operand is read; the loop's result stays on the chip.
  moved += 7 * (4 * 64)
  gathered = 2 * 256 * 2 * 32
  moved += 2 * gathered
  moved += 4 + 2 * (2 * 8 + 2 * 2 * 2) * 512 * 128 + 4 * 2 * 8 * 512 * 128
  assert found.hbm_bytes == pytest.approx(moved, rel=1e-3)
  assert found.link_bytes == found.largest_gather == gathered
  assert found.unknown_loops == 0


def test_a_loop_that_counts_in_twos_runs_half_as_often():
  def moved(stride):
    text = TPU.replace(
      '  ROOT %next =',
      f'  %stride = s32[]{{:T(128)}} constant({stride})\n'
      '  %more = s32[]{:T(128)} add(%i, %stride)\n'
      '  ROOT %next =',
    ).replace('tuple(%i, %x)', 'tuple(%more, %x)')
    assert text.count('%more') == 2
    return hlo.cost(text, RATES).hbm_bytes

  # Strides 1, 2 and 7 leave 7, 4 and 1 rounds, each of 256 bytes and a counter.
  assert moved(1) - moved(2) == moved(2) - moved(7) > 3 * 256


def test_a_kernel_without_a_cost_is_named():
  with pytest.raises(ValueError, match='kernel mystery'):
    hlo.cost(TPU.replace('splash_mha_fwd.1', 'mystery'), RATES)
  declared = TPU.replace('splash_mha_fwd.1', 'mystery').replace(
    '"tpu_custom_call"\n',
    '"tpu_custom_call", backend_config={"cost_estimate":'
    '{"bytes_accessed":"64","flops":"1000","transcendentals":"0"}}\n',
  )
  assert hlo.cost(declared, RATES).flops == 2 * 4 * 128 * 64 * 64 + 1000


def test_what_is_no_program_is_said():
  with pytest.raises(ValueError, match='no entry'):
    hlo.cost('HloModule nothing', RATES)
