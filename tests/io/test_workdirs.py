"""Workdirs of one run each: which run's they are, and who is using them."""

from concurrent.futures import ThreadPoolExecutor
import threading

import pytest

from memagent_jax.io import workdirs


def test_a_workdir_belongs_to_its_config(tmp_path):
  for text in ('x = 1\ny = 2\n', 'x = 1\ny = 2'):
    workdirs.claim(tmp_path / 'a', text)
  with pytest.raises(ValueError, match='belongs to a run of another') as raised:
    workdirs.claim(tmp_path / 'a', 'x = 3\ny = 2\n')
  first, *lines = str(raised.value).splitlines()
  assert first.startswith(str(tmp_path / 'a'))
  assert lines == ['-x = 1', '+x = 3', 'Use another workdir.']


def test_a_workdir_is_claimed_by_many_at_once(tmp_path):
  # Long enough that writing it takes a while.
  text = 'x = 1\n' * 100_000
  with ThreadPoolExecutor(8) as pool:
    for n in range(10):
      start = threading.Barrier(8)

      def claim(workdir=tmp_path / str(n), start=start):
        start.wait()
        workdirs.claim(workdir, text)

      for claimed in [pool.submit(claim) for _ in range(8)]:
        claimed.result()
      assert [p.name for p in (tmp_path / str(n)).iterdir()] == [
        workdirs.CONFIG
      ]


def test_one_holds_a_lock_at_a_time(tmp_path):
  with workdirs.exclusive(tmp_path / 'lock'):
    with (
      pytest.raises(ValueError, match='lock: another process is at this work'),
      workdirs.exclusive(tmp_path / 'lock'),
    ):
      pass
    with workdirs.exclusive(tmp_path / 'other'):
      pass
  with workdirs.exclusive(tmp_path / 'lock'):
    pass


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
  path = tmp_path / 'x'
  workdirs.replace(path, b'old')
  with monkeypatch.context() as patch, pytest.raises(OSError, match='full'):
    patch.setattr(workdirs.os, 'replace', _full)
    workdirs.replace(path, b'new')
  assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def _full(*_):
  raise OSError('full')
