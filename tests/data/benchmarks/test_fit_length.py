"""Documents of an exact length, for any size of a filler unit."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from memagent_jax.data.benchmarks.fit_length import Draft, fit
from memagent_jax.data.encoders import ByteEncoder


def drafts(unit, base='evidence'):
  """Renders `size` copies of a unit after the evidence."""

  def render(size):
    return Draft(base + unit * size, 'Q?', ('a',), ((0, len(base)),), 'units')

  return render


@given(st.integers(1, 10), st.integers(600, 3_000_000), st.integers(0, 500))
def test_any_target_is_met(unit_bytes, target, reserved):
  draft, tokens = fit(drafts('x' * unit_bytes), ByteEncoder(), target, reserved)
  assert tokens == len(draft.document) + len('Q?') + reserved
  assert 0.98 * target <= tokens <= target


def test_a_long_document_is_encoded_a_few_times_only():
  sizes = []

  class Encoder:
    def encode(self, text):
      sizes.append(len(text))
      return [0] * (len(text) // 4)

  fit(drafts('abcd efg'), Encoder(), 1_000_000, 0)
  assert sum(size > 2_000_000 for size in sizes) <= 2
  assert sum(sizes) < 2 * 4_000_000


def test_no_room_names_what_takes_it():
  with pytest.raises(ValueError, match=r'20 tokens leave no room: .* are 22'):
    fit(drafts('x'), ByteEncoder(), 20, 12)


def test_units_that_are_too_coarse_are_an_error_not_a_loop():
  with pytest.raises(ValueError, match=r'nearest: \[10, 510\]'):
    fit(drafts('x' * 500), ByteEncoder(), 300, 0)


@pytest.mark.parametrize(('unit', 'most'), [('x' * 500, 1 << 40), ('x', 50)])
def test_the_search_ends(unit, most):
  """Units are too coarse, or too few."""
  sizes = []

  def render(size):
    assert len(sizes) < 100, 'no end'
    sizes.append(size)
    return drafts(unit)(min(size, most))

  with pytest.raises(ValueError, match='no filler gives'):
    fit(render, ByteEncoder(), 300, 0)
