"""Records of a JSON file one at a time: its lines, or its array's elements.

    bytes -> read_lines  -> parse_line -> record_files, checked_records, filters
    text  -> split_array -> parse      -> record_files

Time is linear in the file's size; memory holds one record.
"""

from collections.abc import Iterable, Iterator
import json
import os
from pathlib import Path
import re
import reprlib
from typing import Any

MAX_RECORD_BYTES = 256 * 2**20
_PIECE_BYTES = 1 << 20
_BYTE_ORDER_MARK = b'\xef\xbb\xbf'
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60
_BRIEF.maxlist = _BRIEF.maxdict = 3

# What may be skipped at once: blanks outside the array, an element up to the
# next mark, what is nested in it, and the inside of a string with its escapes.
# The possessive `*+` never backtracks, so no text makes them slow.
_BLANK = re.compile(r'[ \t\r\n]*+')
_ELEMENT = re.compile(r'[^"\[\]{},]*+')
_NESTED = re.compile(r'[^"\[\]{}]*+')
_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


def read_lines(
  path: str | os.PathLike, max_line_bytes: int = MAX_RECORD_BYTES
) -> Iterator[tuple[int, int, bytearray]]:
  """Number (from 1), size in bytes and content of every line that is not blank.

  The size includes the line end, the content does not. A line longer than
  `max_line_bytes` comes with its size and empty content. A byte-order mark is
  dropped.
  """
  with Path(path).open('rb') as stream:
    number = 0
    while piece := stream.readline(_PIECE_BYTES):
      number += 1
      size, line = 0, bytearray()
      while piece:
        size += len(piece)
        if size <= max_line_bytes:
          line += piece
        else:
          line.clear()
        piece = b'' if piece[-1:] == b'\n' else stream.readline(_PIECE_BYTES)
      if line.endswith(b'\n'):
        del line[-1]
      if number == 1 and line.startswith(_BYTE_ORDER_MARK):
        del line[: len(_BYTE_ORDER_MARK)]
      if size > max_line_bytes or (line and not line.isspace()):
        yield number, size, line


def parse_line(line: bytes | bytearray) -> Any:
  """The value of one line of JSON.

  Raises:
    ValueError: the line is not UTF-8 (the byte is named), or as in `parse`.
  """
  try:
    text = line.decode()
  except UnicodeDecodeError as e:
    raise ValueError(
      f'byte 0x{line[e.start]:02x} at byte {e.start + 1:,}, not UTF-8 '
      f'({e.reason})'
    ) from None
  return parse(text)


def parse(text: str) -> object:
  """The value of a JSON text.

  Raises:
    ValueError: `text` is not JSON (line and column are named), has a name twice
      in one object, or is nested too deeply.
  """
  try:
    return json.loads(text, object_pairs_hook=_unique)
  except json.JSONDecodeError as e:
    line = f'line {e.lineno:,}, ' if e.lineno > 1 else ''
    raise ValueError(f'not JSON: {e.msg} at {line}column {e.colno:,}') from None
  except RecursionError:
    raise ValueError('JSON that is nested too deeply') from None


def split_array(
  pieces: Iterable[str], max_characters: int = MAX_RECORD_BYTES
) -> Iterator[str]:
  """The text of each element of the one JSON array that `pieces` make up.

  Elements are found by brackets, commas and quotes alone; `parse` checks each.
  An array is valid JSON if and only if neither this nor `parse` raises.

  Raises:
    ValueError: there is no array, it does not end, text follows it, or an
      element exceeds `max_characters`.
  """
  parts: list[str] = []
  size = depth = elements = 0
  quoted = ended = False
  rest = ''
  for piece in pieces:
    piece, rest = rest + piece, ''
    start = at = 0
    while True:
      skipped = _skip(depth, quoted).match(piece, at)
      assert skipped is not None  # skipping nothing is a match, too
      at = skipped.end()
      if at == len(piece):
        break
      mark = piece[at]
      if quoted and mark == '\\':
        rest = mark  # the escaped character comes with the next piece
        break
      at += 1
      if mark == '"' and depth:
        quoted = not quoted
      elif depth == 0:
        if mark != '[' or ended:
          where = 'after the array' if ended else 'where an array should start'
          raise ValueError(f'{mark!r} {where}')
        depth, start = 1, at
      elif mark in '[{':
        depth += 1
      else:
        depth -= mark in ']}'
        if depth == 0 or mark == ',':
          element = ''.join([*parts, piece[start : at - 1]])
          ended = depth == 0
          _check_size(len(element), max_characters)
          if mark == '}':
            raise ValueError("'}' where the array should go on or end")
          if not ended or elements or not _BLANK.fullmatch(element):
            yield element
          elements += 1
          parts, size, start = [], 0, at
    if depth:
      parts.append(piece[start:at])
      size += at - start
      _check_size(size, max_characters)
  if not ended:
    raise ValueError('the end of the file' if depth else 'no array')


def brief(value: object) -> str:
  """A value as messages show it, shortened."""
  return 'nothing' if value is None else _BRIEF.repr(value)


def _skip(depth: int, quoted: bool) -> re.Pattern:
  if quoted:
    return _STRING
  return (_BLANK, _ELEMENT)[depth] if depth < 2 else _NESTED


def _check_size(characters: int, max_characters: int) -> None:
  if characters > max_characters:
    raise ValueError(f'a record of more than {max_characters:,} characters')


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
  names: dict[str, object] = {}
  for name, value in pairs:
    if name in names:
      raise ValueError(f'the field {name[:60]!r} twice')
    names[name] = value
  return names
