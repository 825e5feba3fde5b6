"""Accuracy against document length: models x lengths, row by row, resumable.

    models x chunks -> batches of a full, fixed shape -> trajectories -> rows.jsonl

A batch's composition depends on the settings alone and its rows are written
together, so a grid that was killed goes on where it was.
"""

from collections.abc import Callable, Mapping, Sequence
import os
from pathlib import Path
import time

import numpy as np

from memagent_jax import rollout, row_log, trajectories
from memagent_jax.data.batches import Batch, BatchConfig, BatchIterator
from memagent_jax.models import pretrained
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.prompts import Template
from memagent_jax.rollout import ReadingConfig
from memagent_jax.trajectories import Trajectories, Verdicts

ROWS = 'rows.jsonl'


def measure(
  *,
  workdir: str | os.PathLike,
  models: Mapping[str, str],
  documents: Callable,
  chunks: Sequence[int],
  examples: int,
  rows: int,
  template: Template,
  reading: ReadingConfig,
  axis_model: str = pretrained.DEFAULT_MODEL,
  config_text: str = '',
) -> None:
  """Reads documents of every length with every model; appends to `rows.jsonl`.

  Args:
    workdir: of this grid.
    models: directory or name of each model, by the name that its rows have.
    documents: makes the seqio task or mixture for a tokenizer and `chunks`.
    chunks: lengths of documents, read in this order.
    examples: documents of each length.
    rows: documents read side by side.
    template: wording of the turns.
    reading: caps and sampling.
    axis_model: its tokenizer counts the tokens of the axis.
    config_text: a workdir of another one is refused.

  Raises:
    ValueError: a workdir of another grid, or examples that are no multiple of
      `rows`.
  """
  if examples % rows:
    raise ValueError(
      f'examples {examples} is no multiple of rows {rows}; batches always have '
      'their full shape.'
    )
  workdir = Path(workdir)
  row_log.claim_workdir(workdir, config_text)
  done = {
    (row['model'], row['chunks'], row['batch'])
    for row in read_rows(workdir, examples=rows)
  }
  axis = Tokenizer.from_directory(pretrained.resolve(axis_model))
  loaded = {name: pretrained.load_model(path) for name, path in models.items()}
  for count in chunks:
    for name, model in loaded.items():
      missing = [
        b for b in range(examples // rows) if (name, count, b) not in done
      ]
      if not missing:
        continue
      agent = rollout.make_agent(model, template, reading)
      batches = BatchIterator(
        documents(model.tokenizer, chunks=count),
        model.tokenizer,
        BatchConfig(
          batch_size=rows,
          chunk_tokens=reading.chunk_tokens,
          question_tokens=reading.question_tokens,
          chunk_cut=reading.chunk_cut,
        ),
      )
      for number in range(missing[-1] + 1):
        batch = next(batches)
        if number not in missing:
          continue
        begun = time.perf_counter()
        found = trajectories.sample(agent, model.params, batch)
        verdicts = trajectories.judge(model.tokenizer, batch, found)
        place = {'model': name, 'chunks': count, 'batch': number}
        made = [
          place | _row(model.tokenizer, axis, batch, found, verdicts, n)
          for n in range(rows)
        ]
        row_log.append(workdir / ROWS, made)
        print(
          f'{count:4d} chunks  {name:10s} {verdicts.metric_BxG.sum():.0f} of '
          f'{rows} right  {time.perf_counter() - begun:.0f} s',
          flush=True,
        )


def read_rows(
  workdir: str | os.PathLike, examples: int | None = None
) -> list[dict]:
  """Rows of a grid; of whole batches of `examples` rows where that is given."""
  path = Path(workdir) / ROWS
  if not path.exists():
    return []
  rows = list(row_log.read(path))
  if examples is not None:
    whole = len(rows) - len(rows) % examples
    rows = rows[:whole]
    # Batches are appended whole: what is left over was cut by a kill.
    row_log.rewrite(path, rows)
  return rows


def _row(
  tokenizer,
  axis: Tokenizer,
  batch: Batch,
  found: Trajectories,
  verdicts: Verdicts,
  n: int,
) -> dict:
  chunk = found.documents.chunk
  ids = [
    slot[:length]
    for slot, length in zip(
      chunk.ids_NxW[:, n], chunk.length_N[:, n], strict=True
    )
  ]
  document = tokenizer.decode(np.concatenate(ids).tolist())
  return {
    'id': batch.ids[n],
    'task': batch.tasks[n],
    'tokens': len(axis.encode(document)),
    'own_tokens': int(chunk.length_N[:, n].sum()),
    'score': float(verdicts.metric_BxG[n, 0]),
    'reward': float(verdicts.reward_BxG[n, 0]),
    'answer': verdicts.answers[n],
    'answers': list(batch.answers[n]),
  }
