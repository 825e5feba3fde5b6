"""Documents larger than memory: tokenised once, then read window by window.

    file -> read_pieces -> StreamEncoder -> zarr3 array of ids + tokens.json
         -> TokenStore -> windows

The array and its record lie side by side in one directory or bucket path. The
record is replaced in one step and only after the ids it counts are durable, so
a process may be killed at any moment: the next one continues from the record.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path
from urllib.parse import unquote

from absl import logging
import numpy as np
import tensorstore as ts

from memagent_jax.data import chunks, text
from memagent_jax.models.tokenizer import Tokenizer

_RECORD = b'tokens.json'
_ARRAY_METADATA = b'zarr.json'
_BUCKET_DRIVERS = {'gs': 'gcs', 's3': 's3'}
# Blocks are compressed to about 1.5 bytes an id; a flipped bit is an error.
_CODECS = (
  {'name': 'bytes', 'configuration': {'endian': 'little'}},
  {
    'name': 'blosc',
    'configuration': {
      'cname': 'zstd',
      'clevel': 3,
      'shuffle': 'shuffle',
      'typesize': 4,
      'blocksize': 0,
    },
  },
  {'name': 'crc32c'},
)
# Windows are smaller than blocks: without a cache each would refetch its block.
_READ_CACHE_BYTES = 1 << 24
# Tokenizers take about a quarter less time on parts of this size than on 64 KB.
_FEED_CHARACTERS = 1 << 13
_WARN_CHARACTERS = 100_000_000


@dataclasses.dataclass(frozen=True)
class TokenStore:
  """A tokenised document that is read in parts; `open_store` opens one."""

  location: str  # path or URL of the store
  num_tokens: int  # ids in the document
  num_characters: int  # characters in its text
  fingerprint: str  # `Tokenizer.fingerprint` of the tokenizer
  source: str  # file name of the document
  _array: ts.TensorStore = dataclasses.field(repr=False)

  def read(self, start: int, stop: int) -> np.ndarray:
    """The ids in [start, stop) as an int32 array.

    Raises:
      ValueError: the range is outside the document, or stored data are damaged.
    """
    if not 0 <= start <= stop <= self.num_tokens:
      raise ValueError(
        f'{self.location}: tokens {start} to {stop} were asked for; expected '
        f'0 <= start <= stop <= {self.num_tokens}, its number of tokens.'
      )
    return self._array[start:stop].read().result()

  def check_tokenizer(self, tokenizer: Tokenizer) -> None:
    """Refuses any tokenizer but the one that made the ids.

    Raises:
      ValueError: the tokenizer is another one; the message names both.
    """
    _check_tokenizer(self.location, self.fingerprint, tokenizer)

  def windows(self, size_tokens: int) -> Iterator[np.ndarray]:
    """The document in windows of `size_tokens`; the last one may be shorter.

    Raises:
      ValueError: the window is below one token.
    """
    if size_tokens < 1:
      raise ValueError(f'size_tokens is {size_tokens}; expected at least 1.')
    return (
      self.read(start, min(start + size_tokens, self.num_tokens))
      for start in range(0, self.num_tokens, size_tokens)
    )


@dataclasses.dataclass(frozen=True)
class _Record:
  """The content of tokens.json: which text is stored, and how far."""

  source: str  # file name
  source_bytes: int
  source_modified_ns: int
  encoding: str
  tokenizer: str  # fingerprint
  block_tokens: int
  characters: int = 0  # characters whose ids are stored
  text_sha256: str = hashlib.sha256().hexdigest()  # SHA-256 of them in UTF-8
  tokens: int = 0
  finished: bool = False


def store_spec(location: str | os.PathLike) -> dict:
  """The TensorStore spec of a store's array, without its metadata.

  Args:
    location: a local path, file:///path, gs://bucket/path or s3://bucket/path.

  Raises:
    ValueError: an unknown scheme, or a URL without bucket or path.
  """
  location = os.fspath(location)
  scheme, is_url, rest = location.partition('://')
  if not is_url:
    kvstore = {'driver': 'file', 'path': os.path.abspath(location)}
  elif scheme == 'file':
    path = unquote(rest.removeprefix('localhost'))
    if not path.strip('/') or not path.startswith('/'):
      raise ValueError(f'{location}: expected file:///absolute/path.')
    kvstore = {'driver': 'file', 'path': path}
  elif scheme in _BUCKET_DRIVERS:
    bucket, _, path = rest.partition('/')
    if not bucket or not path.strip('/'):
      raise ValueError(f'{location}: expected {scheme}://bucket/path.')
    kvstore = {
      'driver': _BUCKET_DRIVERS[scheme],
      'bucket': bucket,
      'path': path,
    }
  else:
    raise ValueError(
      f'{location}: scheme {scheme!r} is unknown; expected a local path, '
      'file://, gs:// or s3://.'
    )
  kvstore['path'] = kvstore['path'].rstrip('/') + '/'
  return {'driver': 'zarr3', 'kvstore': kvstore}


def open_store(
  location: str | os.PathLike, tokenizer: Tokenizer | None = None
) -> TokenStore:
  """The finished store at `location`.

  Args:
    location: as in `store_spec`.
    tokenizer: the tokenizer that must have made the ids; None: any.

  Raises:
    ValueError: the store is missing, unfinished, or another tokenizer's.
  """
  location = os.fspath(location)
  record = _read_record(location)
  if record is None:
    raise ValueError(
      f'{location}: no token store; make one with tokenize_to_store.'
    )
  if not record.finished:
    raise ValueError(
      f'{location}: the token store of {record.source} is unfinished '
      f'({record.tokens:,} tokens so far); repeat the command that makes it.'
    )
  if tokenizer is not None:
    _check_tokenizer(location, record.tokenizer, tokenizer)
  array = ts.open(
    store_spec(location)
    | {'recheck_cached_data': 'open', 'fill_missing_data_reads': False},
    read=True,
    context=ts.Context(
      {'cache_pool': {'total_bytes_limit': _READ_CACHE_BYTES}}
    ),
  ).result()
  if array.shape != (record.tokens,):
    raise ValueError(
      f'{location}: the array has shape {array.shape}, its record says '
      f'({record.tokens},); remove the store and tokenise again.'
    )
  return TokenStore(
    location,
    record.tokens,
    record.characters,
    record.tokenizer,
    record.source,
    array,
  )


def tokenize_to_store(
  source: str | os.PathLike,
  location: str | os.PathLike,
  tokenizer: Tokenizer,
  *,
  encoding: str = 'utf-8',
  block_tokens: int = 1 << 16,
  commit_tokens: int = 1 << 20,
) -> TokenStore:
  """A store of the document's ids, the same as encoding its whole text at once.

  Repeated after a kill, it rereads the text up to the last commit, which must
  be unchanged, and encodes the rest. On a finished store it returns at once if
  the document has the same size and date; if only the date differs, it compares
  the text.

  Args:
    source: path of a document that `text.read_pieces` accepts; no pipe, which
      could not be read again.
    location: as in `store_spec`.
    tokenizer: the tokenizer of the model that reads.
    encoding: encoding of the document's bytes.
    block_tokens: ids per stored object; a store keeps the size it was created
      with.
    commit_tokens: ids between two commits, which make progress durable.

  Raises:
    ValueError: an unreadable document, something else at the location, a store
      of another document or tokenizer, or a size below one token.
  """
  sizes = {'block_tokens': block_tokens, 'commit_tokens': commit_tokens}
  for name, tokens in sizes.items():
    if tokens < 1:
      raise ValueError(f'{name} is {tokens}; expected at least 1.')
  location = os.fspath(location)
  fresh = _first_record(Path(source), encoding, tokenizer, block_tokens)
  stored = _read_record(location)
  if stored is None:
    # A store's record is written before its array: an array alone is not ours.
    if _has_array(location):
      raise ValueError(
        f'{location}: holds an array that is no token store; choose another '
        'location.'
      )
    _write_record(location, fresh)
    record = fresh
  else:
    record = _resumed(location, stored, fresh, tokenizer)
    if record.finished and record == stored:
      return open_store(location)
  pieces = text.read_pieces(source, encoding)
  digest = hashlib.sha256()
  rest = _skip(pieces, record.characters, digest)
  if digest.hexdigest() != record.text_sha256 or (
    record.finished and (rest or next(pieces, ''))
  ):
    raise _changed(location, record, 'a different text')
  if record.finished:
    _write_record(location, record)
  else:
    stretches = _encoded(itertools.chain([rest], pieces), tokenizer)
    _append(location, record, _batches(stretches, commit_tokens), digest)
  return open_store(location)


def _first_record(
  source: Path, encoding: str, tokenizer: Tokenizer, block_tokens: int
) -> _Record:
  """The record of a document with nothing stored yet."""
  if not source.is_file():
    raise ValueError(f'document {source}: no such file.')
  stat = source.stat()
  return _Record(
    source.name,
    stat.st_size,
    stat.st_mtime_ns,
    encoding,
    tokenizer.fingerprint,
    block_tokens,
  )


def _resumed(
  location: str, stored: _Record, fresh: _Record, tokenizer: Tokenizer
) -> _Record:
  """The stored progress, with the source's current name, date and encoding."""
  _check_tokenizer(location, stored.tokenizer, tokenizer)
  if stored.source_bytes != fresh.source_bytes:
    raise _changed(location, stored, f'{fresh.source_bytes:,} bytes')
  return dataclasses.replace(
    stored,
    source=fresh.source,
    source_modified_ns=fresh.source_modified_ns,
    encoding=fresh.encoding,
  )


def _skip(
  pieces: Iterator[str], characters: int, digest: 'hashlib._Hash'
) -> str:
  """Skips the first `characters`; returns the rest of the piece they end in.

  The skipped characters are added to `digest`.
  """
  rest = ''
  while characters and (piece := next(pieces, '')):
    digest.update(piece[:characters].encode())
    rest = piece[characters:]
    characters -= len(piece) - len(rest)
  return rest


def _encoded(
  pieces: Iterable[str], tokenizer: Tokenizer
) -> Iterator[tuple[str, list[int]]]:
  """Stretches of the text with their ids, which join to those of the whole."""
  encoder = chunks.StreamEncoder(tokenizer)
  waiting, warned = [], False
  for piece in pieces:
    for start in range(0, len(piece), _FEED_CHARACTERS):
      waiting.append(piece[start : start + _FEED_CHARACTERS])
      ids = encoder.feed(waiting[-1])
      if ids:
        text = ''.join(waiting)
        settled = len(text) - encoder.tail_characters
        yield text[:settled], ids
        waiting = [text[settled:]]
      if encoder.tail_characters > _WARN_CHARACTERS and not warned:
        warned = True
        logging.warning(
          '%s characters without a place where this tokenizer lets text be '
          'cut: they are encoded at once, with about 300 bytes of memory a '
          'token.',
          f'{encoder.tail_characters:,}',
        )
  if encoder.tail_characters:
    yield encoder.tail, encoder.finish()


def _batches(
  stretches: Iterable[tuple[str, list[int]]], batch_tokens: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Joins stretches to at least `batch_tokens` ids; the last may have fewer."""
  texts, parts, tokens = [], [], 0
  for stretch, ids in stretches:
    texts.append(stretch)
    parts.append(np.asarray(ids, np.int32))
    tokens += len(ids)
    if tokens >= batch_tokens:
      yield ''.join(texts), np.concatenate(parts)
      texts, parts, tokens = [], [], 0
  if texts:
    yield ''.join(texts), np.concatenate(parts)


def _append(
  location: str,
  record: _Record,
  batches: Iterable[tuple[str, np.ndarray]],
  digest: 'hashlib._Hash',
) -> None:
  """Writes all that follows `record`; `digest` is that of its text so far."""
  array = _open_for_writing(location, record)
  for stretch, ids in batches:
    stop = record.tokens + len(ids)
    # What a killed process wrote beyond its record is cut off or overwritten.
    array = array.resize(exclusive_max=[stop]).result()
    array[record.tokens : stop].write(ids).result()
    digest.update(stretch.encode())
    record = dataclasses.replace(
      record,
      characters=record.characters + len(stretch),
      text_sha256=digest.hexdigest(),
      tokens=stop,
    )
    _write_record(location, record)
    logging.log_every_n_seconds(
      logging.INFO,
      '%s: %s tokens of %s characters so far.',
      10,
      location,
      f'{record.tokens:,}',
      f'{record.characters:,}',
    )
  _write_record(location, dataclasses.replace(record, finished=True))


def _open_for_writing(location: str, record: _Record) -> ts.TensorStore:
  """The array as written so far; a new one if nothing was written yet."""
  spec = store_spec(location)
  # Ids that are recorded but gone are an error, not a reason for a new array.
  if record.tokens or _has_array(location):
    return ts.open(spec).result()
  metadata = {
    'shape': [0],
    'data_type': 'int32',
    # Never an id: so every block is stored, and a missing one is noticed.
    'fill_value': -1,
    'codecs': list(_CODECS),
    'chunk_grid': {
      'name': 'regular',
      'configuration': {'chunk_shape': [record.block_tokens]},
    },
  }
  return ts.open(spec | {'metadata': metadata}, create=True).result()


def _has_array(location: str) -> bool:
  result = _open_kvstore(location).read(_ARRAY_METADATA).result()
  return result.state == 'value'


def _open_kvstore(location: str) -> ts.KvStore:
  return ts.KvStore.open(store_spec(location)['kvstore']).result()


def _read_record(location: str) -> _Record | None:
  result = _open_kvstore(location).read(_RECORD).result()
  if result.state == 'missing':
    return None
  try:
    return _Record(**json.loads(result.value))
  except (TypeError, ValueError) as e:
    raise ValueError(
      f'{location}: its {_RECORD.decode()} is no record of a token store '
      f'({e}); choose another location.'
    ) from e


def _write_record(location: str, record: _Record) -> None:
  value = json.dumps(dataclasses.asdict(record), indent=2) + '\n'
  _open_kvstore(location).write(_RECORD, value.encode()).result()


def _check_tokenizer(
  location: str, fingerprint: str, tokenizer: Tokenizer
) -> None:
  if fingerprint != tokenizer.fingerprint:
    raise ValueError(
      f'{location}: its ids are of tokenizer {fingerprint}, this one is '
      f'{tokenizer.fingerprint}; use the same model, or another location.'
    )


def _changed(location: str, stored: _Record, now: str) -> ValueError:
  return ValueError(
    f'{location}: made from {stored.source} of {stored.source_bytes:,} bytes; '
    f'the document now has {now}. Choose another location, or remove the '
    'store to tokenise again.'
  )
