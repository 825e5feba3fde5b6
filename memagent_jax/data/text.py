"""Documents as text, piece by piece: plain text, Markdown, PDF, or a pipe."""

import codecs
from collections.abc import Iterable, Iterator
import gzip
import os
from pathlib import Path
from typing import BinaryIO

_PIECE_BYTES = 1 << 16


def read_pieces(
  source: str | os.PathLike | BinaryIO, encoding: str = 'utf-8'
) -> Iterator[str]:
  """The text of a file or a binary stream, in pieces of at most 64 KB.

  A byte-order mark is dropped. A `.gz` file is decompressed; a `.pdf` file
  yields the text of its pages.

  Args:
    source: a path, or a stream that is read to its end.
    encoding: encoding of the bytes, as Python names it.

  Raises:
    ValueError: no such file, an unknown encoding, bytes that are invalid in it
      (with their position), or a PDF without the extra [pdf].
  """
  try:
    decoder = codecs.getincrementaldecoder(encoding)()
  except LookupError:
    raise ValueError(
      f'encoding {encoding!r} is unknown; try utf-8, utf-16 or latin-1.'
    ) from None
  if isinstance(source, (str, os.PathLike)):
    path = Path(source)
    if not path.is_file():
      raise ValueError(f'document {path}: no such file.')
    if path.suffix.lower() == '.pdf':
      yield from _pdf_pages(path)
      return
    zipped = path.suffix.lower() == '.gz'
    with gzip.open(path) if zipped else path.open('rb') as stream:
      try:
        yield from _decoded(stream, decoder, str(path), encoding)
      except (gzip.BadGzipFile, EOFError) as e:
        raise ValueError(f'document {path}: not a whole gzip file: {e}') from e
  else:
    yield from _decoded(source, decoder, 'standard input', encoding)


def head(pieces: Iterable[str], characters: int) -> Iterator[str]:
  """The first `characters` of the text."""
  for piece in pieces:
    yield piece[:characters]
    characters -= len(piece)
    if characters <= 0:
      return


def text_bytes(path: str | os.PathLike) -> int:
  """Bytes of a file's text; for a `.gz` file, uncompressed (modulo 4 GiB)."""
  path = Path(path)
  if path.suffix.lower() != '.gz':
    return path.stat().st_size
  with path.open('rb') as stream:
    # A gzip file ends with the size of its content.
    stream.seek(-4, os.SEEK_END)
    return int.from_bytes(stream.read(4), 'little')


def _decoded(
  stream: BinaryIO | gzip.GzipFile,
  decoder: codecs.IncrementalDecoder,
  name: str,
  encoding: str,
) -> Iterator[str]:
  start, first = 0, True
  while True:
    # read1 returns what a pipe has so far; read would wait for a whole piece.
    piece = getattr(stream, 'read1', stream.read)(_PIECE_BYTES)
    pending = len(decoder.getstate()[0])
    try:
      text = decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as e:
      at = start - pending + e.start
      bad = e.object[e.start : e.start + 1].hex()
      raise ValueError(
        f'{name}: byte 0x{bad} at position {at:,} is not {encoding} '
        f'({e.reason}). Say --encoding=latin-1, or whatever it is in.'
      ) from None
    if first and text:
      text, first = text.removeprefix('\ufeff'), False
    if text:
      yield text
    if not piece:
      return
    start += len(piece)


def _pdf_pages(path: Path) -> Iterator[str]:
  try:
    import pypdf
  except ImportError:
    raise ValueError(
      f"{path}: reading PDF needs pypdf; pip install 'memagent_jax[pdf]'."
    ) from None
  try:
    pages = pypdf.PdfReader(path).pages
    for page in pages:
      yield page.extract_text() + '\n\n'
  except pypdf.errors.PyPdfError as e:
    raise ValueError(f'{path}: not a readable PDF: {e}') from e
