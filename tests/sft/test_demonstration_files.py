"""Demonstrations from a file: what they become, and errors about a line."""

import json
from pathlib import Path

import pytest

from memagent_jax.io import assets
from memagent_jax.sft import demonstration_files
from memagent_jax.sft.skills import Demonstration
from tests.data.files import jsonl_files

_RIGHT = {
  'question': 'Who came?',
  'memory': 'none',
  'chunk': 'It rained. Ann came.',
  'response': ' Ann came.\n',
}


def _write(folder: Path, *records) -> Path:
  return jsonl_files.write(folder / 'turns.jsonl', _RIGHT, *records)


def _without(*names):
  record = {k: v for k, v in _RIGHT.items() if k not in names}
  return json.dumps(record).encode()


def test_records_become_demonstrations_as_they_are(tmp_path):
  path = _write(
    tmp_path,
    b'\xef\xbb\xbf',
    {'id': 'a'},
    b'',
    {'chunk': None, 'memory': '', 'question': ' é漢🙂'},
    _without('chunk'),
  )
  assert list(demonstration_files.read(path)) == [
    (2, Demonstration('Who came?', 'none', *list(_RIGHT.values())[2:])),
    (4, Demonstration(' é漢🙂', '', None, ' Ann came.\n')),
    (5, Demonstration('Who came?', 'none', None, ' Ann came.\n')),
  ]


@pytest.mark.parametrize(
  ('record', 'message'),
  [
    (_without('question'), 'question: got nothing; expected a text that'),
    ({'question': ' '}, "question: got ' '; expected a text that is not blank"),
    ({'memory': None}, "memory: got nothing; expected a text; the template's"),
    ({'memory': 7}, 'memory: got 7; expected a text'),
    ({'memory': '\ud800'}, "memory: got '\\ud800'; expected a text"),
    (
      {'chunk': ''},
      "chunk: got ''; expected a text that is not blank, or null",
    ),
    ({'chunk': ['a']}, "chunk: got ['a']; expected a text"),
    ({'response': '\n'}, "response: got '\\n'; expected a text that is not"),
    ({'id': 3}, 'id: got 3; expected a text that no other line has'),
    ({'id': 'turns/1'}, "id: got 'turns/1', which line 1 has too; expected"),
    (
      {'answer': 'Ann'},
      "'answer': got an unknown field; expected only question, memory, "
      'response, chunk, id.',
    ),
    (b'{"question": ', 'line: got not JSON: Expecting value at column 14'),
    (b'{"id": "a", "id": "b"}', "line: got the field 'id' twice; expected one"),
    (b'[1]', 'line: got [1]; expected one JSON object.'),
    (b'"\xff"', 'line: got byte 0xff at byte 2, not UTF-8'),
  ],
  ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_named(tmp_path, record, message):
  path = _write(tmp_path, {}, record, {})
  read = demonstration_files.read(path)
  assert next(read)[0] == 1
  with pytest.raises(ValueError) as e:
    next(read)
  assert str(e.value).startswith(f'{path}:2: {message}')
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('content', 'got'), [(None, 'no such file'), (b' \n\n', 'no line')]
)
def test_no_file_or_nothing_in_it(tmp_path, content, got):
  path = tmp_path / 'turns.jsonl'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ValueError) as e:
    list(demonstration_files.read(path))
  assert str(e.value).startswith(f'{path}: file: got {got}; expected ')


def test_a_line_above_the_limit_is_an_error(tmp_path):
  path = _write(tmp_path, {'chunk': 'Ann ' * 300})
  size = path.stat().st_size
  list(demonstration_files.read(path, max_line_bytes=size))
  with pytest.raises(ValueError, match=f'got {size:,} bytes; expected at most'):
    list(demonstration_files.read(path, max_line_bytes=size - 1))


def test_the_example_has_both_turns():
  path = assets.text('demonstrations_example')
  made = [demonstration for _, demonstration in demonstration_files.read(path)]
  assert len(made) == 6
  assert {d.chunk is None for d in made} == {True, False}
  for d in made:
    # Every response follows from what its turn shows.
    if d.chunk is None:
      assert d.response.removeprefix('\\boxed{').removesuffix('}') in d.memory
