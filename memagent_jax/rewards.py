r"""Rule-based verifiers and scorers: the text of an answer turn -> `Score`.

    rollout -> text -> score(name, text, answers) -> advantages | evaluation

One set for training and evaluation, on the host. `boxed_*` are the rewards and
read only the last \boxed{...}; `em`, `f1` and `sub_em_*` read it where there is
one, else the whole text; `ruler_*` always read the whole text. Time is linear
in the text, for each answer. No scorer limits how much is listed: the answer
turn's token cap does.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
import string
import unicodedata

# correct: value 1; partial: between; the others: value 0. no_box: a scorer that
# needs a box found none; empty: nothing in the box, or in the whole text.
OUTCOMES = ('correct', 'partial', 'wrong', 'no_box', 'empty')

_BOX = '\\boxed{'
_BRACE = re.compile(r'[{}]')
_NO_BRACES = str.maketrans('', '', '{}')
_ARTICLE = re.compile(r'\b(?:a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_LIST_TO_SPACES = str.maketrans(',;', '  ')
_CONTROL = re.compile(r'[\x00-\x1f]')
_CLOSED_ANSWERS = frozenset({'yes', 'no', 'noanswer'})

# NFKC takes quadratic time on combining marks out of order (3 s for 64,000)
# and turns one ligature into 18 characters. No answer is as long as this.
_MAX_NFKC_CHARACTERS = 8192


@dataclasses.dataclass(frozen=True)
class Score:
  """A scorer's verdict on one prediction."""

  value: float  # in [0, 1]
  outcome: str  # one of OUTCOMES


@dataclasses.dataclass(frozen=True)
class TrajectoryView:
  """What a reward sees of one trajectory: text, as a person would read it."""

  question: str
  # Equivalent answers, or all that are required: `scorer` says which.
  right_answers: Sequence[str]
  # Text of the answer turn, and how it finished: `eos` or `length`.
  answer: str
  finish_reason: str
  # The scorer that the example names, a key of SCORERS.
  scorer: str
  # Returns `memories`; they are decoded only for rewards that look at them.
  read_memories: Callable[[], Sequence[str]]

  @functools.cached_property
  def memories(self) -> Sequence[str]:
    """The memory after every turn, in the document's order."""
    return self.read_memories()


# What a trajectory is worth; a run binds one, see `rl.rollouts`.
Reward = Callable[[TrajectoryView], Score]


def data_reward(view: TrajectoryView) -> Score:
  """The default reward: the answer's score by the scorer the example names."""
  return score(view.scorer, view.answer, view.right_answers)


def score(name: str, prediction: str, answers: Sequence[str]) -> Score:
  """The score of one prediction by the scorer of that name.

  Args:
    name: a key of SCORERS; its docstring says what it compares.
    prediction: text of the answer turn, without a thinking span.
    answers: right answers, equivalent or all required: the scorer says which.
      A blank one (or braces alone) is never matched, except by `ruler_*` and
      `sub_em_reference`, which find it in everything, as published.

  Raises:
    ValueError: an unknown name, a prediction that is not text, or answers that
      are not a sequence of one or more texts.
  """
  if name not in SCORERS:
    raise ValueError(
      f'scorer {name!r} is unknown; expected one of {", ".join(SCORERS)}.'
    )
  if not isinstance(prediction, str):
    raise ValueError(
      f'prediction is {type(prediction).__name__}; expected text.'
    )
  _check_answers(answers)
  return SCORERS[name](prediction, answers)


def last_box(text: str) -> str | None:
  r"""Content of the last \boxed{...}; None where there is none.

  Every brace counts, even an escaped one. A box inside a box is part of the
  outer one's content, with a space for its \boxed: \boxed{\boxed{x}} holds
  ' {x}', which compares as x. Also None where a box never closes, as in a text
  that was cut: that box is the last one, whatever was boxed before it.
  """
  content = None
  start = text.find(_BOX)
  while start >= 0:
    start += len(_BOX)
    end = _closing_brace(text, start)
    if end is None:
      return None
    content = text[start:end]
    start = text.find(_BOX, end)
  return None if content is None else content.replace('\\boxed', ' ')


def normalise(text: str) -> str:
  """SQuAD's normal form: lower case, no ASCII punctuation, no a, an or the.

  Whitespace is squeezed. Deviation from SQuAD: Unicode NFKC comes first, so
  that full-width forms, ligatures and composed accents compare equal; texts of
  more than 8,192 characters skip it.

  Source: SQuAD, arXiv 1606.05250, and its evaluation script.
  """
  return _squad_form(_nfkc(text))


def _boxed_em(prediction: str, answers: Sequence[str]) -> Score:
  """1 if the last box equals one of the equivalent answers, as `em` compares.

  Source: the released reward, verl/utils/reward_score/hotpotqa.py: max over the
  answers. Deviations: SQuAD's normal form instead of one for formulas, and the
  last box of the whole text instead of its last 300 characters.
  """
  box = last_box(prediction)
  return Score(0.0, 'no_box') if box is None else _exact(box, answers)


def _boxed_all(prediction: str, answers: Sequence[str]) -> Score:
  """Share of the required answers that the last box lists.

  An answer is listed if its normalised tokens are consecutive tokens of the
  box; equal answers count once. Commas and semicolons are tried both ways,
  dropped ('1,234' lists 1234) and as separators ('12,34' lists 12 and 34). An
  answer that normalises to nothing ('A', 'The') is looked for among the words
  of the box before normalisation. As in RULER's metric, there is no penalty for
  listing anything else.
  """
  box = last_box(prediction)
  if box is None:
    return Score(0.0, 'no_box')
  # Full-width commas become ASCII ones first.
  box = _nfkc(box)
  if not _bare(box):
    return Score(0.0, 'empty')
  separated = box.translate(_LIST_TO_SPACES)
  readings = (_squad_form(box), _squad_form(separated), _bare(separated))
  required = {_comparable(answer) for answer in answers}
  found = sum(
    any(_has_tokens(reading, answer) for reading in readings)
    for answer in required
  )
  return _scored(found / len(required))


def _em(prediction: str, answers: Sequence[str]) -> Score:
  """1 if the answer equals one of the equivalent answers, normalised.

  Where normalising leaves nothing ('The', '...'), the texts are compared
  case-folded, with whitespace squeezed and braces removed.
  """
  return _exact(_answer(prediction), answers)


def _f1(prediction: str, answers: Sequence[str]) -> Score:
  """Token F1 with the best of the equivalent answers.

  yes, no and noanswer count only if equal. Deviations are those of `em`.

  Source: HotpotQA's evaluation script, after SQuAD's.
  """
  got = _comparable(_answer(prediction))
  if not got:
    return Score(0.0, 'empty')
  got_count = Counter(got.split())
  best = 0.0
  for gold in map(_comparable, answers):
    if got != gold and not _CLOSED_ANSWERS.isdisjoint((got, gold)):
      continue
    gold_count = Counter(gold.split())
    same = sum(min(n, got_count[token]) for token, n in gold_count.items())
    # 2 p r / (p + r) with p = same / got and r = same / gold.
    best = max(best, 2 * same / (got_count.total() + gold_count.total()))
  return _scored(best)


def _sub_em_strict(prediction: str, answers: Sequence[str]) -> Score:
  """1 if one of the equivalent answers is a run of whole tokens of the answer.

  The reverse does not count. An answer that normalises to nothing must be
  equal, as in `em`.
  """
  got = _comparable(_answer(prediction))
  if not got:
    return Score(0.0, 'empty')
  golds = map(_comparable, answers)
  return _scored(float(any(_has_tokens(got, gold) for gold in golds)))


def _sub_em_reference(prediction: str, answers: Sequence[str]) -> Score:
  """MemAgent's sub-EM with its bugs, only to compare with published numbers.

  1 if the first answer is a substring of the prediction or vice versa, both in
  SQuAD's normal form without NFKC: 'the' and '.' normalise to nothing, which is
  in every answer, and 'e' is in most. A prediction that is empty before it is
  normalised scores 0. Further answers are ignored.
  Deviation: a text without a box is compared whole; the reference's boxed
  evaluation scores it 0. Where that matters, call `last_box` first.

  Source: BytedTsinghua-SIA/MemAgent, taskutils/memory_eval: ruler_hqa.py and
  utils/__init__.py.
  """
  answer = _answer(prediction)
  if not answer:
    return Score(0.0, 'empty')
  got, gold = _squad_form(answer), _squad_form(answers[0])
  return _scored(float(gold in got or got in gold))


def _ruler_part(prediction: str, answers: Sequence[str]) -> Score:
  """1 if any answer is a substring of the whole text, ignoring case.

  Source: RULER, arXiv 2404.06654, string_match_part (qa_1, qa_2).
  """
  return _ruler(prediction, answers, max)


def _ruler_all(prediction: str, answers: Sequence[str]) -> Score:
  """Share of the answers that are substrings of the whole text, ignoring case.

  Source: RULER, arXiv 2404.06654, string_match_all (all but qa_1 and qa_2).
  """
  return _ruler(prediction, answers, lambda found: sum(found) / len(found))


SCORERS: Mapping[str, Callable[[str, Sequence[str]], Score]] = {
  'boxed_em': _boxed_em,
  'boxed_all': _boxed_all,
  'em': _em,
  'f1': _f1,
  'ruler_part': _ruler_part,
  'ruler_all': _ruler_all,
  'sub_em_strict': _sub_em_strict,
  'sub_em_reference': _sub_em_reference,
}


def _check_answers(answers: object) -> None:
  if isinstance(answers, (str, bytes)) or not isinstance(answers, Sequence):
    raise ValueError(
      f'answers is {type(answers).__name__}; expected a list of texts, such as '
      "['Paris']."
    )
  if not answers:
    raise ValueError('answers is empty; expected at least one text.')
  for i, answer in enumerate(answers):
    if not isinstance(answer, str):
      raise ValueError(
        f'answers[{i}] is {type(answer).__name__}; expected text.'
      )


def _closing_brace(text: str, start: int) -> int | None:
  """Index of the brace that closes the group with content from `start` on."""
  depth = 1
  for brace in _BRACE.finditer(text, start):
    depth += 1 if brace[0] == '{' else -1
    if depth == 0:
      return brace.start()
  return None


def _answer(prediction: str) -> str:
  box = last_box(prediction)
  return prediction.strip() if box is None else box


def _nfkc(text: str) -> str:
  if len(text) > _MAX_NFKC_CHARACTERS:
    return text
  return unicodedata.normalize('NFKC', text)


def _squad_form(text: str) -> str:
  text = text.lower().translate(_NO_PUNCTUATION)
  return ' '.join(_ARTICLE.sub(' ', text).split())


def _bare(text: str) -> str:
  return ' '.join(text.translate(_NO_BRACES).split()).casefold()


def _comparable(text: str) -> str:
  """The normal form, or the bare text where the normal form is empty.

  So 'The' compares as 'the', which no normal form contains, and only a blank
  text compares as ''.
  """
  text = _nfkc(text)
  return _squad_form(text) or _bare(text)


def _has_tokens(text: str, tokens: str) -> bool:
  """Whether the space-separated tokens are consecutive tokens of the text."""
  # `in` is linear since Python 3.10; the spaces keep 12 from matching 123.
  return bool(tokens) and f' {tokens} ' in f' {text} '


def _exact(answer: str, answers: Sequence[str]) -> Score:
  got = _comparable(answer)
  if not got:
    return Score(0.0, 'empty')
  return _scored(float(any(got == _comparable(gold) for gold in answers)))


def _ruler(
  prediction: str,
  answers: Sequence[str],
  reduce: Callable[[list[float]], float],
) -> Score:
  # RULER turns control characters into newlines before it matches.
  text = _CONTROL.sub('\n', prediction.strip()).strip().lower()
  if not text:
    return Score(0.0, 'empty')
  return _scored(reduce([float(answer.lower() in text) for answer in answers]))


def _scored(value: float) -> Score:
  if value == 1.0:
    return Score(value, 'correct')
  return Score(value, 'partial' if value > 0.0 else 'wrong')
