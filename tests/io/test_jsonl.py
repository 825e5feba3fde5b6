"""Logs that were cut."""

import pytest

from memagent_jax.io import jsonl

ROWS = [{'a': 1}, {'b': 'é\n'}, {'c': [None]}]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'rows.jsonl'
  jsonl.append(path, ROWS[:1])
  jsonl.append(path, ROWS[1:])
  return path


def test_rows_come_back(path):
  assert list(jsonl.read(path)) == ROWS
  assert len(path.read_bytes().splitlines()) == 3


def test_a_log_cut_anywhere_goes_on(path):
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  for size in range(len(whole) + 1):
    path.write_bytes(whole[:size])
    found = list(jsonl.read(path))
    assert found == ROWS[: len(found)]
    jsonl.append(path, ROWS[2:])
    assert path.read_bytes() == b''.join(lines[: len(found)]) + lines[2]
