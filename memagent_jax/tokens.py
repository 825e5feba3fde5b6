"""Operations on right-padded token rows: repeat, join, pad, compare, drop.

A row's tokens stay in order and without gaps; the lengths alone say what is
padding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from memagent_jax.structs import Tokens


def repeat_ids(ids: Sequence[int], rows: int) -> Tokens:
  """The same ids in every row."""
  ids_W = jnp.asarray(ids, jnp.int32)
  return Tokens(
    jnp.broadcast_to(ids_W, (rows, len(ids))),
    jnp.full((rows,), len(ids), jnp.int32),
  )


def concatenate(parts: Sequence[Tokens]) -> Tokens:
  """Rows joined end to end without gaps; as wide as all parts together."""
  rows = parts[0].length_N.shape[0]
  width = sum(p.ids_NxW.shape[1] for p in parts)
  ids_NxW = jnp.zeros((rows, width), jnp.int32)
  end_N = jnp.zeros((rows,), jnp.int32)
  slot_1xW = jnp.arange(width)[None]
  for part in parts:
    source_NxW = slot_1xW - end_N[:, None]
    inside_NxW = (source_NxW >= 0) & (source_NxW < part.length_N[:, None])
    last = part.ids_NxW.shape[1] - 1
    taken_NxW = jnp.take_along_axis(
      part.ids_NxW, jnp.clip(source_NxW, 0, last), axis=1
    )
    ids_NxW = jnp.where(inside_NxW, taken_NxW, ids_NxW)
    end_N = end_N + part.length_N
  return Tokens(ids_NxW, end_N)


def pad_rows(rows: Sequence[Sequence[int]], width: int) -> Tokens:
  """Host lists of ids as right-padded rows of the given width.

  Raises:
    ValueError: a row is longer than the width.
  """
  ids_NxW = np.zeros((len(rows), width), np.int32)
  for n, row in enumerate(rows):
    if len(row) > width:
      raise ValueError(f'row {n} has {len(row)} tokens; the cap is {width}.')
    ids_NxW[n, : len(row)] = row
  lengths = np.asarray([len(row) for row in rows], np.int32)
  return Tokens(jnp.asarray(ids_NxW), jnp.asarray(lengths))


def lists(tokens: Tokens) -> list[list[int]]:
  """The ids of every row without its padding, on the host."""
  ids_NxW, length_N = np.asarray(tokens.ids_NxW), np.asarray(tokens.length_N)
  return [
    row[:length].tolist() for row, length in zip(ids_NxW, length_N, strict=True)
  ]


def equal(x: Tokens, y: Tokens) -> jax.Array:
  """bool [N]: whether x and y, of the same width, hold the same tokens."""
  real_NxW = jnp.arange(x.ids_NxW.shape[1]) < x.length_N[:, None]
  differs_NxW = real_NxW & (x.ids_NxW != y.ids_NxW)
  return (x.length_N == y.length_N) & ~differs_NxW.any(axis=1)


def where(condition_N: jax.Array, x: Tokens, y: Tokens) -> Tokens:
  """Rows of x where the condition holds, rows of y elsewhere."""
  return Tokens(
    jnp.where(condition_N[:, None], x.ids_NxW, y.ids_NxW),
    jnp.where(condition_N, x.length_N, y.length_N),
  )


def drop_tokens(tokens: Tokens, gone_NxW: jax.Array) -> Tokens:
  """Rows without the marked tokens; the others keep their order."""
  slot_1xW = jnp.arange(tokens.ids_NxW.shape[1])[None]
  kept_NxW = (slot_1xW < tokens.length_N[:, None]) & ~gone_NxW
  order_NxW = jnp.argsort(~kept_NxW, axis=1, stable=True)
  return Tokens(
    jnp.take_along_axis(tokens.ids_NxW, order_NxW, axis=1),
    kept_NxW.sum(axis=1).astype(jnp.int32),
  )


def thinking_span(tokens: Tokens, think_ids: tuple[int, int]) -> jax.Array:
  """bool [N, W]: tokens inside `<think> ... </think>`, the marks included.

  A span that never closes reaches to the end: its row was cut while thinking.
  """
  opens, closes = think_ids
  slot_NxW = jnp.broadcast_to(
    jnp.arange(tokens.ids_NxW.shape[1]), tokens.ids_NxW.shape
  )
  real_NxW = slot_NxW < tokens.length_N[:, None]
  is_open = real_NxW & (tokens.ids_NxW == opens)
  is_close = real_NxW & (tokens.ids_NxW == closes)
  opened = jax.lax.cummax(jnp.where(is_open, slot_NxW, -1), axis=1)
  closed = jax.lax.cummax(jnp.where(is_close, slot_NxW, -1), axis=1)
  # The close mark itself is part of the span: compare with closes before it.
  closed_before = jnp.pad(closed[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return real_NxW & ((opened > closed_before) | is_close)
