"""Logs that were cut short."""

import pytest

from memagent_jax.io import jsonl

OBJECTS = [{'a': 1}, {'b': 'é\n'}, {'c': [None]}]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'log.jsonl'
  jsonl.append(path, OBJECTS[:1])
  jsonl.append(path, OBJECTS[1:])
  return path


def test_objects_come_back(path):
  assert list(jsonl.read(path)) == OBJECTS
  assert len(path.read_bytes().splitlines()) == 3


def test_a_log_cut_anywhere_goes_on(path):
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  for size in range(len(whole) + 1):
    path.write_bytes(whole[:size])
    kept = list(jsonl.read(path))
    assert kept == OBJECTS[: len(kept)]
    jsonl.append(path, OBJECTS[2:])
    assert path.read_bytes() == b''.join(lines[: len(kept)]) + lines[2]
