"""A grid of a tiny random model: rows, resuming, bad settings."""

import functools
import json

import pytest

from memagent_jax import length_grid, prompts, row_log
from memagent_jax.data.needle_documents import needle_documents
from memagent_jax.rollout import ReadingConfig

TEMPLATE = prompts.Template(
  '{question}|{memory}|{chunk}:', '{question}|{memory}:', '-'
)


@pytest.fixture(scope='module')
def settings(tiny_model_dir, tmp_path_factory):
  essay = tmp_path_factory.mktemp('essay') / 'essay.txt'
  essay.write_text('It rained all day. Nobody came to the house. ' * 100)
  return {
    'models': {'a': str(tiny_model_dir), 'b': str(tiny_model_dir)},
    'documents': functools.partial(
      needle_documents,
      tasks_and_rates={'niah_single_2': 1.0},
      chunk_tokens=500,
      essays=[str(essay)],
    ),
    'chunks': [1, 2],
    'examples': 4,
    'rows': 2,
    'template': TEMPLATE,
    'reading': ReadingConfig(
      chunk_tokens=500, memory_tokens=6, answer_tokens=6, question_tokens=90
    ),
    'axis_model': str(tiny_model_dir),
    'config_text': 'a = 1',
  }


@pytest.mark.slow
def test_a_grid_that_was_cut_goes_on_and_ends_with_the_same_bytes(
  settings, tmp_path
):
  length_grid.measure(workdir=tmp_path, **settings)
  path = tmp_path / length_grid.ROWS
  whole = path.read_bytes()
  rows = [json.loads(line) for line in whole.splitlines()]
  # 2 lengths x 2 models x 4 documents; both models read the same ones.
  assert len(rows) == 16
  ids = {m: [r['id'] for r in rows if r['model'] == m] for m in 'ab'}
  assert ids['a'] == ids['b'] and len(set(ids['a'])) == 8
  for row in rows:
    assert 250 < row['own_tokens'] <= 500 * row['chunks']
    assert row['tokens'] == row['own_tokens']
  # Killed within the fourth batch, in the middle of a line.
  lines = whole.splitlines(keepends=True)
  path.write_bytes(b''.join(lines[:7]) + lines[7][:20])
  length_grid.measure(workdir=tmp_path, **settings)
  assert path.read_bytes() == whole


def test_rows_of_another_config_are_refused(settings, tmp_path):
  row_log.claim_workdir(tmp_path, 'a = 1')
  with pytest.raises(ValueError, match='rows of another config'):
    length_grid.measure(
      workdir=tmp_path, **(settings | {'config_text': 'a = 2'})
    )


def test_batches_must_be_full(settings, tmp_path):
  with pytest.raises(ValueError, match='examples 3 is no multiple of rows 2'):
    length_grid.measure(workdir=tmp_path, **(settings | {'examples': 3}))
