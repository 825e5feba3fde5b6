"""Mixes of files: each line equally often, in an order set by step and seed."""

import hashlib
import json
import random

import numpy as np
import pytest

from memagent_jax.agent import prompts
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.model import Model
from memagent_jax.sft.demonstrations import Curriculum, FileConfig, Mix, Stage
from memagent_jax.sft.skills import SkillConfig
from memagent_jax.sft.supervision import Demonstrations

TEMPLATE = prompts.Template(
  '{question}|{memory}|{chunk}:', '{question}|{memory}:', 'none'
)
COUNT = 5
SKILLS = Mix(
  SkillConfig(shares=(('answer', 1.0),)),
  batch_size=2,
  sequence_tokens=220,
  response_tokens=60,
)


@pytest.fixture
def path(tmp_path):
  """Five lines, every second one an answer; line n has the response n."""
  path = tmp_path / 'turns.jsonl'
  rows = [
    {'question': 'q', 'memory': 'm', 'response': str(n)}
    | ({'chunk': 'c'} if n % 2 else {})
    for n in range(COUNT)
  ]
  # Blank lines count as lines, not as demonstrations.
  path.write_text('\n\n'.join(map(json.dumps, rows)))
  return path


def mix(path, batch_size=2, shuffle=True, **kwargs):
  sizes = {'sequence_tokens': 60, 'response_tokens': 4} | kwargs
  return Mix(FileConfig(str(path), shuffle), batch_size=batch_size, **sizes)


def curriculum(tokenizer, *stages, seed=0):
  return Curriculum(stages, TEMPLATE, tokenizer, (), seed)


def lines(tokenizer, rows):
  """The numbers that are the responses."""
  ids, prompt, response = (
    np.asarray(x)
    for x in (rows.ids_NxS, rows.prompt_length_N, rows.response_length_N)
  )
  assert (response == 2).all()  # a digit and the end
  return [
    int(tokenizer.decode(row[p : p + r]))
    for row, p, r in zip(ids, prompt, response, strict=True)
  ]


def test_a_row_is_the_turn_and_its_end(tiny_tokenizer, path):
  made = curriculum(tiny_tokenizer, Stage(1, [mix(path, 2, shuffle=False)]))
  rows = made.sequences(0)
  texts = [
    ''.join(tiny_tokenizer.token_text(i) for i in row[: p + r])
    for row, p, r in zip(
      np.asarray(rows.ids_NxS),
      rows.prompt_length_N,
      rows.response_length_N,
      strict=True,
    )
  ]
  start = '<|im_start|>user\n'
  # The chat format of `tiny_tokenizer`, thinking off.
  end = '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n'
  assert texts == [
    f'{start}q|m:{end}0<|im_end|>',
    f'{start}q|m|c:{end}1<|im_end|>',
  ]


def test_every_line_comes_once_an_epoch(tiny_tokenizer, path):
  made = curriculum(tiny_tokenizer, Stage(10, [mix(path)]))
  drawn = [
    n for step in range(10) for n in lines(tiny_tokenizer, made.sequences(step))
  ]
  epochs = [drawn[i : i + COUNT] for i in range(0, 20, COUNT)]
  assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
  # A batch continues into the next epoch, which has another order.
  assert len({tuple(epoch) for epoch in epochs}) > 1
  for epoch, drawn in enumerate(epochs):
    # Resumed runs rely on this seed, 'epoch/SEED/EPOCH'.
    seed = hashlib.sha256(f'epoch/0/{epoch}'.encode()).digest()
    order = list(range(COUNT))
    random.Random(int.from_bytes(seed, 'big')).shuffle(order)
    assert drawn == order


def test_another_seed_is_another_order(tiny_tokenizer, path):
  orders = [
    lines(
      tiny_tokenizer,
      curriculum(
        tiny_tokenizer, Stage(1, [mix(path, batch_size=20)]), seed=seed
      ).sequences(0),
    )
    for seed in (0, 1)
  ]
  assert orders[0] != orders[1]


def test_without_shuffling_the_order_is_that_of_the_file(tiny_tokenizer, path):
  made = curriculum(tiny_tokenizer, Stage(3, [mix(path, 4, shuffle=False)]))
  drawn = [
    n for s in range(3) for n in lines(tiny_tokenizer, made.sequences(s))
  ]
  assert drawn == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_stages_and_mixes_go_through_a_file_together(tiny_tokenizer, path):
  """Rows of earlier steps count, however stages divide the steps."""
  wide = mix(path, 3, shuffle=False, sequence_tokens=80)
  narrow = mix(path, 1, shuffle=False)
  made = curriculum(
    tiny_tokenizer,
    Stage(4, [SKILLS, narrow]),
    Stage(9, [narrow, wide, SKILLS]),
    Stage(10, [wide]),
  )
  drawn, expected = [], []
  for step in range(13):  # the last stage continues
    chosen = made.mix(step)
    if chosen is not SKILLS:
      drawn.append(lines(tiny_tokenizer, made.sequences(step)))
      expected.append(chosen.batch_size)
  assert [len(batch) for batch in drawn] == expected
  assert set(expected) == {1, 3}
  together = [n for batch in drawn for n in batch]
  assert together == [i % COUNT for i in range(len(together))]


def test_two_files_do_not_count_for_one_another(tiny_tokenizer, path, tmp_path):
  other = tmp_path / 'other.jsonl'
  other.write_text(path.read_text())
  made = curriculum(
    tiny_tokenizer,
    Stage(9, [mix(path, 2, shuffle=False), mix(other, 3, shuffle=False)]),
  )
  drawn = [lines(tiny_tokenizer, made.sequences(s)) for s in range(4)]
  assert drawn == [[0, 1], [0, 1, 2], [2, 3], [3, 4, 0]]


@pytest.fixture
def source(tiny_tokenizer):
  """Makes the source of a run; a new one for every process."""
  config = ModelConfig(
    'llama', 269, 16, 1, 2, 1, 8, 24, 512, 1e-5, RopeConfig()
  )

  def make(path, seed=3):
    return Demonstrations(
      Model('tiny', config, {}, tiny_tokenizer),
      stages=[Stage(3, [mix(path), SKILLS]), Stage(9, [mix(path, 3)])],
      template=TEMPLATE,
      seed=seed,
    )

  return make


def trained(source, step):
  """The real rows of a step."""
  ((batch,),) = source.next(step, {}).mini_batches
  return np.asarray(batch.sequences.ids_NxS), np.asarray(
    batch.sequences.prompt_length_N
  )


@pytest.mark.parametrize('stopped_at', [0, 1, 2, 5, 8])
def test_a_resumed_run_goes_on_exactly(source, path, stopped_at):
  straight = source(path)
  expected = [trained(straight, step) for step in range(9)]
  stopped = source(path)
  for step in range(stopped_at):
    trained(stopped, step)
  state = json.loads(json.dumps(stopped.state()))
  resumed = source(path)
  resumed.restore(state)
  for step in range(stopped_at, 9):
    for got, wanted in zip(trained(resumed, step), expected[step], strict=True):
      np.testing.assert_array_equal(got, wanted)


def test_a_file_that_changed_is_refused(source, path):
  state = source(path).state()
  path.write_text(path.read_text().replace('"0"', '"9"'))
  with pytest.raises(ValueError, match=r'turns\.jsonl: SHA-256 is \w{64}; the'):
    source(path).restore(state)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ((77, 9), None),
    ((76, 9), 'line: got 68 + 9 = 77 tokens; expected at most 76, the sequ'),
    ((77, 8), 'response: got 9 tokens, its end included; expected at most 8, '),
  ],
)
def test_what_does_not_fit_names_the_line_and_both_numbers(
  tiny_tokenizer, path, sizes, message
):
  # 8 letters and the end. The prompt has 1 + 40 tokens in fields, 2 of the
  # template, and 6 + 19 of the chat format before and after it.
  row = {'question': 'q', 'memory': 'm' * 40, 'response': 'abcdefgh'}
  path.write_text(path.read_text() + '\n\n' + json.dumps(row))
  sequence_tokens, response_tokens = sizes
  short = mix(
    path, sequence_tokens=sequence_tokens, response_tokens=response_tokens
  )
  # Even if the mix with the short caps comes late.
  stages = [Stage(1, [mix(path, sequence_tokens=200, response_tokens=20)])]
  stages.append(Stage(2, [SKILLS, short]))
  if message is None:
    curriculum(tiny_tokenizer, *stages)
    return
  with pytest.raises(ValueError) as e:
    curriculum(tiny_tokenizer, *stages)
  assert str(e.value).startswith(f'{path}:11: {message}')


def test_a_wrong_line_is_an_error_at_the_start(source, path):
  path.write_text(path.read_text() + '\n{"question": 1}')
  with pytest.raises(
    ValueError, match=r'turns\.jsonl:10: question: got 1; exp'
  ):
    source(path)
