"""All RULER tasks at exact lengths, with three different tokenizers."""

import functools
import importlib.resources
import time

import pytest

from memagent_jax.data.benchmarks import haystack, ruler
from memagent_jax.data.benchmarks.question_sets import Question, QuestionSet
from memagent_jax.data.encoders import ByteEncoder
from memagent_jax.models.tokenizer import Tokenizer

NOVEL = 'adventures_of_sherlock_holmes'


@pytest.fixture(scope='module')
def corpus():
  essay = haystack.essays(NOVEL)
  # Paragraphs of a novel stand in for Wikipedia's.
  pool = tuple(essay.text[i : i + 600] for i in range(0, 300_000, 600))
  questions = tuple(
    Question(f'q{i}', 'What comes next?', (pool[i][:20],), (i,))
    for i in range(20)
  )
  made = QuestionSet('novel', questions, pool)
  return ruler.Corpus(essay, made, made)


@pytest.fixture(scope='module')
def encoders(request):
  """The tokenizer of a name; each is loaded once."""
  import sentencepiece

  @functools.cache
  def load(name):
    if name == 'bytes':
      return ByteEncoder()
    if name == 'smollm2':
      directory = request.getfixturevalue('smollm2_dir')
      return Tokenizer.from_directory(directory)
    model = importlib.resources.files('seqio').joinpath(
      'test_data', 'sentencepiece', 'sentencepiece.model'
    )
    return sentencepiece.SentencePieceProcessor(str(model))

  return load


def check(task, name, tokens, encoders, corpus):
  encoder = encoders(name)
  example = ruler.example(
    task, 0, tokens=tokens, encoder=encoder, encoder_name=name, corpus=corpus
  )
  counted = len(encoder.encode(example.document))
  counted += len(encoder.encode(example.question))
  assert 0 <= example.tokens - counted <= 128  # the answer's budget
  assert 0.98 * tokens <= example.tokens <= tokens
  assert all(answer in example.document for answer in example.answers)


@pytest.mark.parametrize('name', ['smollm2', 'bytes', 'sentencepiece'])
@pytest.mark.parametrize('task', ruler.TASKS)
def test_short_samples(task, name, encoders, corpus):
  for tokens in (2048, 8192):
    check(task, name, tokens, encoders, corpus)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['smollm2', 'bytes', 'sentencepiece'])
@pytest.mark.parametrize('task', ruler.TASKS)
def test_long_samples(task, name, encoders, corpus):
  check(task, name, 131_072, encoders, corpus)


@pytest.mark.slow
@pytest.mark.parametrize('task', ruler.TASKS)
def test_half_a_million_tokens_in_ten_seconds(task, encoders, corpus):
  start = time.process_time()
  check(task, 'smollm2', 524_288, encoders, corpus)
  # The check encodes once more: even with it, less than ten seconds.
  assert time.process_time() - start < 10
