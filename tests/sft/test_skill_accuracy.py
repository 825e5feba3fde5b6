"""Single turns: the share correct to the token, whatever the batch."""

import re

import numpy as np
import pytest

from memagent_jax.agent import prompts
from memagent_jax.sft import skill_accuracy
from memagent_jax.sft.skill_accuracy import SkillAccuracy
from memagent_jax.sft.skills import SkillConfig
from tests import tiny_runs


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def test_accuracy_is_the_share_of_exact_responses(
  model, tiny_tokenizer, tmp_path
):
  """The model copies the memory's value unless it begins with 1 to 4."""
  asked = []

  def respond(config, control_ids, rows, tokens, params, prompt_ids):
    assert params == {'w': 1} and rows == 8 and tokens == 50
    values = [
      re.search(r'is: (\S+)\.: ', tiny_tokenizer.decode(ids))[1]
      for ids in prompt_ids
    ]
    asked.append(values)
    eos = tiny_tokenizer.eos_ids[0]
    return [
      [*tiny_tokenizer.encode(f' \\boxed{{ {value}}}'), eos][value[0] < '5' :]
      for value in values
    ]

  measure = SkillAccuracy(
    model,
    tmp_path,
    template=tiny_runs.TEMPLATE,
    skills={
      'answer': SkillConfig(shares=[('answer', 1.0)], absent_share=0.0),
    },
    essays=[],
    count=40,
    batch_size=8,
    response_tokens=50,
    respond=respond,
  )
  (first, again) = (measure({'w': 1}, step) for step in (0, 5))
  share = np.mean([value[0] >= '5' for value in asked[0]])
  assert first == again == {'accuracy/answer': pytest.approx(share)}
  assert 0.2 < share < 0.8
  assert asked[0] == asked[1] and len(set(asked[0])) == 40


@pytest.mark.slow
def test_responses_do_not_depend_on_the_batch(model, tiny_tokenizer):
  compiled = prompts.compile_template(tiny_runs.TEMPLATE, tiny_tokenizer)
  start = list(compiled.memory_turn[0])
  asked = [start + tiny_tokenizer.encode('x' * n) for n in (1, 9, 30, 4, 60)]

  def respond(rows):
    return skill_accuracy.greedy_responses(
      model.config, tiny_tokenizer.control_ids, rows, 6, model.params, asked
    )

  one_by_one = respond(1)
  assert respond(2) == one_by_one
  assert len(one_by_one) == 5 and len(set(map(tuple, one_by_one))) > 2
  for ids in one_by_one:
    ended = ids[-1] in tiny_tokenizer.control_ids
    assert len(ids) == 6 or ended
