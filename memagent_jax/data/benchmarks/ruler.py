"""RULER's thirteen tasks at any length.

    example(task, index, ...) -> rng by name -> render(size) -> fit -> Example

Source: Hsieh et al. 2024, arXiv 2404.06654, and its published configuration.
The evidence sentences have the benchmark's form; the questions are ours.
Deviations: statements end with a full stop, depths are any real numbers (not 40
values), essays are whatever text is given, and the words of `cwe` repeat less
often below 4,096 tokens, where they would not fit.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import math
import random
from typing import Any

from memagent_jax.data.benchmarks import haystack, paragraphs, words
from memagent_jax.data.benchmarks.fit_length import Draft, fit
from memagent_jax.data.benchmarks.haystack import Filler
from memagent_jax.data.benchmarks.question_sets import QuestionSet
from memagent_jax.data.encoders import Encoder
from memagent_jax.data.examples import Example, seeded


@dataclasses.dataclass(frozen=True)
class NeedleTask:
  """One needle-in-a-haystack task: what is hidden where."""

  # `noise`, `essay`, or `needles` (distractors only).
  haystack: str
  # Kind of key: `word` or `uuid`.
  key: str
  # Kind of value: `number` or `uuid`.
  value: str
  # Keys in the haystack, of which `num_queries` are asked for.
  num_keys: int = 1
  num_values: int = 1
  num_queries: int = 1


NEEDLE_TASKS: Mapping[str, NeedleTask] = {
  'niah_single_1': NeedleTask('noise', 'word', 'number'),
  'niah_single_2': NeedleTask('essay', 'word', 'number'),
  'niah_single_3': NeedleTask('essay', 'word', 'uuid'),
  'niah_multikey_1': NeedleTask('essay', 'word', 'number', num_keys=4),
  'niah_multikey_2': NeedleTask('needles', 'word', 'number'),
  'niah_multikey_3': NeedleTask('needles', 'uuid', 'uuid'),
  'niah_multivalue': NeedleTask('essay', 'word', 'number', num_values=4),
  'niah_multiquery': NeedleTask(
    'essay', 'word', 'number', num_keys=4, num_queries=4
  ),
}
# Answer budgets in tokens, as published.
_ANSWER_TOKENS = {'vt': 30, 'cwe': 120, 'fwe': 50, 'qa_1': 32, 'qa_2': 32}
_NEEDLE_ANSWER_TOKENS = 128
TASKS = (*NEEDLE_TASKS, 'vt', 'cwe', 'fwe', 'qa_1', 'qa_2')

_NUM_HOPS = 4
_NUM_COMMON = 10
# Repeats of a common and of an uncommon word; the second pair is for short
# samples, which 300 common words would fill.
_REPEATS, _SHORT_REPEATS, _SHORT_TOKENS = (30, 3), (10, 1), 4096
_CODED_LETTERS = 6
_CODED_VOCABULARY = 2000


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The texts that samples are made from; each task needs one or none."""

  essay: Filler | None = None
  squad: QuestionSet | None = None
  hotpotqa: QuestionSet | None = None

  def need(self, part: str, task: str) -> Any:
    """The part; raises ValueError, naming the task, if it is missing."""
    text = getattr(self, part)
    if text is None:
      raise ValueError(f'task {task} needs {part}; give its file or folder.')
    return text


@dataclasses.dataclass(frozen=True)
class NeedleDraws:
  """How a needle task draws values and filler; the defaults are RULER's.

  Both may draw from the rng any number of times: this changes what is drawn
  after them in a sample, not what was drawn before.
  """

  # (kind, rng) -> a value of the kind, `number` or `uuid`.
  value: Callable[[str, random.Random], str] = words.draw
  # (filler, size, rng, kind, key, value) -> about `size` characters of filler
  # for a document that asks for this key's value, and their source; None: plain
  # filler, whatever needle it hides.
  text: (
    Callable[[Filler, int, random.Random, str, str, str], tuple[str, str]]
    | None
  ) = None


def example(
  task: str,
  index: int,
  *,
  tokens: int,
  encoder: Encoder,
  encoder_name: str,
  corpus: Corpus,
  seed: int = 0,
  template_tokens: int = 0,
  answer_tokens: int | None = None,
  draws: NeedleDraws = NeedleDraws(),
) -> Example:
  """Sample number `index` of a task; a pure function of its arguments.

  Args:
    task: one of TASKS.
    index: 0, 1, ...; a sample does not depend on which others are made.
    tokens: target; document, question, template and answer budget together are
      98 to 100 % of it.
    encoder: tokenizer to count with.
    encoder_name: name of the encoder, recorded in the example.
    corpus: essay and question sets.
    seed: seed of the whole set.
    template_tokens: room for the wording around document and question.
    answer_tokens: room for the answer; None: the task's published budget.
    draws: how a needle task draws values and filler; as RULER by default.

  Raises:
    ValueError: an unknown task, a missing part of the corpus, or a target that
      cannot be met.
  """
  if task not in TASKS:
    raise ValueError(
      f'task {task!r} is unknown; choose from {", ".join(TASKS)}.'
    )
  if answer_tokens is None:
    answer_tokens = _ANSWER_TOKENS.get(task, _NEEDLE_ANSWER_TOKENS)
  render = _renderer(task, index, seed, tokens, corpus, draws)

  def fresh(size: int) -> Draft:
    # Every size starts from the same rng state, so the evidence stays the same.
    return render(size, seeded(task, seed, index))

  draft, counted = fit(fresh, encoder, tokens, template_tokens + answer_tokens)
  single = task.startswith('qa_') or len(draft.answers) == 1
  return Example(
    id=f'{task}/{tokens}/{seed}/{index}',
    task=task,
    reward='boxed_em' if single else 'boxed_all',
    metric='ruler_part' if task.startswith('qa_') else 'ruler_all',
    tokens=counted,
    tokenizer=encoder_name,
    **vars(draft),
  )


def _renderer(
  task: str,
  index: int,
  seed: int,
  tokens: int,
  corpus: Corpus,
  draws: NeedleDraws,
) -> Callable[[int, random.Random], Draft]:
  if task in NEEDLE_TASKS:
    spec = NEEDLE_TASKS[task]
    filler = haystack.noise()
    if spec.haystack == 'essay':
      filler = corpus.need('essay', task)
    return functools.partial(_needles, spec, draws, filler)
  if task == 'vt':
    return _variable_tracking
  if task == 'cwe':
    repeats = _SHORT_REPEATS if tokens < _SHORT_TOKENS else _REPEATS
    return functools.partial(_common_words, repeats)
  if task == 'fwe':
    return _frequent_words
  part = 'squad' if task == 'qa_1' else 'hotpotqa'
  questions = corpus.need(part, task)
  return functools.partial(paragraphs.fitted, questions, index, seed)


def needle(kind: str, key: str, value: str) -> str:
  """The sentence that gives a key's value; `kind` is `number` or `uuid`."""
  return f'One of the special magic {kind}s for {key} is: {value}.'


def needle_question(kind: str, key: str) -> str:
  """The question about a key with one value."""
  return f'What is the special magic {kind} for {key} mentioned in the text?'


def needles_question(
  kind: str, keys: Sequence[str], values_per_key: int = 1
) -> str:
  """The question about all values of one or more keys."""
  if len(keys) == values_per_key == 1:
    return needle_question(kind, keys[0])
  names = ', '.join(keys[:-1]) + ', and ' if len(keys) > 1 else ''
  return (
    f'What are all the special magic {kind}s for {names}{keys[-1]} mentioned in '
    'the text?'
  )


def _needles(
  spec: NeedleTask,
  draws: NeedleDraws,
  filler: Filler,
  size: int,
  rng: random.Random,
) -> Draft:
  make_key = functools.partial(words.draw, spec.key)
  make_value = functools.partial(draws.value, spec.value)
  keys = words.distinct(make_key, spec.num_keys, rng)
  values = {
    key: words.distinct(make_value, spec.num_values, rng) for key in keys
  }
  asked = rng.sample(keys, spec.num_queries)
  statements = [
    (rng.random(), needle(spec.value, key, value), key in asked)
    for key in keys
    for value in values[key]
  ]
  if spec.haystack == 'needles':
    others, rest = _distractors(
      spec.value, make_key, make_value, size, set(keys), rng
    )
    document, spans = _among(others, statements, rest)
    source = f'{len(others)} distractor needles'
  else:
    if draws.text is None:
      text, source = filler.cut(size, rng)
    else:
      hidden = spec.value, asked[0], values[asked[0]][0]
      text, source = draws.text(filler, size, rng, *hidden)
    document, spans = haystack.hide(text, statements)
  answers = tuple(value for key in asked for value in values[key])
  question = needles_question(spec.value, asked, spec.num_values)
  return Draft(document, question, answers, spans, source)


def _distractors(
  kind: str,
  make_key: Callable[[random.Random], str],
  make_value: Callable[[random.Random], str],
  size: int,
  taken: set[str],
  rng: random.Random,
) -> tuple[list[str], int]:
  """Needles with other keys to fill `size` characters, and the unused rest."""
  needles: list[str] = []
  while True:
    key = make_key(rng)
    if key in taken:
      continue
    text = needle(kind, key, make_value(rng))
    if len(text) + 1 > size:
      return needles, size
    taken.add(key)
    needles.append(text)
    size -= len(text) + 1


def _among(
  others: Sequence[str],
  statements: Sequence[tuple[float, str, bool]],
  rest: int,
) -> tuple[str, tuple[tuple[int, int], ...]]:
  """The statements among the distractors, with noise where no needle fits."""
  pieces = [(text, False) for text in others]
  for depth, text, is_gold in statements:
    pieces.insert(math.floor(depth * (len(pieces) + 1)), (text, is_gold))
  # Digits take more tokens than words: noise needs twice a needle's characters.
  tail = haystack.cut_at_word(' '.join([haystack.NOISE] * 4), 2 * rest)
  return haystack.join([*pieces, (tail, False)])


def _variable_tracking(size: int, rng: random.Random) -> Draft:
  names = words.distinct(
    lambda r: words.letters(r, 5).upper(), _NUM_HOPS + 1, rng
  )
  value = str(rng.randrange(10_000, 100_000))
  chain = [f'VAR {names[0]} = {value}.']
  chain += [
    f'VAR {name} = VAR {before}.' for before, name in itertools.pairwise(names)
  ]
  depths = sorted(rng.random() for _ in chain)
  statements = [(d, s, True) for d, s in zip(depths, chain, strict=True)]
  text, source = haystack.noise().cut(size, rng)
  document, spans = haystack.hide(text, statements)
  question = (
    f'Which {len(names)} variables have the value {value} in the text, assigned '
    'directly or through other variables?'
  )
  return Draft(document, question, tuple(names), spans, source)


def _common_words(
  repeats: tuple[int, int], size: int, rng: random.Random
) -> Draft:
  """A numbered list; `size` is the number of uncommon words."""
  chosen, source = words.plain_words(rng, _NUM_COMMON + size)
  common, uncommon = chosen[:_NUM_COMMON], chosen[_NUM_COMMON:]
  entries = common * repeats[0] + uncommon * repeats[1]
  rng.shuffle(entries)
  # Evidence is everywhere: no spans.
  document = ' '.join(f'{i}. {word}' for i, word in enumerate(entries, 1))
  question = (
    f'What are the {_NUM_COMMON} most common words in the numbered list?'
  )
  return Draft(document, question, tuple(common), (), source)


def _frequent_words(size: int, rng: random.Random) -> Draft:
  """About `size` coded words, their counts by Zipf's law with exponent 2."""
  coded = words.distinct(
    lambda r: words.letters(r, _CODED_LETTERS), _CODED_VOCABULARY, rng
  )
  vocabulary = ['...', *coded]  # the most frequent is noise, as published
  # Large enough that ranks 2, 3, 4 and 5 differ in their counts.
  total = size + 100
  zeta = math.pi**2 / 6
  entries = []
  for rank, word in enumerate(vocabulary, 1):
    entries += [word] * int(total / (rank * rank * zeta))
  rng.shuffle(entries)
  answers = tuple(vocabulary[1:4])
  question = (
    "The text is coded; '...' is noise and does not count. Which three coded "
    'words appear most often?'
  )
  return Draft(' '.join(entries), question, answers, (), 'coded words')
