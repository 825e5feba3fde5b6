"""Documents of numbered paragraphs around a question.

    QuestionSet -> fitted (RULER qa_1, qa_2)      a number of tokens
                -> hqa_example (RULER-HQA)        a number of paragraphs

Gold paragraphs stand at uniform places, drawn for each example id.
"""

from collections.abc import Iterator, Sequence
import functools
import itertools
import math
import random

from memagent_jax.data.benchmarks import haystack
from memagent_jax.data.benchmarks.fit_length import Draft, count_tokens
from memagent_jax.data.benchmarks.question_sets import Question, QuestionSet
from memagent_jax.data.encoders import Encoder
from memagent_jax.data.examples import Example, seeded


def fitted(
  questions: QuestionSet, index: int, seed: int, size: int, rng: random.Random
) -> Draft:
  """Question `index` among about `size` characters of distractors.

  Its near distractors come first, then those of the pool; gold paragraphs are
  whole, the last distractor is cut at a word. Questions come in an order that
  `seed` shuffles, over and over.
  """
  question = pick(questions, index, seed)
  others = []
  for paragraph in _distractors(questions, question, rng):
    if len(paragraph) > size:
      others.append(haystack.cut_at_word(paragraph, size))
      break
    others.append(paragraph)
    size -= len(paragraph)
  return _draft(questions, question, others, rng)


def hqa_example(
  questions: QuestionSet,
  index: int,
  *,
  num_paragraphs: int,
  encoder: Encoder,
  encoder_name: str,
  seed: int = 0,
  task: str = 'ruler_hqa',
) -> Example:
  """Question `index` among exactly `num_paragraphs` paragraphs.

  Where the pool is too small, distractors repeat, each about as often as any
  other; gold paragraphs never do, and `source` counts the repeats.

  Raises:
    ValueError: fewer paragraphs than hold the evidence.
  """
  question = pick(questions, index, seed)
  if num_paragraphs < len(question.gold):
    raise ValueError(
      f'{num_paragraphs} paragraphs do not hold the {len(question.gold)} gold '
      f'paragraphs of question {question.id}.'
    )
  rng = seeded(task, seed, question.id, num_paragraphs)
  missing = num_paragraphs - len(question.gold)
  others = itertools.islice(_distractors(questions, question, rng), missing)
  draft = _draft(questions, question, list(others), rng)
  return Example(
    id=f'{task}/{num_paragraphs}/{seed}/{question.id}',
    task=task,
    reward='boxed_em',
    metric='sub_em_strict',
    tokens=count_tokens(encoder, draft),
    tokenizer=encoder_name,
    **vars(draft),
  )


def pick(questions: QuestionSet, index: int, seed: int) -> Question:
  """Question `index` of an endless, shuffled repetition of the set."""
  turn, place = divmod(index, len(questions.questions))
  order = _order(len(questions.questions), seed, turn)
  return questions.questions[order[place]]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, turn: int) -> tuple[int, ...]:
  """Numbers of all questions as pass `turn` takes them."""
  order = list(range(count))
  seeded('question order', seed, turn).shuffle(order)
  return tuple(order)


def _distractors(
  questions: QuestionSet, question: Question, rng: random.Random
) -> Iterator[str]:
  """The question's near distractors, then the pool's others in random order.

  When the pool is over all of them come again, in another order.
  """
  pool, gold = questions.pool, set(question.gold)
  if len(pool) == len(gold):
    raise ValueError(
      f'{questions.name}: no paragraph besides the gold ones of {question.id}.'
    )
  for i in question.near:
    yield pool[i]
  had = gold.union(question.near)
  while True:
    for i in _in_random_order(len(pool), rng):
      if i not in had:
        yield pool[i]
    had = gold


def _in_random_order(count: int, rng: random.Random) -> Iterator[int]:
  """0 ... count - 1, shuffled only as far as they are read: pools are large."""
  moved: dict[int, int] = {}
  for place in range(count):
    drawn = rng.randrange(place, count)
    yield moved.get(drawn, drawn)
    moved[drawn] = moved.pop(place, place)


def _draft(
  questions: QuestionSet,
  question: Question,
  others: Sequence[str],
  rng: random.Random,
) -> Draft:
  """Shuffles gold and other paragraphs into one document."""
  pool = questions.pool
  entries = [(pool[i], True) for i in question.gold]
  entries += [(text, False) for text in others if text]
  rng.shuffle(entries)
  document, spans = haystack.join(
    (
      (f'Document {i}:\n{text}', gold)
      for i, (text, gold) in enumerate(entries, 1)
    ),
    separator='\n\n',
  )
  available = len(pool) - len(question.gold)
  source = f'{questions.name}: {len(others)} of {available} distractors'
  if len(others) > available:
    source += f', each up to {math.ceil(len(others) / available)} times'
  return Draft(document, question.question, question.answers, spans, source)
