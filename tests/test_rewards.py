"""Scorers against literal cases and slow oracles, and at their limits."""

from collections import Counter
import subprocess
import sys
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from memagent_jax import rewards
from memagent_jax.rewards import OUTCOMES, SCORERS, Score, last_box, score

CORRECT, WRONG = Score(1.0, 'correct'), Score(0.0, 'wrong')
EMPTY, NO_BOX = Score(0.0, 'empty'), Score(0.0, 'no_box')


@pytest.mark.parametrize(
  ('text', 'content'),
  [
    (r'so \boxed{Paris}.', 'Paris'),
    (r'\boxed{a1} then \boxed{b2} and more', 'b2'),
    (r'\boxed{x_{1}^{2}} }', 'x_{1}^{2}'),  # inner braces; a stray one after
    (r'{ \boxed{x}', 'x'),  # a stray one before
    (r'\boxed{\boxed{x}}', ' {x}'),
    (r'\boxed{\boxed{1}, \boxed{2}}', ' {1},  {2}'),
    (r'\boxed{}', ''),
    (r'\boxed{a} \boxed{}', ''),
    (r'\boxed{a} and \boxed{b', None),  # cut: 'a' was not the last word
    (r'\boxed{a \boxed{b}', None),
    (r'\boxed{a{b}', None),
    ('boxed{a}', None),
    (r'\boxed a', None),
    (r'\fbox{a}', None),
    ('', None),
  ],
)
def test_the_last_box(text, content):
  assert last_box(text) == content


@pytest.mark.parametrize(
  ('text', 'normal'),
  [
    # Lower case, then punctuation, then articles, then whitespace.
    ('The  Cat, an ANIMAL!\n', 'cat animal'),
    ('theatre and banana', 'theatre and banana'),
    # Punctuation is dropped, not turned to a space; so 'T.h.e' is an article.
    ('U.S.A. well-known T.h.e', 'usa wellknown'),
    ('The', ''),
    ('Ｆｕｌｌ　ｗｉｄｔｈ！', 'full width'),  # NFKC; SQuAD would keep it
    ('ﬁne cafe\u0301', 'fine caf\u00e9'),
    ('“Paris”', '“paris”'),  # only ASCII punctuation goes
    ('e\u0301' * 4096, '\u00e9' * 4096),
    ('e\u0301' * 4096 + '!', 'e\u0301' * 4096),  # too long for NFKC
  ],
)
def test_the_normal_form(text, normal):
  assert rewards.normalise(text) == normal


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    (
      r'It is \boxed{ the Greenwich  Village. }',
      ['Greenwich Village'],
      CORRECT,
    ),
    (r'\boxed{NYC}', ['New York', 'NYC'], CORRECT),  # the best of the answers
    (r'\boxed{Paris} \boxed{Rome}', ['Paris'], WRONG),  # the last box
    (r'\boxed{Rome} \boxed{Paris}', ['Paris'], CORRECT),
    (r'\boxed{Rome} or rather Paris', ['Paris'], WRONG),  # not text outside it
    (r'The text says \boxed{Paris}; I say \boxed{Rome', ['Paris'], NO_BOX),
    ('Paris', ['Paris'], NO_BOX),
    ('', ['Paris'], NO_BOX),
    (r'\boxed{Paris', ['Paris'], NO_BOX),
    (r'\boxed{Paris, France}', ['Paris'], WRONG),  # a part is not the whole
    (r'\boxed{\boxed{Paris}}', ['Paris'], CORRECT),
    (r'\boxed{{Paris}}', ['Paris'], CORRECT),
    (r'\boxed{Rome \boxed{Paris}}', ['Paris'], WRONG),  # the outermost
    (r'\boxed{}', ['Paris'], EMPTY),
    (r'\boxed{ {} }', ['Paris'], EMPTY),
    (r'\boxed{\boxed{}}', ['Paris'], EMPTY),
    # Golds that normalise to nothing: comparing '' with '' would give 1.
    (r'\boxed{}', ['The'], EMPTY),
    (r'\boxed{}', [''], EMPTY),
    (r'\boxed{.}', ['The'], WRONG),
    (r'\boxed{an}', ['The'], WRONG),
    (r'\boxed{ the }', ['The'], CORRECT),
    (r'\boxed{\boxed{A}}', ['A'], CORRECT),
    (r'\boxed{the}', ['Paris', ''], WRONG),
    (r'\boxed{１９７２}', ['1972'], CORRECT),  # full-width digits, by NFKC
    (r'\boxed{﹛}', ['﹛'], EMPTY),  # by NFKC a brace, and braces are nothing
  ],
)
def test_boxed_em(prediction, answers, expected):
  assert score('boxed_em', prediction, answers) == expected


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    (r'\boxed{11, 22 and 33}', ['33', '11', '22'], CORRECT),
    (r'\boxed{11, 22}', ['11', '22', '33', '44'], Score(0.5, 'partial')),
    (r'\boxed{123}', ['12', '23', '3'], WRONG),  # substrings would give 1
    (r'\boxed{11,22;33}', ['11', '22', '33'], CORRECT),  # no spaces needed
    (r'\boxed{"x";"y"}', ['x', 'y'], CORRECT),
    (r'\boxed{1,234,567}', ['1234567'], CORRECT),
    (r'\boxed{北京，上海}', ['上海', '北京'], CORRECT),  # NFKC makes it a comma
    (r'\boxed{new york, rome}', ['New York', 'Rome'], CORRECT),
    (r'\boxed{york new, rome}', ['New York', 'Rome'], Score(0.5, 'partial')),
    # 'X.' and 'the x' are x: two required, one found; counted thrice, 3/4.
    (r'\boxed{x}', ['x', 'X.', 'the x', 'y'], Score(0.5, 'partial')),
    (r'\boxed{A, C}', ['A', 'C'], CORRECT),  # 'A' normalises to nothing
    (r'\boxed{C}', ['A', 'C'], Score(0.5, 'partial')),
    (r'\boxed{C}', ['', 'C'], Score(0.5, 'partial')),  # blank: never found
    (r'\boxed{.}', [''], WRONG),  # nor if nothing is left of the box
    (r'\boxed{\boxed{11}\boxed{22}}', ['11', '22'], CORRECT),
    (r'11 22 \boxed{33}', ['11', '22'], WRONG),
    (r'\boxed{}', ['11'], EMPTY),
    ('11', ['11'], NO_BOX),
  ],
)
def test_boxed_all(prediction, answers, expected):
  assert score('boxed_all', prediction, answers) == expected


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    ('The Paris!', ['Rome', 'paris'], CORRECT),
    ('It is Paris', ['Paris'], WRONG),
    (r'It is \boxed{Paris}', ['Paris'], CORRECT),  # the box, if there is one
    (r'Paris \boxed{Rome}', ['Paris'], WRONG),
    (r'Paris \boxed{}', ['Paris'], EMPTY),
    # No complete box, so the whole text, whose brace and macro name are junk.
    (r'\boxed{Paris', ['Paris'], WRONG),
    (' \n', ['Paris'], EMPTY),
    ('the', ['The'], CORRECT),
    ('a', ['The'], WRONG),
  ],
)
def test_em(prediction, answers, expected):
  assert score('em', prediction, answers) == expected


@pytest.mark.parametrize(
  ('prediction', 'answers', 'value'),
  [
    ('the capital Paris', ['Paris'], 2 / 3),  # p = 1/2, r = 1
    ('big big cat', ['big cat dog'], 2 / 3),  # one big counts: 2 of 3 and 3
    ('big big cat', ['rome', 'big cat'], 4 / 5),  # p = 2/3, r = 1; the best
    (r'big \boxed{cat}', ['big cat'], 2 / 3),  # p = 1, r = 1/2
    ('cat big', ['Big cat'], 1.0),
    ('rome', ['paris'], 0.0),
    # Plain token F1 would give 2/3 to each of these.
    ('yes it', ['yes'], 0.0),
    ('no', ['no way'], 0.0),
    ('noanswer', ['noanswer here'], 0.0),
    ('Yes.', ['yes'], 1.0),
    ('yes', ['yes it', 'yes'], 1.0),
    ('the', ['The'], 1.0),  # HotpotQA gives 0: no token is left
    ('the', ['Paris'], 0.0),
  ],
)
def test_f1(prediction, answers, value):
  outcome = {0.0: 'wrong', 1.0: 'correct'}.get(value, 'partial')
  assert score('f1', prediction, answers) == Score(value, outcome)


def test_f1_of_nothing():
  assert score('f1', ' ', ['Paris']) == EMPTY
  assert score('f1', r'Paris \boxed{ }', ['Paris']) == EMPTY


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    ('It is PARIS, I think', ['Rome', 'paris'], CORRECT),
    ('parisian', ['Paris'], CORRECT),  # a substring, by design
    (r'Paris, no: \boxed{Rome}', ['Paris'], CORRECT),  # and of the whole text
    ('U.S.', ['US'], WRONG),  # nothing is normalised
    ('Par', ['Paris'], WRONG),
    ('a\tb', ['a\nb'], CORRECT),  # control characters become line ends
    ('  \x00', ['Paris'], EMPTY),
  ],
)
def test_ruler_part(prediction, answers, expected):
  assert score('ruler_part', prediction, answers) == expected


@pytest.mark.parametrize(
  ('prediction', 'answers', 'expected'),
  [
    ('11 and 22', ['11', '22', '33', '44'], Score(0.5, 'partial')),
    ('123', ['12', '23'], CORRECT),
    ('Alpha', ['ALPHA'], CORRECT),
    # A reference that is listed twice counts twice, as published.
    ('11', ['11', '11', '22', '33'], Score(0.5, 'partial')),
    ('none', ['11', '22'], WRONG),
    ('', ['11'], EMPTY),
  ],
)
def test_ruler_all(prediction, answers, expected):
  assert score('ruler_all', prediction, answers) == expected


@pytest.mark.parametrize(
  ('prediction', 'answers', 'strict', 'reference'),
  [
    ('It is Paris, I think', ['Paris'], CORRECT, CORRECT),
    (r'Rome? \boxed{in Paris}', ['Paris'], CORRECT, CORRECT),
    (r'Paris? \boxed{Rome}', ['Paris'], WRONG, WRONG),
    # Known errors of the released evaluation. 'the' and '.' normalise to '',
    # which is in everything; 'e' is a letter of the answer.
    ('the', ['Greenwich Village'], WRONG, CORRECT),
    ('.', ['Greenwich Village'], WRONG, CORRECT),
    ('e', ['Greenwich Village'], WRONG, CORRECT),
    (r'\boxed{the}', ['Greenwich Village'], WRONG, CORRECT),
    (r'\boxed{ }', ['Greenwich Village'], EMPTY, CORRECT),
    ('Village', ['Greenwich Village'], WRONG, CORRECT),  # in the gold only
    ('I do not know', ['no'], WRONG, CORRECT),  # inside a word
    ('1234', ['123'], WRONG, CORRECT),
    ('anything', ['The'], WRONG, CORRECT),
    ('Paris', ['Rome', 'Paris'], CORRECT, WRONG),  # only the first answer
    ('ﬁne', ['fine'], CORRECT, WRONG),  # no NFKC
    ('', ['Paris'], EMPTY, EMPTY),
    (' \n', ['Paris'], EMPTY, EMPTY),
    (r'Paris \boxed{}', ['Paris'], EMPTY, EMPTY),
    ('the', ['The'], CORRECT, CORRECT),
    ('the cat', ['The'], WRONG, CORRECT),
    ('the cat', [''], WRONG, CORRECT),
  ],
)
def test_sub_em(prediction, answers, strict, reference):
  assert score('sub_em_strict', prediction, answers) == strict
  assert score('sub_em_reference', prediction, answers) == reference


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ('exact', 'x', ['x']),
      "'exact' is unknown; expected one of boxed_em, .*f1",
    ),
    (('em', None, ['x']), 'prediction is NoneType; expected text'),
    (('em', b'x', ['x']), 'prediction is bytes'),
    (('em', 'x', []), 'answers is empty'),
    (('em', 'x', 'x'), 'answers is str; expected a list of texts'),
    (('em', 'x', None), 'answers is NoneType'),
    (('em', 'x', ['x', 1972]), r'answers\[1\] is int; expected text'),
  ],
)
def test_wrong_arguments_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    score(*arguments)


# Text that hypothesis makes, and text made of what the scorers look for.
_PIECES = r'\boxed{ \boxed { } the A an Paris 12 123 , ; . yes no ﬁ é İ'.split()
_PIECES += [' ', '\n', '\x00', '\u0301', '\ud800', '٣', '\\']
_TEXT = st.text() | st.lists(st.sampled_from(_PIECES), max_size=20).map(''.join)
_ANSWERS = st.lists(_TEXT, min_size=1, max_size=4)


@settings(max_examples=200)
@given(prediction=_TEXT, answers=_ANSWERS)
def test_any_text_gets_a_value_and_its_outcome(prediction, answers):
  for name in SCORERS:
    got = score(name, prediction, answers)
    assert got.outcome in OUTCOMES
    assert (got.outcome == 'correct') == (got.value == 1)
    assert (got.outcome == 'partial') == (0 < got.value < 1)
    assert got.value >= 0
    assert (got.outcome == 'no_box') == (
      name.startswith('boxed') and last_box(prediction) is None
    )


@settings(max_examples=200)
@given(prediction=_TEXT, answers=_ANSWERS, outside=_TEXT)
def test_how_the_scorers_agree(prediction, answers, outside):
  value = {name: score(name, prediction, answers).value for name in SCORERS}
  assert value['em'] <= value['f1']
  assert value['em'] <= value['sub_em_strict']
  if last_box(prediction) is None:
    assert value['boxed_em'] == value['boxed_all'] == 0
  else:
    assert value['boxed_em'] == value['em']
    # Text before the last box, or after it without a box, is not read.
    for text in (prediction + outside.replace('\\', ''), 'Paris' + prediction):
      assert score('boxed_em', text, answers).value == value['boxed_em']
      assert score('boxed_all', text, answers).value == value['boxed_all']


def _slow_last_box(text):
  """By definition: match each box's brace, then skip to its end."""
  content = None
  i = 0
  while i < len(text):
    if not text.startswith('\\boxed{', i):
      i += 1
      continue
    ends = [
      end
      for end in range(i + 7, len(text))
      if text[i:end].count('{') == text[i : end + 1].count('}')
    ]
    if not ends:
      return None
    content, i = text[i + 7 : ends[0]], ends[0] + 1
  return content


@settings(max_examples=400)
@given(
  st.lists(st.sampled_from([r'\boxed{', '{', '}', 'x', '\\']), max_size=16).map(
    ''.join
  )
)
def test_the_last_box_is_that_of_the_definition(text):
  slow = _slow_last_box(text)
  if slow is not None:
    slow = slow.replace(r'\boxed', ' ')
  assert last_box(text) == slow


_WORDS = st.lists(st.sampled_from(['x', 'y', 'xx', 'xy']), max_size=6)


def _is_run(part, whole):
  return any(
    whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1)
  )


@settings(max_examples=200)
@given(got=_WORDS, golds=st.lists(_WORDS.filter(bool), min_size=1), more=_WORDS)
def test_words_against_lists_of_words(got, golds, more):
  text, answers = ' '.join(got), [' '.join(gold) for gold in golds]
  runs = {tuple(gold): _is_run(gold, got) for gold in golds}
  assert score('sub_em_strict', text, answers).value == any(runs.values())
  listed = score('boxed_all', f'\\boxed{{{text}}}', answers).value
  assert listed == pytest.approx(sum(runs.values()) / len(runs))
  # Listing more, or being asked the same again, never lowers the score.
  longer = score('boxed_all', f'\\boxed{{{text} {" ".join(more)}}}', answers)
  assert longer.value >= listed
  again = score('boxed_all', f'\\boxed{{{text}}}', answers + answers)
  assert again.value == listed
  f1 = 0.0
  for gold in golds:
    same = sum((Counter(got) & Counter(gold)).values())
    if same:
      precision, recall = same / len(got), same / len(gold)
      f1 = max(f1, 2 * precision * recall / (precision + recall))
  assert score('f1', text, answers).value == pytest.approx(f1)


_MB = 1 << 20
_DEPTH = 100_000
_LONG = {
  'open boxes': '\\boxed{' * (_MB // 7),
  'empty boxes': '\\boxed{}' * (_MB // 8),
  'open braces': '\\boxed{' + '{' * _MB,
  'closed braces': '}' * _MB,
  'braces that close': '\\boxed{' + '{}' * (_MB // 2) + '}',
  'deep boxes': '\\boxed{' * _DEPTH + 'Paris' + '}' * _DEPTH,
  'deep boxes, one open': '\\boxed{' * _DEPTH + 'Paris' + '}' * (_DEPTH - 1),
  'backslashes': '\\' * _MB,
  'one word': f'\\boxed{{{"x" * _MB}}}',
  'equal words': f'\\boxed{{{"x " * (_MB // 2)}}}',
  'other words': ' '.join(map(str, range(_MB // 7))),
  'articles': f'\\boxed{{{"the " * (_MB // 4)}}}',
  'commas': f'\\boxed{{{"x," * (_MB // 2)}}}',
  'wide spaces': '\u3000' * (_MB // 3),
  # NFKC is quadratic in marks out of order (the second is two of them in one)
  # and turns the ligature into 18 characters; the short texts go through it.
  'marks': '\\boxed{' + '\u0301\u0316' * (_MB // 4) + '}',
  'some marks': '\\boxed{' + '\u0f73' * 8192 + '}',
  'ligatures': '\\boxed{' + '\ufdfa' * (_MB // 3) + '}',
  'some ligatures': '\\boxed{' + '\ufdfa' * 8192 + '}',
}


@pytest.mark.parametrize('text', _LONG.values(), ids=_LONG)
def test_a_megabyte_takes_less_than_a_second(text):
  # With these answers a search that restarts at each token is quadratic.
  answers = ['Paris', 'x ' * 5000 + 'y', 'y' + ' x' * 5000]
  for name in SCORERS:
    start = time.process_time()
    score(name, text, answers)
    assert time.process_time() - start < 1


def test_answers_of_a_megabyte():
  half = 'x ' * (_MB // 4)
  answers = [half + 'y ' + half, 'y ' + half, 'yx' * (_MB // 2)]
  for prediction in (half, f'\\boxed{{{half + half}}}'):
    for name in SCORERS:
      start = time.process_time()
      score(name, prediction, answers)
      assert time.process_time() - start < 1


def test_deep_boxes_hold_their_word():
  assert score('boxed_em', _LONG['deep boxes'], ['Paris']) == CORRECT
  assert score('boxed_em', _LONG['deep boxes, one open'], ['Paris']) == NO_BOX


def test_the_import_is_light():
  code = (
    'import sys; import memagent_jax.rewards; '
    'print(sorted({"jax", "numpy", "flax", "torch"} & set(sys.modules)))'
  )
  run = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert run.stdout.strip() == '[]'
