"""Logs that were cut, and workdirs of another config."""

from concurrent.futures import ThreadPoolExecutor
import threading

import pytest

from memagent_jax import row_log

ROWS = [{'a': 1}, {'b': 'é\n'}, {'c': [None]}]


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'rows.jsonl'
  row_log.append(path, ROWS[:1])
  row_log.append(path, ROWS[1:])
  return path


def test_rows_come_back(path):
  assert list(row_log.read(path)) == ROWS
  assert len(path.read_bytes().splitlines()) == 3


def test_a_log_cut_anywhere_goes_on(path):
  whole = path.read_bytes()
  lines = whole.splitlines(keepends=True)
  for size in range(len(whole) + 1):
    path.write_bytes(whole[:size])
    found = list(row_log.read(path))
    assert found == ROWS[: len(found)]
    row_log.append(path, ROWS[2:])
    assert path.read_bytes() == b''.join(lines[: len(found)]) + lines[2]


def test_a_workdir_belongs_to_its_config(tmp_path):
  for _ in range(2):
    row_log.claim_workdir(tmp_path / 'a', 'x = 1')
  with pytest.raises(ValueError, match='rows of another config'):
    row_log.claim_workdir(tmp_path / 'a', 'x = 2')


def test_a_workdir_is_claimed_by_many_at_once(tmp_path):
  # Long, so that writing it takes a while.
  text = 'x = 1\n' * 100_000
  with ThreadPoolExecutor(8) as pool:
    for n in range(10):
      start = threading.Barrier(8)

      def claim(workdir=tmp_path / str(n), start=start):
        start.wait()
        row_log.claim_workdir(workdir, text)

      for claimed in [pool.submit(claim) for _ in range(8)]:
        claimed.result()
      assert [p.name for p in (tmp_path / str(n)).iterdir()] == [row_log.CONFIG]
