"""Lines and array elements: those that `json` finds, at any cut of the text."""

import itertools
import json
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from memagent_jax.data.files import json_records

_SCALARS = (
  st.none()
  | st.booleans()
  | st.integers()
  | st.text()
  | st.text(alphabet='"\\{}[],: \n\u2028é🙂')
)
_VALUES = st.recursive(
  _SCALARS,
  lambda inner: (
    st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=3), inner, max_size=4)
  ),
  max_leaves=12,
)


def _cut(text, cuts):
  bounds = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
  return [text[a:b] for a, b in itertools.pairwise(bounds)]


def _elements(pieces):
  return [json_records.parse(e) for e in json_records.split_array(pieces)]


@given(
  st.lists(_VALUES, max_size=5),
  st.lists(st.integers(0, 10**6)),
  st.sampled_from([None, 0, 4]),
  st.booleans(),
)
@settings(max_examples=300)
def test_elements_of_an_array_cut_anywhere(records, cuts, indent, ensure_ascii):
  text = json.dumps(records, indent=indent, ensure_ascii=ensure_ascii)
  assert _elements(_cut(text, cuts)) == records
  assert _elements(text) == records  # one character at a time


@given(st.text(alphabet='[]{},:"\\ \n1a', max_size=12))
@settings(max_examples=1500)
def test_what_is_no_array_is_refused_as_json_refuses_it(text):
  try:
    expected = json.loads(text, object_pairs_hook=json_records._unique)
  except ValueError:
    expected = None
  if not isinstance(expected, list):
    with pytest.raises(ValueError):
      _elements(text)
  else:
    assert _elements(text) == expected


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'no array'),
    ('{"a": 1}', "'{' where an array should start"),
    ('[1] [2]', "'[' after the array"),
    ('[{"a": "]"}', 'the end of the file'),
    ('[1, 2}', "'}' where the array should go on or end"),
    ('[1,]', 'not JSON: Expecting value at column 1'),
    ('[{"a": 1, "a": 2}]', "the field 'a' twice"),
    ('[{"a": 01}]', 'column 8'),
  ],
)
def test_messages_of_wrong_arrays(text, message):
  with pytest.raises(ValueError) as e:
    _elements([text])
  assert message in str(e.value)


def test_a_record_above_the_limit_is_refused_before_it_is_read():
  def pieces():
    yield '["'
    for _ in range(100):
      yield 'x' * 1000
    raise AssertionError('read on past the limit')

  with pytest.raises(ValueError, match='more than 5,000 characters'):
    list(json_records.split_array(pieces(), max_characters=5000))


@pytest.mark.parametrize('body', ['\\n', '\\\\', '{[', '\\"'])
def test_splitting_is_linear_in_the_text(body):
  """16 times the text takes about 16 times the time; re-scanning takes 256."""

  def seconds(repeats):
    text = '[{"a":"' + body * repeats + '"},"' + body * repeats + '"]'
    pieces = _cut(text, range(0, len(text), 4096))
    best = float('inf')
    for _ in range(3):
      start = time.process_time()
      assert sum(1 for _ in json_records.split_array(pieces)) == 2
      best = min(best, time.process_time() - start)
    return best

  assert seconds(1_600_000) < 64 * seconds(100_000)


def test_nesting_without_end_is_an_error_not_a_crash():
  with pytest.raises(ValueError, match='nested too deeply'):
    json_records.parse('[' * 200_000)
  with pytest.raises(ValueError, match='the end of the file'):
    _elements(['[' * 200_000])


def test_lines_have_their_number_and_size(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{}\r\n\n  \n"\xc3\xa9"\n1234567\n[]')
  assert list(json_records.read_lines(path, max_line_bytes=7)) == [
    (1, 7, b'{}\r'),
    (4, 5, b'"\xc3\xa9"'),
    (5, 8, b''),
    (6, 2, b'[]'),
  ]


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b'\n', b''))))
def test_lines_are_those_of_the_bytes(tmp_path_factory, lines):
  path = tmp_path_factory.mktemp('lines') / 'a.jsonl'
  path.write_bytes(b''.join(line + b'\n' for line in lines))
  got = [
    (number, bytes(line)) for number, _, line in json_records.read_lines(path)
  ]
  if lines:
    lines[0] = lines[0].removeprefix(b'\xef\xbb\xbf')
  assert got == [
    (number, line)
    for number, line in enumerate(lines, 1)
    if line and not line.isspace()
  ]


def test_long_lines_come_whole_across_pieces(tmp_path):
  path = tmp_path / 'a.jsonl'
  line = b'"' + b'x' * 3_000_000 + b'"'
  path.write_bytes(line + b'\n' + line)
  assert [bytes(raw) for _, _, raw in json_records.read_lines(path)] == [
    line
  ] * 2
  # Nothing remains of what was read before the limit was reached.
  assert list(json_records.read_lines(path, max_line_bytes=2_000_000)) == [
    (1, len(line) + 1, b''),
    (2, len(line), b''),
  ]


def test_a_line_that_is_not_utf8_names_the_byte():
  with pytest.raises(ValueError, match=r'byte 0xe9 at byte 5, not UTF-8'):
    json_records.parse_line(b'"caf\xe9"')
  # Columns are characters: the 1 is the eleventh, but the fifteenth byte.
  with pytest.raises(ValueError, match=r'not JSON: .* at column 11'):
    json_records.parse_line('{"é": "🙂" 1}'.encode())
