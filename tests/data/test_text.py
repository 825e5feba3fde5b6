"""Documents as text: encodings, pipes, and errors about wrong ones."""

import gzip
import io

import pytest

from memagent_jax.data.text import head, read_pieces, text_bytes


def _read(path, **kwargs):
  return ''.join(read_pieces(path, **kwargs))


def test_long_file_with_characters_across_pieces(tmp_path):
  text = 'x' + 'é漢🙂' * 40_000  # 9-byte groups never align with the pieces
  path = tmp_path / 'a.txt'
  path.write_text(text, encoding='utf-8')
  assert _read(path) == text


def test_byte_order_mark_is_dropped(tmp_path):
  path = tmp_path / 'a.md'
  path.write_bytes(b'\xef\xbb\xbfhello')
  assert _read(path) == 'hello'


def test_a_stream_is_read_to_its_end():
  assert ''.join(read_pieces(io.BytesIO(b'from a pipe'))) == 'from a pipe'


@pytest.mark.parametrize('before', [5, 70_000])
def test_wrong_bytes_are_named_with_their_position(tmp_path, before):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'a' * before + b'\xe9t\xe9')
  with pytest.raises(ValueError, match=f'byte 0xe9 at position {before:,} is'):
    _read(path)
  assert _read(path, encoding='latin-1') == 'a' * before + 'été'


def test_a_character_cut_by_the_end_is_an_error(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'abc\xe6\xbc')
  with pytest.raises(ValueError, match='position 3'):
    _read(path)


def test_missing_file_and_unknown_encoding(tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    _read(tmp_path / 'none.txt')
  with pytest.raises(ValueError, match="encoding 'utf-9' is unknown"):
    _read(tmp_path / 'none.txt', encoding='utf-9')


def test_pdf_pages_are_text(tmp_path):
  pypdf = pytest.importorskip('pypdf', reason='extra [pdf] is not installed')
  path = tmp_path / 'a.pdf'
  writer = pypdf.PdfWriter()
  writer.add_blank_page(100, 100)
  writer.write(path)
  assert _read(path) == '\n\n'
  path.write_bytes(b'no pdf at all')
  with pytest.raises(ValueError, match='not a readable PDF'):
    _read(path)


def test_gzip_is_text_and_its_size_is_known(tmp_path):
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(gzip.compress(b'hello ' * 50_000))
  assert _read(path) == 'hello ' * 50_000
  assert text_bytes(path) == 300_000
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match='not a whole gzip file'):
    _read(path)


def test_head_cuts_at_the_character():
  assert list(head(['abc', 'def', 'ghi'], 5)) == ['abc', 'de']
  assert list(head(['abc', 'def'], 3)) == ['abc']
