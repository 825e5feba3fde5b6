"""Demonstrations: the turn and response of each skill."""

import re

import pytest

from memagent_jax.data.benchmarks import haystack
from memagent_jax.data.examples import seeded
from memagent_jax.sft import skills
from memagent_jax.sft.skills import SkillConfig

FILLERS = (haystack.noise(),)


def many(config, count=200):
  rng = seeded('test')
  return [skills.demonstrate(config, FILLERS, rng) for _ in range(count)]


def key_of(made):
  return re.search(r'for (\S+) mentioned', made.question).group(1)


def only(skill, **kwargs):
  return SkillConfig(shares=((skill, 1.0),), **kwargs)


def test_extract_notes_the_record_that_was_asked_for():
  made = many(only('extract', absent_share=0.3))
  absent = [m for m in made if m.response == ' none']
  assert 40 <= len(absent) <= 80
  for m in made:
    key = key_of(m)
    assert m.memory == 'none'
    found = re.findall(rf'for {key} is: (\S+)\.(?= |$)', m.chunk)
    if m.response == ' none':
      assert not found
    else:
      assert m.response == f' {key} is: {found[0]}.' and len(found) == 1


def test_several_keys_are_noted_in_the_order_of_the_question():
  made = many(only('extract', max_keys=4, absent_share=0.0, uuid_share=0.0))
  counts = set()
  for m in made:
    names = re.search(r'for (.+) mentioned', m.question).group(1)
    keys = re.findall(r'[^\s,]+-[^\s,]+', names)
    counts.add(len(keys))
    assert m.response == ''.join(
      f' {key} is: {value}.'
      for key in keys
      for value in re.findall(rf'for {key} is: (\d+)\.', m.chunk)
    )
    assert m.response.count(' is: ') == len(keys)
  assert counts == {1, 2, 3, 4}


def test_distractors_share_words_of_the_key():
  made = many(only('extract', near_miss_share=1.0, absent_share=0.0))
  near = 0
  for m in made:
    key = key_of(m)
    others = set(re.findall(r'for (\S+) is:', m.chunk)) - {key}
    for other in others:
      assert set(other.split('-')) & set(key.split('-'))
      near += 1
  assert near > 200


def test_answer_boxes_the_value_of_the_memory():
  for m in many(only('answer', absent_share=0.2)):
    assert m.chunk is None
    if m.memory == 'none':
      assert m.response == r' \boxed{ none}'
    else:
      value = re.fullmatch(rf' {key_of(m)} is: (\S+)\.', m.memory).group(1)
      assert m.response == f' \\boxed{{ {value}}}'


def test_read_answers_from_a_text_in_the_memory_s_place():
  made = many(only('read', max_keys=3, absent_share=0.2, uuid_share=0.0))
  for m in made:
    assert m.chunk is None and not m.memory.startswith(' ')
    names = re.search(r'for (.+) mentioned', m.question).group(1)
    found = [
      (key, value)
      for key in re.findall(r'[^\s,]+-[^\s,]+', names)
      for value in re.findall(rf'for {key} is: (\d+)\.', m.memory)
    ]
    notes = ''.join(f' {key} is: {value}.' for key, value in found) or ' none'
    values = ', '.join(value for _, value in found) or 'none'
    assert m.response == f'{notes} \\boxed{{ {values}}}'
  assert 20 <= sum(m.response == r' none \boxed{ none}' for m in made) <= 60


def test_keep_holds_a_memory_over_a_chunk_without_the_needle():
  for m in many(only('keep'), 50):
    assert m.response == m.memory and key_of(m) in m.memory
    assert key_of(m) not in m.chunk


def test_what_a_skill_needs_is_all_it_sees():
  """An answer has no chunk, a first reading no memory; keeping has both."""
  made = many(SkillConfig(shares=(('extract', 1), ('answer', 1), ('keep', 2))))
  answers = [m for m in made if m.chunk is None]
  first = [m for m in made if m.chunk is not None and m.memory == 'none']
  keeping = [m for m in made if m.chunk is not None and m.memory != 'none']
  assert len(answers) + len(first) + len(keeping) == 200
  assert 30 <= len(answers) <= 70 and 30 <= len(first) <= 70
  assert all(m.response == m.memory for m in keeping)


def test_chunks_begin_behind_a_space_but_for_the_first_of_a_document():
  """One in eight is the first. A word's tokens depend on the space before it."""
  for skill in ('extract', 'keep'):
    made = many(only(skill), 400)
    plain = [m for m in made if not m.chunk.startswith(' ')]
    assert 25 <= len(plain) <= 80
    assert not any(m.chunk.startswith('  ') for m in made)


def test_every_response_begins_with_a_space():
  """So that a value's first token equals that of the text it is copied from."""
  shares = (('extract', 1), ('answer', 1), ('keep', 1))
  assert all(m.response[0] == ' ' for m in many(SkillConfig(shares=shares)))


def test_demonstrations_follow_from_the_seed():
  one, two = (many(SkillConfig(), 20) for _ in range(2))
  assert one == two
  assert len(set(one)) == 20


def test_chunks_have_the_asked_lengths():
  config = only('extract', min_chunk_chars=600, max_chunk_chars=700)
  lengths = [len(m.chunk) for m in many(config, 200)]
  # Filler ends with a word; the space in front is extra.
  assert 580 <= min(lengths) < 620 and 680 < max(lengths) <= 701


def test_uuid_share():
  uuids = sum(
    'uuid' in m.question for m in many(only('answer', uuid_share=0.5))
  )
  assert 70 <= uuids <= 130


def test_bad_values_are_named():
  with pytest.raises(ValueError, match='choose from extract'):
    SkillConfig(shares=(('write', 1.0),))
  with pytest.raises(ValueError, match='skills none; choose'):
    SkillConfig(shares=())
  with pytest.raises(ValueError, match='from 9 to 5'):
    SkillConfig(min_chunk_chars=9, max_chunk_chars=5)
  with pytest.raises(ValueError, match='max_keys is 0'):
    SkillConfig(max_keys=0)
