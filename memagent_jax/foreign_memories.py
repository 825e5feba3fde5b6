"""Memories that hold nothing of use, for trajectories to begin with.

    question, chunks of a document -> some tokens of either, repeated -> a memory

A memory that went astray is kept as carefully as a good one, and long documents
bring it about now and then. Where trajectories begin like that, giving it up when
the evidence comes is rewarded.
"""

import random

import jax
import numpy as np

from memagent_jax.data.batches import Batch
from memagent_jax.data.examples import seeded
from memagent_jax.structs import Tokens


def put_in(first: Tokens, batch: Batch, share: float, seed: int) -> Tokens:
  """First memories, with those of a share of the documents replaced.

  Which documents, and by what, follows from the seed, the example's id and the
  number of its reading alone.

  Args:
    first: B rows, M wide.
    batch: of the B documents.
    share: 0 ... 1.
    seed: of the choice.
  """
  documents = jax.tree.map(np.asarray, batch.documents)
  ids_BxM, length_B = (np.array(x) for x in (first.ids_NxW, first.length_N))
  for b, name in enumerate(batch.ids):
    rng = seeded('foreign memory', seed, name, batch.readings[b])
    if rng.random() >= share:
      continue
    question = documents.question.ids_NxW[b, : documents.question.length_N[b]]
    text = np.concatenate(
      [
        ids[b, : length[b]]
        for ids, length in zip(
          documents.chunk.ids_NxW, documents.chunk.length_N, strict=True
        )
      ]
    )
    memory = _memory(question, text, ids_BxM.shape[1], rng)
    ids_BxM[b, : len(memory)], length_B[b] = memory, len(memory)
  return Tokens(ids_BxM, length_B)


def _memory(
  question: np.ndarray, text: np.ndarray, cap: int, rng: random.Random
) -> np.ndarray:
  """Up to `cap` tokens: a piece of the question or none, then one of the text.

  The latter is repeated, as a model in a loop does.
  """
  length = rng.randint(1, cap)
  head = question[:0]
  if rng.random() < 0.5:
    head = _piece(question, rng.randint(1, length), rng)
  piece = _piece(text, rng.randint(1, length), rng)
  return np.concatenate([head, np.resize(piece, length)])[:length]


def _piece(ids: np.ndarray, length: int, rng: random.Random) -> np.ndarray:
  length = min(length, len(ids))
  start = rng.randint(0, len(ids) - length)
  return ids[start : start + length]
