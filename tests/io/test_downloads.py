"""Benchmark files: given, cached, downloaded, damaged, unreachable."""

import hashlib

import pytest

from memagent_jax.io import downloads
from memagent_jax.io.downloads import File


@pytest.fixture
def published(tmp_path, monkeypatch):
  """A source whose network is a folder."""
  remote = tmp_path / 'remote.json'
  remote.write_bytes(b'[1, 2]')
  digest = hashlib.sha256(b'[1, 2]').hexdigest()
  file = File('local.json', remote.as_uri(), digest)
  monkeypatch.setattr(downloads, 'SOURCES', {'set': (file,)})
  return remote


def test_a_file_is_fetched_once_and_kept(published, tmp_path):
  (path,) = downloads.obtain('set', None, tmp_path / 'cache')
  assert path == tmp_path / 'cache' / 'set' / 'local.json'
  assert path.read_bytes() == b'[1, 2]'
  published.unlink()
  assert downloads.obtain('set', None, tmp_path / 'cache') == (path,)
  assert [p.name for p in path.parent.iterdir()] == ['local.json']


def test_a_wrong_hash_is_named(published, tmp_path):
  published.write_bytes(b'[1, 3]')
  with pytest.raises(ValueError, match=r'SHA-256 is [0-9a-f]{64}; expected'):
    downloads.obtain('set', None, tmp_path / 'cache')


def test_without_network_the_error_says_where_to_put_the_file(
  published, tmp_path
):
  published.unlink()
  target = tmp_path / 'cache' / 'set' / 'local.json'
  with pytest.raises(ValueError, match=f'Put the file at {target}'):
    downloads.obtain('set', None, tmp_path / 'cache')
  assert not list(target.parent.iterdir())


def test_a_given_file_is_taken_as_it_is(published, tmp_path):
  own = tmp_path / 'own.jsonl'
  own.touch()
  assert downloads.obtain('set', own, tmp_path) == (own,)
  with pytest.raises(ValueError, match=r'absent\.json: no such file'):
    downloads.obtain('set', tmp_path / 'absent.json', tmp_path)


def test_unknown_sources_and_pins():
  with pytest.raises(ValueError, match='unknown; choose from hotpotqa_dev'):
    downloads.obtain('hotpot', None, '/nowhere')
  for files in downloads.SOURCES.values():
    for file in files:
      assert file.url.startswith('https://') and file.url.endswith(file.name)
      assert len(bytes.fromhex(file.sha256)) == 32
