"""The stage that a step belongs to."""

from memagent_jax.rl import stages
from memagent_jax.rl.stages import Stage


def test_a_stage_ends_before_its_last_step():
  plan = (Stage(2), Stage(3, temperature=0.5), Stage())
  found = [stages.stage_at(plan, step) for step in range(5)]
  assert found == [0, 0, 1, 2, 2]
  assert [stages.stage_at((Stage(),), step) for step in (0, 10**6)] == [0, 0]


def test_a_stage_changes_nothing_by_default():
  assert Stage() == Stage(
    until_step=None,
    documents=None,
    temperature=None,
    distractor_memory_share=0.0,
  )
