"""`Reader`: feeding in pieces of any size, early answers, state and resume."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest

from memagent_jax import Reader, ReadingConfig
from memagent_jax.agent import prompts
from memagent_jax.agent.session import Session
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.model import Model

CONFIG = ReadingConfig(
  chunk_tokens=40, memory_tokens=16, answer_tokens=8, temperature=1.0, seed=3
)
TEXT = (
  'The mask was black. It was worn by the King of Bohemia, who came alone. '
  'Nobody else saw him that night, and nobody else was told of it.\n\n'
) * 6


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  config = ModelConfig(
    'qwen3', 269, 16, 1, 2, 1, 8, 24, 1024, 1e-5, RopeConfig(), qk_norm=True
  )
  params = transformer.init_params(config, jax.random.key(0))
  return Model('tiny', config, params, tiny_tokenizer)


def _turns(reader, pieces):
  turns = []
  for piece in pieces:
    turns += reader.feed(piece)
  turns += reader.finish()
  return [dataclasses.replace(t, seconds=0.0) for t in turns]


@pytest.mark.slow
def test_pieces_do_not_matter(model):
  whole = _turns(Reader(model, 'Who?', CONFIG), [TEXT])
  pieces = [TEXT[i : i + 37] for i in range(0, len(TEXT), 37)]
  assert _turns(Reader(model, 'Who?', CONFIG), pieces) == whole
  assert ''.join(turn.chunk for turn in whole) == TEXT
  assert [turn.chunk_index for turn in whole] == list(range(len(whole)))
  assert len(whole) > 10


def test_answering_disturbs_nothing_and_reads_the_tail(model):
  plain, asked = Reader(model, 'Who?', CONFIG), Reader(model, 'Who?', CONFIG)
  for start in range(0, len(TEXT), 100):
    plain.feed(TEXT[start : start + 100])
    asked.feed(TEXT[start : start + 100])
    early = asked.answer()[0]
  assert plain.memories == asked.memories
  # Now the tail is read for good; the early answer had already seen it.
  asked.finish()
  assert asked.answer()[0].answer_ids == early.answer_ids


@pytest.mark.slow
def test_several_questions_share_the_pass(model):
  """Each question's samples equal those of asking it alone."""
  both = Reader(model, ['Who?', 'Where was it?'], CONFIG)
  turns = _turns(both, [TEXT])
  alone = Reader(model, 'Where was it?', CONFIG)
  expected = [t.memory_ids for t in _turns(alone, [TEXT])]
  assert [t.memory_ids for t in turns if t.question_index == 1] == expected
  assert [a.question for a in both.answer()] == ['Who?', 'Where was it?']


def test_state_goes_on_exactly(model):
  whole = Reader(model, 'Who?', CONFIG)
  expected = _turns(whole, [TEXT])
  first = Reader(model, 'Who?', CONFIG)
  done = first.feed(TEXT[:500])
  state = json.loads(json.dumps(first.state()))
  second = Reader.from_state(model, state)
  assert json.loads(json.dumps(second.state())) == state
  assert first.memories != [prompts.DEFAULT_TEMPLATE.empty_memory]
  rest = _turns(second, [TEXT[500:]])
  assert rest == expected[len(done) :]
  assert second.tokens_read == whole.tokens_read
  assert second.answer()[0].answer_ids == whole.answer()[0].answer_ids
  assert len(json.dumps(state)) < 8192


class InterruptedSession(Session):
  """A session in which Ctrl-C is pressed once, in the fourth turn."""

  pressed = False

  def read(self, chunks):
    if self.turns_read == 3 and not self.pressed:
      self.pressed = True
      raise KeyboardInterrupt
    return super().read(chunks)


class InterruptedEngine:
  def open(self, *args, **kwargs):
    return InterruptedSession(*args, **kwargs)


def test_an_interrupted_turn_loses_no_text(model):
  reader = Reader(model, 'Who?', CONFIG, engine=InterruptedEngine())
  turns = []
  reader.on_turn = turns.append
  with pytest.raises(KeyboardInterrupt):
    reader.feed(TEXT)
  reader.finish()
  assert ''.join(turn.chunk for turn in turns) == TEXT


def test_a_document_shorter_than_a_chunk(model):
  reader = Reader(model, 'Who?', CONFIG)
  assert reader.feed('The King.') == []
  assert [t.chunk for t in reader.finish()] == ['The King.']
  assert len(reader.answer()) == 1


def test_an_unread_document_is_answered_from_the_empty_memory(model):
  reader = Reader(model, 'Who?', CONFIG)
  assert reader.finish() == []
  assert reader.memories == [prompts.DEFAULT_TEMPLATE.empty_memory]
  assert len(reader.answer()) == 1


def test_greedy_is_the_default_and_repeats(model):
  config = dataclasses.replace(CONFIG, temperature=0.0)
  one = _turns(Reader(model, 'Who?', config), [TEXT])
  assert _turns(Reader(model, 'Who?', config), [TEXT]) == one


@pytest.mark.parametrize(
  ('questions', 'changes', 'message'),
  [
    ([], {}, 'no question'),
    (['  '], {}, 'is blank'),
    (
      ['why ' * 50],
      {'question_tokens': 64},
      r'the cap, question_tokens, is 64',
    ),
    (['Who?'], {'chunk_tokens': 2000}, 'the model sees 1024'),
    (['Who?'], {'chunk_cut': 'page'}, "chunk_cut is 'page'"),
    (['Who?'], {'temperature': -1.0}, 'temperature is -1'),
  ],
)
def test_bad_readings_are_refused(model, questions, changes, message):
  with pytest.raises(ValueError, match=message):
    Reader(model, questions, dataclasses.replace(CONFIG, **changes))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'version': 99}, 'version 99; expected 3'),
    ({'tokenizer': 'other'}, 'was taken with tokenizer other'),
    ({'session': None}, 'damaged'),
  ],
)
def test_a_foreign_state_is_refused(model, change, message):
  state = Reader(model, 'Who?', CONFIG).state() | change
  with pytest.raises(ValueError, match=message):
    Reader.from_state(model, state)


def test_importing_the_package_is_light():
  code = (
    'import sys, memagent_jax\n'
    'heavy = {"tensorflow", "seqio", "transformers", "torch", "jax"}\n'
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
    'memagent_jax.Reader\n'
    'heavy.discard("jax")\n'
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
