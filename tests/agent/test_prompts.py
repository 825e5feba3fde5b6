"""Templates, their pieces, and the assembly of ragged rows from ids."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import prompts
from memagent_jax.agent.prompts import Template
from memagent_jax.structs import Tokens
from memagent_jax.tokens import pad_rows

TEMPLATE = Template(
  memory_turn='Q {question} M {memory} C {chunk} go \\boxed{}',
  answer_turn='Q {question} M {memory} in \\boxed{}',
  empty_memory='none',
)


def _ids(tokens, row):
  return np.asarray(tokens.ids_NxW)[row, : int(tokens.length_N[row])].tolist()


def test_assembled_ids_are_pieces_and_fields_end_to_end(tiny_tokenizer):
  compiled = prompts.compile_template(TEMPLATE, tiny_tokenizer)
  question = pad_rows([[1, 2], [3]], 4)
  memory = pad_rows([[], [4, 5, 6]], 3)
  chunk = pad_rows([[7, 8, 9], []], 3)
  got = jax.jit(prompts.memory_prompt, static_argnums=0)(
    compiled, question, memory, chunk
  )
  encode = tiny_tokenizer.encode_template
  for row, (q, m, c) in enumerate(
    [([1, 2], [], [7, 8, 9]), ([3], [4, 5, 6], [])]
  ):
    expected = (
      encode('<|im_start|>user\nQ ')
      + q
      + encode(' M ')
      + m
      + encode(' C ')
      + c
      + encode(
        ' go \\boxed{}<|im_end|>\n<|im_start|>assistant\n'
        '<think>\n\n</think>\n\n'
      )
    )
    assert _ids(got, row) == expected
  fields = 2 + 0 + 3
  assert len(_ids(got, 0)) == compiled.memory_turn_tokens + fields


def test_no_memory_has_ids_as_in_the_template_and_behind_a_space(
  tiny_tokenizer,
):
  compiled = prompts.compile_template(TEMPLATE, tiny_tokenizer)
  for ids, text in (
    (compiled.empty_memory, 'none'),
    (compiled.spaced_empty_memory, ' none'),
  ):
    assert tiny_tokenizer.decode(ids) == text


def test_arbitrary_padding_is_inert(tiny_tokenizer):
  compiled = prompts.compile_template(TEMPLATE, tiny_tokenizer)
  short = Tokens(jnp.array([[5, 99, 99]]), jnp.array([1]))
  clean = Tokens(jnp.array([[5, 0, 0]]), jnp.array([1]))
  one = prompts.answer_prompt(compiled, short, short)
  two = prompts.answer_prompt(compiled, clean, clean)
  np.testing.assert_array_equal(one.ids_NxW, two.ids_NxW)
  np.testing.assert_array_equal(one.length_N, two.length_N)


def test_a_document_never_becomes_a_control_token(tiny_tokenizer):
  text = 'a <|im_end|> b <think>'
  assert not set(tiny_tokenizer.encode(text)) & {262, 263, 264, 265, 266}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'memory_turn': 'Q {question} C {chunk}'}, r'\{memory\} 0 times'),
    ({'answer_turn': '{question} {memory} {memory}'}, r'\{memory\} 2 times'),
    (
      {'answer_turn': '{question} {memory} {chunk}'},
      r"unknown fields \['chunk",
    ),
    ({'empty_memory': ' '}, 'empty_memory is blank'),
  ],
)
def test_a_wrong_template_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TEMPLATE, **change)


def test_other_fields_are_the_memory_rules(tiny_tokenizer):
  template = dataclasses.replace(
    TEMPLATE, memory_turn='{question}{memory}{chunk}{page}'
  )
  with pytest.raises(ValueError, match=r"unknown fields \['page'\]"):
    prompts.compile_template(template, tiny_tokenizer)
  fields = ('question', 'memory', 'chunk', 'page')
  compiled = prompts.compile_template(template, tiny_tokenizer, fields)
  assert [p for p in compiled.memory_turn if isinstance(p, str)] == list(fields)
  with pytest.raises(ValueError, match=r'\{page\} 0 times'):
    prompts.compile_template(TEMPLATE, tiny_tokenizer, fields)


def test_template_files(tmp_path):
  path = tmp_path / 't.json'
  path.write_text(json.dumps(dataclasses.asdict(TEMPLATE)))
  assert prompts.read_template(path) == TEMPLATE
  path.write_text(json.dumps({'memory_turn': 'x'}))
  with pytest.raises(ValueError, match="expected \\['answer_turn'"):
    prompts.read_template(path)
  path.write_text('{')
  with pytest.raises(ValueError, match=r't\.json'):
    prompts.read_template(path)
  wrong = dataclasses.asdict(TEMPLATE) | {'empty_memory': 3}
  path.write_text(json.dumps(wrong))
  with pytest.raises(ValueError, match='empty_memory is int; expected text'):
    prompts.read_template(path)


def test_a_row_over_its_width_is_refused():
  with pytest.raises(ValueError, match='row 1 has 3 tokens; the cap is 2'):
    pad_rows([[1], [1, 2, 3]], 2)


@pytest.mark.parametrize(
  ('row', 'kept'),
  [
    ([1, 8, 5, 9, 2], [1, 2]),  # a whole span
    ([8, 9, 1, 8, 7, 9, 2], [1, 2]),  # two spans, one of them empty
    ([1, 8, 5, 5], [1]),  # never closed: cut while thinking
    ([1, 9, 2], [1, 2]),  # a closing mark alone
    ([1, 2], [1, 2]),
  ],
)
def test_thinking_is_stripped(row, kept):
  # Beyond the row's length there are marks too, which must not count.
  tokens = Tokens(
    jnp.array([[*row, 8, 1, 9][:8]]), jnp.array([len(row)], jnp.int32)
  )
  gone = tokens_lib.thinking_span(tokens, (8, 9))
  got = tokens_lib.drop_tokens(tokens, gone)
  assert _ids(got, 0) == kept
  assert int(gone.sum()) == len(row) - len(kept)
