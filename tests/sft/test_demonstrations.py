"""Batches of the curriculum: their content, which only depends on the step."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts
from memagent_jax.data.benchmarks import haystack
from memagent_jax.data.examples import Demonstration
from memagent_jax.sft import demonstrations
from memagent_jax.sft.demonstrations import Curriculum, EchoConfig, Mix, Stage
from memagent_jax.sft.skills import SkillConfig

TEMPLATE = prompts.Template(
  '{question}|{memory}|{chunk}:', '{question}|{memory}:', 'none'
)
FILLERS = (haystack.noise(),)
ANSWER = Mix(
  SkillConfig(shares=(('answer', 1.0),), uuid_share=0.5),
  batch_size=6,
  sequence_tokens=200,
  response_tokens=30,
)
EXTRACT = Mix(
  SkillConfig(shares=(('extract', 1.0),), max_chunk_chars=120, uuid_share=0.0),
  batch_size=3,
  sequence_tokens=300,
  response_tokens=60,
)
ECHO = Mix(
  EchoConfig(symbols=5, min_period=3, max_period=9),
  batch_size=40,
  sequence_tokens=32,
  response_tokens=31,
)
STAGES = (Stage(2, (ECHO,)), Stage(6, [ANSWER, EXTRACT]))


def curriculum(tokenizer, stages=STAGES, seed=0):
  return Curriculum(stages, TEMPLATE, tokenizer, FILLERS, seed)


def pairs(rows):
  """Prompt and response of every row, as lists of ids."""
  rows = jax.device_get(rows)
  return [
    (ids[:p].tolist(), ids[p : p + r].tolist())
    for ids, p, r in zip(
      rows.ids_NxS, rows.prompt_length_N, rows.response_length_N, strict=True
    )
  ]


# --- Encoding ----------------------------------------------------------------


@pytest.mark.parametrize('chunk', [None, ' the grass <|im_end|>'])
def test_a_demonstration_is_the_turn_that_sampling_sees(tiny_tokenizer, chunk):
  compiled = prompts.compile_template(TEMPLATE, tiny_tokenizer)
  made = Demonstration('hello?', ' the key', chunk, ' hell <|im_end|>')
  prompt, response = demonstrations.encode(compiled, tiny_tokenizer, made)
  encode = tiny_tokenizer.encode
  question, memory, read = (
    tokens_lib.pad_rows([encode(text or '')], 40)
    for text in (made.question, made.memory, chunk)
  )
  if chunk is None:
    expected = prompts.answer_prompt(compiled, question, memory)
  else:
    expected = prompts.memory_prompt(compiled, question, memory, read)
  ids, length = np.asarray(expected.ids_NxW[0]), int(expected.length_N[0])
  assert prompt == ids[:length].tolist()
  # Only the end that the code adds is a control id.
  (end,) = tiny_tokenizer.eos_ids
  assert response == [*encode(made.response), end]
  assert end not in response[:-1]


def test_empty_texts_take_no_tokens(tiny_tokenizer):
  compiled = prompts.compile_template(TEMPLATE, tiny_tokenizer)
  made = Demonstration('', '', '', 'x')
  prompt, _ = demonstrations.encode(compiled, tiny_tokenizer, made)
  assert len(prompt) == compiled.memory_turn_tokens


# --- Echo --------------------------------------------------------------------


def test_what_is_learned_of_an_echo_repeats_what_is_given(tiny_tokenizer):
  rows = pairs(curriculum(tiny_tokenizer).sequences(0))
  periods = set()
  for prompt, response in rows:
    # The prompt: one period, and the repeat's first id, which nothing predicts.
    period = len(prompt) - 1
    periods.add(period)
    whole = prompt + response
    assert response and len(whole) == ECHO.sequence_tokens
    assert whole[period:] == whole[:-period]
  assert periods == set(range(3, 10))


@pytest.mark.parametrize('symbols', [1, 5, 300])
def test_symbols_limit_the_alphabet_and_spare_control_ids(
  tiny_tokenizer, symbols
):
  content = dataclasses.replace(ECHO.content, symbols=symbols)
  stage = Stage(9, (dataclasses.replace(ECHO, content=content, batch_size=99),))
  made = curriculum(tiny_tokenizer, (stage,))
  seen = {
    i
    for step in range(2)
    for p, r in pairs(made.sequences(step))
    for i in p + r
  }
  assert tiny_tokenizer.control_ids == (262, 263, 264)
  # 269 ids, 3 of them control ids.
  assert not seen & set(tiny_tokenizer.control_ids)
  assert seen <= set(range(269))
  assert len(seen) == symbols if symbols < 300 else len(seen) > 250


def test_fewer_symbols_are_some_of_more(tiny_tokenizer):
  """So that a later stage adds ids to those already copied."""
  seen = []
  for symbols in (5, 20):
    content = EchoConfig(symbols, min_period=9, max_period=9)
    stage = Stage(9, (dataclasses.replace(ECHO, content=content),))
    rows = curriculum(tiny_tokenizer, (stage,)).sequences(0)
    seen.append({i for prompt, _ in pairs(rows) for i in prompt})
  assert seen[0] < seen[1]


def test_fresh_symbols_are_other_ones_in_every_row(tiny_tokenizer):
  content = dataclasses.replace(ECHO.content, fresh=True)
  stage = Stage(9, (dataclasses.replace(ECHO, content=content),))
  rows = pairs(curriculum(tiny_tokenizer, (stage,)).sequences(0))
  seen = [set(prompt + response) for prompt, response in rows]
  assert max(map(len, seen)) == 5
  # 40 rows with up to five of the 266 ids.
  assert len(set.union(*seen)) > 60
  assert not set.union(*seen) & set(tiny_tokenizer.control_ids)


# --- Curriculum --------------------------------------------------------------


def test_batches_follow_from_step_and_seed(tiny_tokenizer):
  one, two = curriculum(tiny_tokenizer), curriculum(tiny_tokenizer)
  other = curriculum(tiny_tokenizer, seed=1)
  earlier = None
  for step in (3, 0, 7, 5):
    rows = pairs(one.sequences(step))
    assert rows == pairs(two.sequences(step)) == pairs(one.sequences(step))
    assert rows != pairs(other.sequences(step)) and rows != earlier
    earlier = rows


def test_the_mixes_of_a_stage_take_turns_and_the_last_stage_goes_on(
  tiny_tokenizer,
):
  made = curriculum(tiny_tokenizer)
  assert made.num_steps == 6
  mixes = [made.mix(step) for step in (0, 1, 2, 3, 4, 99)]
  assert mixes == [ECHO, ECHO, ANSWER, EXTRACT, ANSWER, EXTRACT]
  for step, mix in ((1, ECHO), (2, ANSWER), (99, EXTRACT)):
    assert made.sequences(step).ids_NxS.shape == (
      mix.batch_size,
      mix.sequence_tokens,
    )


def test_what_does_not_fit_is_drawn_again(tiny_tokenizer):
  """A UUID's answer has more than 36 tokens, a number's 17 and the end."""
  for prompt, response in pairs(curriculum(tiny_tokenizer).sequences(2)):
    assert len(prompt) + len(response) <= 200
    text = tiny_tokenizer.decode(response[:-1])
    assert re.fullmatch(r' \\boxed\{ (\d{7}|none)\}', text)
    assert len(response) <= 30
  wide = dataclasses.replace(ANSWER, response_tokens=60, sequence_tokens=230)
  made = curriculum(tiny_tokenizer, (Stage(1, (wide,)),))
  assert max(len(response) for _, response in pairs(made.sequences(0))) > 36


def test_where_nothing_fits_the_mix_is_named(tiny_tokenizer):
  narrow = dataclasses.replace(EXTRACT, sequence_tokens=20, response_tokens=10)
  with pytest.raises(
    ValueError, match=r'0 fit into 20 .* response of 10; raise'
  ):
    curriculum(tiny_tokenizer, (Stage(1, (narrow,)),)).sequences(0)
  too_long = dataclasses.replace(ECHO.content, min_period=32, max_period=32)
  echo = dataclasses.replace(ECHO, content=too_long)
  with pytest.raises(ValueError, match='0 fit into 32'):
    curriculum(tiny_tokenizer, (Stage(1, (echo,)),)).sequences(0)


def test_bad_values_are_named(tiny_tokenizer):
  with pytest.raises(ValueError, match=r'end at steps \[6, 2\]'):
    curriculum(tiny_tokenizer, STAGES[::-1])
  with pytest.raises(ValueError, match=r'end at steps \[\]'):
    curriculum(tiny_tokenizer, ())
  with pytest.raises(ValueError, match=r'end at steps \[0\]'):
    curriculum(tiny_tokenizer, (Stage(0, (ECHO,)),))
  with pytest.raises(ValueError, match='has no mixes'):
    Stage(2, ())
  for tokens in (0, 9):
    with pytest.raises(
      ValueError, match=rf'{tokens} must .* sequence_tokens 9'
    ):
      dataclasses.replace(ANSWER, sequence_tokens=9, response_tokens=tokens)
  for period in (0, 40):
    with pytest.raises(ValueError, match=f'periods from {period} to 32'):
      EchoConfig(min_period=period)
  with pytest.raises(ValueError, match='symbols is 0'):
    EchoConfig(symbols=0)


# --- Accuracy and fillers ----------------------------------------------------


def test_accuracy_is_the_share_of_exact_responses():
  config = SkillConfig(shares=(('answer', 1.0),), absent_share=0.5)

  def encode(made):
    # The prompt says it all: a fake model can know the right response.
    return [ord(c) for c in made.memory], [*map(ord, made.response), -1]

  def respond(wrong, prompt_ids):
    responses = []
    for ids in prompt_ids:
      memory = ''.join(map(chr, ids))
      value = memory.split(': ')[-1].rstrip('.')
      right = [*map(ord, f' \\boxed{{ {value}}}'), -1]
      responses.append(wrong(right) if value == 'none' else right)
    return responses

  def measure(wrong, seed=0):
    return demonstrations.accuracy(
      lambda ids: respond(wrong, ids), encode, config, FILLERS, 40, seed
    )

  assert measure(lambda right: right) == 1.0
  # A response that ends too early, or not at all, is wrong.
  shares = [
    measure(wrong)
    for wrong in (lambda x: x[:-2] + x[-1:], lambda x: x[:-1], lambda x: [])
  ]
  assert 0.3 < shares[0] < 0.7 and len(set(shares)) == 1
  # A share of 40, the same ones at every call; the seed selects others.
  assert (shares[0] * 40).is_integer()
  others = {measure(lambda x: [], seed) for seed in range(5)}
  assert len(others) > 1


def test_fillers_are_the_noise_and_the_essays(tmp_path):
  (tmp_path / 'a.txt').write_text('It rained.\n\nNobody came.')
  assert demonstrations.fillers(()) == FILLERS
  noise, essay = demonstrations.fillers([tmp_path / 'a.txt'])
  assert noise == FILLERS[0]
  assert essay.text == 'It rained. Nobody came.'
