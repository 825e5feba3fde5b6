"""Distractor memories: useless first memories for trajectories to begin with.

    question, chunks and answers of a document
      -> words that lead up to an answer, or words of the question, or nothing
      -> followed by a piece of the text, or the last of these words, repeated
      -> a memory

A model keeps a memory that has gone astray as carefully as a good one, and in
long documents one goes astray now and then. Trajectories that begin with such a
memory are rewarded for giving it up when the evidence comes.
"""

from collections.abc import Sequence
import random
import re

import jax
import numpy as np

from memagent_jax.data.batch import Batch
from memagent_jax.data.examples import seeded
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import Tokens

# Maximum number of words before an answer that a memory may begin with.
_LEAD_WORDS = 4
# Maximum period, in tokens, of the half of the memories that are short loops.
_LOOP_TOKENS = 8


def replace_some(
  tokenizer: Tokenizer, first: Tokens, batch: Batch, share: float, seed: int
) -> Tokens:
  """First memories, of which those of a share of the documents are replaced.

  Which documents, and by what, depends only on the seed, the example's id and
  the number of its reading.

  Args:
    tokenizer: the model's tokenizer.
    first: first memories, B rows, M wide.
    batch: batch of the B documents.
    share: share of the documents, 0 ... 1.
    seed: seed of the choice.
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
    kind = rng.randrange(4)
    if kind == 0:
      head = question[:0]
    elif kind == 1:
      head = _piece(question, rng.randint(1, len(question)), rng)
    else:
      head = _lead(tokenizer, text, batch.answers[b], rng)
    memory = _memory(head, text, ids_BxM.shape[1], rng)
    ids_BxM[b, : len(memory)], length_B[b] = memory, len(memory)
  return Tokens(ids_BxM, length_B)


def _lead(
  tokenizer: Tokenizer,
  text: np.ndarray,
  answers: Sequence[str],
  rng: random.Random,
) -> np.ndarray:
  """The last words before an answer, as its memory would begin, or nothing."""
  read = tokenizer.decode(text.tolist())
  places = [read.find(answer) for answer in answers if answer in read]
  if not places:
    return text[:0]
  words = re.findall(r'\S+', read[: min(places)][-200:])[1:]
  words = words[-rng.randint(1, _LEAD_WORDS) :]
  if words and rng.random() < 0.5:
    words[-1] = re.sub(r'\W+$', '', words[-1])
  lead = ' ' + ' '.join(words) if words else ''
  return np.array(tokenizer.encode(lead), text.dtype)


def _memory(
  head: np.ndarray, text: np.ndarray, cap: int, rng: random.Random
) -> np.ndarray:
  """Up to `cap` tokens: the head, then a piece of the text, repeated.

  Half of the memories are short loops of the text or of the head's last tokens.
  """
  length = rng.randint(min(len(head), cap - 1) + 1, cap)
  short = rng.random() < 0.5
  longest = min(cap, _LOOP_TOKENS) if short else cap
  piece = _piece(text, rng.randint(1, longest), rng)
  if short and len(head) and rng.random() < 0.5:
    piece = head[-len(piece) :]
  return np.concatenate([head, np.resize(piece, length)])[:length]


def _piece(ids: np.ndarray, length: int, rng: random.Random) -> np.ndarray:
  length = min(length, len(ids))
  start = rng.randint(0, len(ids) - length)
  return ids[start : start + length]
