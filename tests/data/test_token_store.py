"""Stored ids equal those of the whole text, whatever is killed on the way."""

from contextlib import contextmanager
import gzip
import http.server
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse

from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorstore as ts

from memagent_jax.data import text, token_store
from memagent_jax.data.token_store import (
  open_store,
  store_spec,
  tokenize_to_store,
)

_SENTENCE = 'the hell of "it", he said in 1972; naïve 漢字 🙂. '


class _Letters:
  """One id per character; records what it encoded."""

  fingerprint = 'letters'

  def __init__(self):
    self.longest = self.characters = 0

  def encode(self, text):
    self.longest = max(self.longest, len(text))
    self.characters += len(text)
    return list(map(ord, text))


class _PrefixSpace(_Letters):
  """Marks the start of every text: no cut is safe."""

  fingerprint = 'prefix'

  def encode(self, text):
    return [0, *super().encode(text)] if text else []


class _Killed(Exception):
  pass


def _document(tmp_path, content, name='book.txt'):
  path = tmp_path / name
  path.write_bytes(content.encode())
  return path


def _all_ids(store):
  return store.read(0, store.num_tokens).tolist()


@contextmanager
def _killed_at_record(number):
  """Nothing is written from the `number`th record on."""
  write, calls = token_store._write_record, 0

  def write_or_die(location, record):
    nonlocal calls
    calls += 1
    if calls >= number:
      raise _Killed
    write(location, record)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(token_store, '_write_record', write_or_die)
    yield


# ---- The ids are those of the whole text.

_words = st.one_of(
  st.sampled_from(['the', 'hell', '3', '\n\n', '.', '<|im_end|>', '\r\n']),
  st.text(st.characters(exclude_categories=['Cs']), max_size=8),
)


@settings(max_examples=50)
@given(
  words=st.lists(_words, max_size=40),
  repeat=st.integers(0, 60),
  piece_bytes=st.integers(1, 700),
  block_tokens=st.integers(7, 100),
  commit_tokens=st.integers(1, 600),
  window_tokens=st.integers(1, 300),
  kills=st.lists(st.integers(2, 5), max_size=2),
)
def test_stored_ids_are_those_of_the_whole(
  tiny_tokenizer,
  words,
  repeat,
  piece_bytes,
  block_tokens,
  commit_tokens,
  window_tokens,
  kills,
):
  # 'the hell' is a safe place to cut in every repeat.
  content = ' '.join([*words, 'the', 'hell'] * repeat)
  # The document reader drops a byte-order mark at the start.
  expected = tiny_tokenizer.encode(content.removeprefix('\ufeff'))
  with (
    tempfile.TemporaryDirectory() as directory,
    pytest.MonkeyPatch.context() as patch,
  ):
    patch.setattr(text, '_PIECE_BYTES', piece_bytes)
    source = _document(Path(directory), content)
    arguments = (source, f'{directory}/store', tiny_tokenizer)
    sizes = {'block_tokens': block_tokens, 'commit_tokens': commit_tokens}
    for kill in kills:
      try:
        with _killed_at_record(kill):
          tokenize_to_store(*arguments, **sizes)
      except _Killed:
        pass
    store = tokenize_to_store(*arguments, **sizes)
    windows = [window.tolist() for window in store.windows(window_tokens)]
  assert [i for window in windows for i in window] == expected
  assert store.num_tokens == len(expected)
  assert all(len(window) == window_tokens for window in windows[:-1])


def test_any_range_is_read_as_int32(tmp_path, tiny_tokenizer):
  source = _document(tmp_path, _SENTENCE * 40)
  store = tokenize_to_store(
    source, tmp_path / 'store', tiny_tokenizer, block_tokens=16
  )
  expected = np.array(tiny_tokenizer.encode(_SENTENCE * 40))
  for start, stop in [(0, 0), (0, 1), (15, 17), (16, 32), (5, 900)]:
    ids = store.read(start, stop)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, expected[start:stop])
  for start, stop in [(-1, 2), (3, 2), (0, len(expected) + 1)]:
    with pytest.raises(ValueError, match=f'tokens {start} to {stop} were'):
      store.read(start, stop)
  with pytest.raises(ValueError, match='size_tokens is 0'):
    store.windows(0)


def test_other_kinds_of_document(tmp_path):
  content = 'naïve words ' * 50
  packed = tmp_path / 'book.txt.gz'
  packed.write_bytes(gzip.compress(content.encode('latin-1')))
  store = tokenize_to_store(
    packed, tmp_path / 'store', _Letters(), encoding='latin-1'
  )
  assert _all_ids(store) == list(map(ord, content))
  assert store.source == 'book.txt.gz'
  assert (store.num_tokens, store.num_characters) == (600, 600)


def test_an_empty_document_has_no_tokens(tmp_path):
  source = _document(tmp_path, '')
  store = tokenize_to_store(source, tmp_path / 'store', _Letters())
  assert (store.num_tokens, list(store.windows(8))) == (0, [])
  assert _all_ids(store) == []


def test_text_is_encoded_in_parts(tmp_path):
  tokenizer = _Letters()
  source = _document(tmp_path, 'some words ' * 10_000)
  tokenize_to_store(source, tmp_path / 'store', tokenizer)
  # A part of 8,192, the held-back tail of 256, and a word.
  assert tokenizer.longest < 8192 + 256 + 12


def test_without_safe_cuts_the_whole_is_encoded_once(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(token_store, '_WARN_CHARACTERS', 50_000)
  content = 'some words ' * 10_000
  source = _document(tmp_path, content)
  with caplog.at_level(logging.WARNING, logger='absl'):
    store = tokenize_to_store(source, tmp_path / 'store', _PrefixSpace())
  assert _all_ids(store) == _PrefixSpace().encode(content)
  assert caplog.text.count('are encoded at once') == 1


def test_text_without_words_takes_linear_time(tmp_path):
  # Searching all held text whenever 8,192 characters arrive would look at
  # 366 * 3M / 2 = 549M characters, and at four times as many in twice the text.
  source = _document(tmp_path, '0' * 3_000_000)
  tokenizer = _Letters()
  searched = 0
  search = token_store.chunks.StreamEncoder._safe_cut

  def counting_search(self, text, limit):
    nonlocal searched
    searched += len(text)
    return search(self, text, limit)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      token_store.chunks.StreamEncoder, '_safe_cut', counting_search
    )
    store = tokenize_to_store(source, tmp_path / 'store', tokenizer)
  assert store.num_tokens == 3_000_000
  # Doubling: n + n/2 + n/4 ... and the end once more.
  assert searched <= 3 * 3_000_000


# ---- Killed and repeated.


def test_killed_after_the_ids_and_before_their_record(tmp_path):
  content = _SENTENCE * 400
  source = _document(tmp_path, content)
  location = tmp_path / 'store'
  sizes = {'block_tokens': 100, 'commit_tokens': 3000}
  with _killed_at_record(3), pytest.raises(_Killed):
    tokenize_to_store(source, location, _Letters(), **sizes)
  record = json.loads((location / 'tokens.json').read_text())
  array = ts.open(store_spec(location)).result()
  # One commit is recorded; the second has written its ids but no record.
  assert 3000 <= record['tokens'] < array.shape[0]
  with pytest.raises(ValueError, match=r'unfinished \([\d,]+ tokens so far\)'):
    open_store(location)
  tokenizer = _Letters()
  store = tokenize_to_store(source, location, tokenizer, commit_tokens=999)
  assert _all_ids(store) == list(map(ord, content))
  # Committed text is not encoded again; proving each cut safe takes 256.
  again = tokenizer.characters - (len(content) - record['characters'])
  assert 0 <= again < 256 * 8


def test_sigkill_then_the_same_ids(tmp_path, tiny_tokenizer):
  content = _SENTENCE * 6000
  source = _document(tmp_path, content)
  tiny_tokenizer.save(tmp_path)
  program = """if True:
    import os, signal, sys
    from memagent_jax.data import text, token_store
    from memagent_jax.models.tokenizer import Tokenizer
    source, location, directory = sys.argv[1:]
    read = text.read_pieces
    def read_and_die(source, encoding):
      for i, piece in enumerate(read(source, encoding)):
        if i == 4:
          os.kill(os.getpid(), signal.SIGKILL)
        yield piece
    text.read_pieces = read_and_die
    token_store.tokenize_to_store(
      source, location, Tokenizer.from_directory(directory),
      block_tokens=1000, commit_tokens=2500)
  """
  location = tmp_path / 'store'
  run = subprocess.run(
    [sys.executable, '-c', program, source, location, tmp_path],
    stderr=subprocess.PIPE,
  )
  assert run.returncode == -signal.SIGKILL, run.stderr
  record = json.loads((location / 'tokens.json').read_text())
  assert not record['finished'] and record['tokens'] > 100_000
  store = tokenize_to_store(source, location, tiny_tokenizer)
  assert _all_ids(store) == tiny_tokenizer.encode(content)


def test_a_repeat_on_a_finished_store_encodes_nothing(tmp_path, monkeypatch):
  source = _document(tmp_path, _SENTENCE * 30)
  location = tmp_path / 'store'
  first = tokenize_to_store(source, location, _Letters())
  tokenizer = _Letters()
  # If the date differs, the text is compared; then the new date is recorded.
  os.utime(source, (1, 1))
  tokenize_to_store(source, location, tokenizer)
  monkeypatch.setattr(text, 'read_pieces', None)
  again = tokenize_to_store(source, location, tokenizer)
  assert tokenizer.characters == 0
  assert _all_ids(again) == _all_ids(first)


# ---- Refusals.


def test_a_changed_source_is_refused(tmp_path):
  source = _document(tmp_path, 'some words ' * 50)
  location = tmp_path / 'store'
  tokenize_to_store(source, location, _Letters())
  source.write_text('some words ' * 51)
  with pytest.raises(ValueError, match=r'550 bytes; .* now has 561 bytes'):
    tokenize_to_store(source, location, _Letters())
  # The same size does not mean the same text.
  source.write_text('some world ' * 50)
  os.utime(source, (1, 1))
  with pytest.raises(ValueError, match=r'now has a different text\. Choose'):
    tokenize_to_store(source, location, _Letters())


def test_a_source_changed_before_the_stop_is_refused(tmp_path):
  content = 'some words ' * 500
  source = _document(tmp_path, content)
  location = tmp_path / 'store'
  with _killed_at_record(4), pytest.raises(_Killed):
    tokenize_to_store(source, location, _Letters(), commit_tokens=1)
  source.write_text('home' + content[4:])
  with pytest.raises(ValueError, match='now has a different text'):
    tokenize_to_store(source, location, _Letters())


def test_another_tokenizer_is_refused(tmp_path):
  source = _document(tmp_path, _SENTENCE)
  location = tmp_path / 'store'
  tokenize_to_store(source, location, _Letters())
  message = 'of tokenizer letters, this one is prefix'
  with pytest.raises(ValueError, match=message):
    open_store(location, _PrefixSpace())
  with pytest.raises(ValueError, match=message):
    tokenize_to_store(source, location, _PrefixSpace())
  assert open_store(location, _Letters()).fingerprint == 'letters'


def test_what_is_no_store_is_refused(tmp_path):
  with pytest.raises(ValueError, match='no token store; make one'):
    open_store(tmp_path / 'nothing')
  source = _document(tmp_path, _SENTENCE)
  with pytest.raises(ValueError, match='no such file'):
    tokenize_to_store(tmp_path / 'gone.txt', tmp_path / 'store', _Letters())
  with pytest.raises(ValueError, match='commit_tokens is 0'):
    tokenize_to_store(source, tmp_path / 'store', _Letters(), commit_tokens=0)

  foreign = tmp_path / 'foreign'
  ts.open(store_spec(foreign), create=True, dtype='int32', shape=[4]).result()
  with pytest.raises(ValueError, match='holds an array that is no token store'):
    tokenize_to_store(source, foreign, _Letters())
  (foreign / 'tokens.json').write_text('{"tokens": 4}')
  with pytest.raises(ValueError, match=r'tokens\.json is no record'):
    open_store(foreign)


@pytest.mark.parametrize('damage', ['flipped bit', 'missing block'])
def test_damaged_blocks_are_an_error(tmp_path, damage):
  source = _document(tmp_path, _SENTENCE * 30)
  location = tmp_path / 'store'
  tokenize_to_store(source, location, _Letters(), block_tokens=100)
  block = location / 'c' / '1'
  if damage == 'flipped bit':
    data = bytearray(block.read_bytes())
    data[len(data) // 2] ^= 1
    block.write_bytes(data)
  else:
    block.unlink()
  store = open_store(location)
  assert len(store.read(0, 100)) == 100
  with pytest.raises(ValueError, match=r'DATA_LOSS|missing'):
    store.read(150, 160)


# ---- Locations.


def test_locations(tmp_path, monkeypatch):
  def kvstore(location):
    spec = store_spec(location)
    assert spec['driver'] == 'zarr3'
    # TensorStore knows the driver and accepts its members.
    ts.KvStore.Spec(spec['kvstore'])
    return spec['kvstore']

  monkeypatch.chdir(tmp_path)
  local = {'driver': 'file', 'path': f'{tmp_path}/a b/'}
  assert kvstore('a b') == kvstore(f'{tmp_path}/a b/') == local
  assert kvstore(tmp_path / 'a b') == kvstore(f'file://{tmp_path}/a%20b')
  bucket = {'bucket': 'books', 'path': 'long/novel#1/'}
  assert kvstore('gs://books/long/novel#1') == {'driver': 'gcs'} | bucket
  assert kvstore('s3://books/long/novel#1/') == {'driver': 's3'} | bucket


@pytest.mark.parametrize(
  ('location', 'message'),
  [
    ('http://host/a', "scheme 'http' is unknown; expected a local path"),
    ('gs://books', 'expected gs://bucket/path'),
    ('s3:///a', 'expected s3://bucket/path'),
    ('file://a/b', 'expected file:///absolute/path'),
  ],
)
def test_unknown_locations_are_refused(location, message):
  with pytest.raises(ValueError, match=message):
    store_spec(location)


class _Bucket(http.server.BaseHTTPRequestHandler):
  """The part of the Cloud Storage JSON API that TensorStore's driver needs."""

  protocol_version = 'HTTP/1.1'
  # Header and body are two writes; the second would wait for the first's ACK.
  disable_nagle_algorithm = True

  def do_GET(self):
    name = self._url().path.partition('/o/')[2]
    generation, value = self.server.objects.get(
      urllib.parse.unquote(name), (0, None)
    )
    if value is None:
      self._reply(404)
    else:
      self._reply(200, value, {'x-goog-generation': str(generation)})

  def do_POST(self):
    query = dict(urllib.parse.parse_qsl(self._url().query))
    value = self.rfile.read(int(self.headers['Content-Length']))
    generation, _ = self.server.objects.get(query['name'], (0, None))
    if int(query.get('ifGenerationMatch', generation)) != generation:
      self._reply(412)
      return
    self.server.objects[query['name']] = (generation + 1, value)
    resource = {
      'name': query['name'],
      'bucket': 'books',
      'generation': str(generation + 1),
      'metageneration': '1',
      'size': str(len(value)),
      'timeCreated': '2026-01-01T00:00:00Z',
      'updated': '2026-01-01T00:00:00Z',
    }
    self._reply(200, json.dumps(resource).encode())

  def log_message(self, *args):
    pass

  def _url(self):
    return urllib.parse.urlsplit(self.path)

  def _reply(self, code, value=b'', headers=()):
    self.send_response(code)
    for key, header in dict(headers).items():
      self.send_header(key, header)
    self.send_header('Content-Length', str(len(value)))
    self.end_headers()
    self.wfile.write(value)


@pytest.fixture
def bucket_objects(monkeypatch):
  """The objects of a local bucket server, by name."""
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Bucket)
  server.objects = {}
  threading.Thread(
    target=server.serve_forever, args=(0.02,), daemon=True
  ).start()
  address = f'127.0.0.1:{server.server_port}'
  monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', f'http://{address}')
  # Credentials are looked for here too, and not found.
  monkeypatch.setenv('GCE_METADATA_ROOT', address)
  yield server.objects
  server.shutdown()
  server.server_close()


def test_a_store_in_a_bucket(tmp_path, bucket_objects):
  content = _SENTENCE * 100
  source = _document(tmp_path, content)
  arguments = (source, 'gs://books/novel', _Letters())
  sizes = {'block_tokens': 500, 'commit_tokens': 1200}
  with _killed_at_record(3), pytest.raises(_Killed):
    tokenize_to_store(*arguments, **sizes)
  store = tokenize_to_store(*arguments, **sizes)
  assert _all_ids(store) == list(map(ord, content))
  blocks = -(-len(content) // 500)
  assert set(bucket_objects) == {
    'novel/tokens.json',
    'novel/zarr.json',
    *(f'novel/c/{i}' for i in range(blocks)),
  }


# ---- Size.


def _pages():
  """50 MB of English-like pages, cut at a line break before a letter."""
  size = page = 0
  while size < 50_000_000:
    lines = (
      f'On day {page * 40 + i} the watchman of tower {i * 7} wrote that "all is '
      f'well", and counted {page % 97} ships; the hell of it was the rain.\n'
      for i in range(40)
    )
    content = ''.join(lines)
    size += len(content)
    page += 1
    yield content


@pytest.mark.slow
def test_50_megabytes_in_less_than_300_of_memory(tmp_path, tiny_tokenizer):
  source = tmp_path / 'book.txt'
  with source.open('w') as stream:
    stream.writelines(_pages())
  tiny_tokenizer.save(tmp_path)
  # The process's own peak: getrusage would include the parent's, which fork and
  # exec pass on.
  program = """if True:
    import re, sys, time
    from memagent_jax.data.token_store import tokenize_to_store
    from memagent_jax.models.tokenizer import Tokenizer
    source, location, directory = sys.argv[1:]
    start = time.monotonic()
    store = tokenize_to_store(
      source, location, Tokenizer.from_directory(directory))
    stored = time.monotonic()
    tokens = sum(map(len, store.windows(5000)))
    assert tokens == store.num_tokens
    status = open('/proc/self/status').read()
    print(int(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1]) * 1024,
          stored - start, time.monotonic() - stored)
  """
  location = tmp_path / 'store'
  run = subprocess.run(
    [sys.executable, '-c', program, source, location, tmp_path],
    stdout=subprocess.PIPE,
    check=True,
  )
  peak_bytes, tokenize_seconds, read_seconds = map(float, run.stdout.split())
  print(
    f'peak {peak_bytes / 1e6:.0f} MB, tokenised in {tokenize_seconds:.1f} s, '
    f'read in {read_seconds:.1f} s'
  )
  assert peak_bytes < 300e6
  # Every page ends at a safe cut, so pages can be encoded one by one.
  store, start = open_store(location, tiny_tokenizer), 0
  for page in _pages():
    ids = tiny_tokenizer.encode(page)
    assert store.read(start, start + len(ids)).tolist() == ids
    start += len(ids)
  assert start == store.num_tokens
