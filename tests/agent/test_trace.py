"""The trace page and JSON: literal differences, escaping, bounded growth."""

import json
import time

import pytest

from memagent_jax.agent import trace

HEADER = {
  'document': 'novel.txt',
  'model': 'tiny',
  'questions': ['Who <b>wears</b> it?'],
  'config': {'chunk_tokens': 60, 'memory_tokens': 16},
  'tokens_read': 120,
  'chunks_read': 2,
  'seconds': 3.0,
  'date': '2026-01-01 10:00',
  'interrupted': False,
}


def _turn(index, memory, chunk='The Count wore a mask.', **changes):
  return {
    'question_index': 0,
    'chunk_index': index,
    'chunk': chunk,
    'chunk_tokens': 60,
    'memory': memory,
    'memory_ids': list(range(10)),
    'response_tokens': 11,
    'thought_tokens': 0,
    'finish_reason': 'eos',
    'seconds': 1.5,
  } | changes


def _answer(text='The King'):
  return {
    'question': 'Who?',
    'answer': text,
    'answer_ids': [1],
    'finish_reason': 'eos',
    'seconds': 1.0,
  }


def _page(tmp_path, turns, answers=(), **changes):
  path = tmp_path / 'page.html'
  trace.write_page(path, HEADER | changes, list(answers), turns)
  return path.read_text(encoding='utf-8')


def test_a_turn_shows_what_was_added_kept_and_dropped(tmp_path):
  turns = [_turn(0, 'a red mask'), _turn(1, 'a black mask was seen')]
  page = _page(tmp_path, turns, [_answer()])
  assert '<ins>a red mask</ins>' in page
  assert 'a <del>red</del> <ins>black</ins> mask <ins>was seen</ins>' in page
  assert '3 words added, 2 kept, 1 dropped' in page
  assert '<p class="answer">The King</p>' in page


def test_words_of_the_memory_are_marked_in_the_chunk(tmp_path):
  page = _page(tmp_path, [_turn(0, 'the count 7', chunk='A Count of 7 or 77')])
  assert 'A <mark>Count</mark> of <mark>7</mark> or 77' in page


def test_everything_is_escaped(tmp_path):
  bad = '<script>alert(1)</script>\x00<|im_end|>\ud800&'
  page = _page(tmp_path, [_turn(0, bad, chunk=bad)], [_answer(bad)], model=bad)
  assert '<script' not in page
  assert '&lt;script&gt;' in page
  assert 'Who &lt;b&gt;wears' in page
  assert '\x00' not in page
  assert 'http' not in page.replace('http-equiv', '')


def test_a_cut_memory_and_an_interrupted_reading_are_said(tmp_path):
  turns = [_turn(0, 'x', finish_reason='length', thought_tokens=3)]
  page = _page(tmp_path, turns, interrupted=True)
  assert 'cut at the cap' in page
  assert '3 thinking tokens dropped' in page
  assert 'The reading was interrupted.' in page
  assert '<rect class="cut"' in page


def test_a_long_reading_keeps_both_ends_and_every_change(tmp_path):
  """10,000 turns; between the two ends, three change the memory."""
  changes = {0: 'one', 3000: 'two', 3001: 'three', 7000: 'four'}
  memory, turns = '', []
  for i in range(10_000):
    memory = changes.get(i, memory)
    turns.append(_turn(i, memory))
  start = time.perf_counter()
  page = _page(tmp_path, turns)
  assert time.perf_counter() - start < 5
  assert page.count('<article>') == 200 + 3 + 200
  assert '9,597 turns are not shown' in page
  assert '<h3>Chunk 3001</h3>' in page and '<h3>Chunk 10000</h3>' in page
  assert page.count('<rect') <= 240


def test_a_repetitive_memory_costs_little(tmp_path):
  one, two = 'was told to ' * 400, 'to was told ' * 400
  start = time.perf_counter()
  _page(tmp_path, [_turn(i, (one, two)[i % 2]) for i in range(20)])
  assert time.perf_counter() - start < 5


def test_log_survives_a_half_written_line(tmp_path):
  path = tmp_path / 'turns.jsonl'
  with trace.TurnLog(path) as log:
    log.append(_turn(0, 'a'))
    log.append(_turn(1, 'b'))
    assert len(list(trace.read_turns(path))) == 2
  with path.open('a') as f:
    f.write('{"question_index": 0, "chu')
  assert [t['memory'] for t in trace.read_turns(path)] == ['a', 'b']


@pytest.mark.parametrize('count', [0, 1, 3])
def test_json_is_one_valid_document(tmp_path, count):
  path = tmp_path / 'out' / 'reading.json'
  turns = [_turn(i, f'memory {i}') for i in range(count)]
  trace.write_json(path, HEADER, [_answer()], iter(turns))
  out = json.loads(path.read_text())
  assert out['turns'] == turns
  assert out['answers'] == [_answer()]
  assert out['document'] == 'novel.txt'
  assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path):
  path = tmp_path / 'reading.json'
  trace.write_json(path, HEADER, [], [])
  before = path.read_text()

  def broken():
    yield _turn(0, 'a')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    trace.write_json(path, HEADER, [], broken())
  assert path.read_text() == before
