"""Baselines of one turn: which part of a document they show, and how much."""

import dataclasses

import jax
import pytest

from memagent_jax.agent.prompts import OneTurnTemplate
from memagent_jax.data.examples import Example
from memagent_jax.evals.methods import one_turn
from memagent_jax.evals.methods.one_turn import OneTurn
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models.configs import DualChunkAttention, SinkAttention
from memagent_jax.sampling import decode
from tests import tiny_runs

TEMPLATE = OneTurnTemplate('{document} {question}', 'only {question}')
WINDOW = tiny_runs.CONFIG.max_positions


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def make(**changes):
  return OneTurn(template=TEMPLATE, answer_tokens=6, **changes)


def example(document, question='Who?'):
  return Example('x', 'task', document, question, ('42',))


def watch(monkeypatch):
  """A list that gains (config, the prompts' ids) at every call."""
  seen, generate = [], decode.generate_jitted

  def watched(config, params, prompt, *rest):
    rows = [
      row[:n].tolist()
      for row, n in zip(
        jax.device_get(prompt.ids_NxW),
        jax.device_get(prompt.length_N),
        strict=True,
      )
    ]
    seen.append((config, rows))
    return generate(config, params, prompt, *rest)

  monkeypatch.setattr(decode, 'generate_jitted', watched)
  return seen


def shown(model, monkeypatch, method, document, question='Who?'):
  """The document as shown in the prompt, and the Result."""
  seen = watch(monkeypatch)
  (result,) = method.answer(
    model, [example(document, question)], Progress()
  ).results
  ((_, (ids,)),) = seen
  text = ''.join(model.tokenizer.token_text(i) for i in ids)
  start = text.index('user\n') + len('user\n')
  return text[start : text.index(f' {question}', start)], result


def watch_ids(model, monkeypatch, document):
  """The prompt's ids."""
  seen = watch(monkeypatch)
  make().answer(model, [example(document)], Progress())
  return seen[0][1][0]


def letters(count):
  return ''.join('abcdefgh'[i // 7 % 8] + 'ijklm'[i % 5] for i in range(count))


def test_a_document_that_fits_is_shown_whole(model, monkeypatch):
  text, result = shown(model, monkeypatch, make(), 'All of it.')
  assert text == 'All of it.'
  own = len(model.tokenizer.encode('All of it.'))
  assert result.own_tokens == result.read_tokens == own


def test_a_long_document_loses_its_middle(model, monkeypatch):
  document = letters(400)
  text, result = shown(model, monkeypatch, make(), document)
  assert result.own_tokens == 800 and result.read_tokens == len(text) < WINDOW
  head = len(text) // 2
  assert text == document[:head] + document[head - len(text) :]
  # Every token of the window is used.
  assert len(watch_ids(model, monkeypatch, document)) == WINDOW - 6


def test_recent_shows_the_end(model, monkeypatch):
  document = letters(400)
  text, _ = shown(model, monkeypatch, make(context='recent'), document)
  assert document.endswith(text) and len(text) > 100


def test_none_shows_nothing(model, monkeypatch):
  seen = watch(monkeypatch)
  (result,) = (
    make(context='none')
    .answer(model, [example('The text.')], Progress())
    .results
  )
  text = ''.join(model.tokenizer.token_text(i) for i in seen[0][1][0])
  assert 'only Who?' in text and 'The text' not in text
  own = len(model.tokenizer.encode('The text.'))
  assert (result.own_tokens, result.read_tokens) == (own, 0)


def test_retrieved_shows_what_the_question_names_in_its_order(
  model, monkeypatch
):
  filler = [f'Sentence {i} tells of trees.' for i in range(40)]
  filler[11] = 'A red fox ran by.'
  filler[30] = 'The fox was Ann.'
  method = make(context='retrieved', chunk_tokens=30, prompt_tokens=100)
  text, result = shown(
    model, monkeypatch, method, ' '.join(filler), 'What did the fox do?'
  )
  assert 'A red fox ran by.' in text
  assert text.index('A red fox') < text.index('The fox was Ann')
  assert result.read_tokens <= 100 < result.own_tokens


def test_a_batch_has_what_its_tokens_allow(model):
  assert make(batch_tokens=1000).batch_size(model.config, 8, 300) == 4
  # Without an extension no prompt is longer than the window.
  assert make(batch_tokens=1000).batch_size(model.config, 8, 10**6) == 4
  yarn = make(batch_tokens=1000, extension='yarn')
  assert yarn.batch_size(model.config, 8, 10**6) == 1
  assert yarn.batch_size(model.config, 8, 100) == 8


@pytest.mark.parametrize('extension', one_turn.EXTENSIONS)
def test_a_text_within_the_window_is_read_plainly(
  model, monkeypatch, extension
):
  seen = watch(monkeypatch)
  make(extension=extension).answer(model, [example(letters(100))], Progress())
  assert seen[0][0] == model.config


@pytest.mark.slow
def test_beyond_the_window_each_extension_is_its_own(model, monkeypatch):
  seen = watch(monkeypatch)
  document = example(letters(400))
  for extension in one_turn.EXTENSIONS[1:]:
    (result,) = (
      make(extension=extension).answer(model, [document], Progress()).results
    )
    assert result.read_tokens == 800
  linear, dynamic, yarn, dual, sinks = (config for config, _ in seen)
  # The prompt's width is a multiple of 128; the answer is added to it.
  longest = len(seen[0][1][0])
  width = -(-longest // 128) * 128 + 6
  assert linear.rope.rope_type == 'linear'
  assert linear.rope.factor == yarn.rope.factor == width / WINDOW
  assert (dynamic.rope.rope_type, dynamic.rope.factor) == ('dynamic', 1.0)
  assert yarn.rope.original_max_position_embeddings == WINDOW
  assert dual.long_attention == DualChunkAttention(192)
  assert sinks.long_attention == SinkAttention(4)


@pytest.mark.parametrize('extension', one_turn.EXTENSIONS)
def test_a_text_within_the_window_is_read_plainly_beside_a_long_one(
  model, monkeypatch, extension
):
  method = make(extension=extension)
  short, long = example(letters(100)), example(letters(400))
  (alone,) = method.answer(model, [short], Progress()).results
  seen = watch(monkeypatch)
  first, _, third = method.answer(
    model, [short, long, short], Progress()
  ).results
  assert first == third == alone
  assert seen[0][0] == model.config
  # Every call has the whole batch's shape.
  assert [len(ids) for _, ids in seen] == [3] * (
    2 if extension != 'none' else 1
  )


def test_without_words_the_start_is_retrieved(model):
  for document, question in ((letters(400), '???'), ('!!! ... ' * 60, 'Who?')):
    ids = model.tokenizer.encode(document)
    found = one_turn.retrieve(model.tokenizer, ids, question, 16, 40)
    assert found and ids[: len(found)] == found


def test_a_model_with_its_own_scaling_is_not_scaled_again(model):
  scaled = dataclasses.replace(
    model,
    config=dataclasses.replace(
      model.config,
      rope=dataclasses.replace(
        model.config.rope, rope_type='linear', factor=2.0
      ),
    ),
  )
  with pytest.raises(ValueError, match="scaling of its own, 'linear'"):
    make(extension='yarn').answer(scaled, [example(letters(400))], Progress())


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'context': 'all'}, 'choose from full, recent, retrieved, none'),
    ({'extension': 'ntk'}, 'choose from none, linear'),
    ({'extension': 'yarn', 'context': 'recent'}, 'only a full context'),
  ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)


def test_a_prompt_without_room_names_the_example(model):
  with pytest.raises(ValueError, match='example x: a prompt of 20 tokens'):
    make(prompt_tokens=20).answer(model, [example('Text.')], Progress())
