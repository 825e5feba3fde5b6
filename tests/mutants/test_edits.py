"""The list of bugs matches today's code, and tests that exist."""

import ast
import functools
from pathlib import Path

import pytest

from tests.mutants import run
from tests.mutants.edits import EDITS

ROOT = Path(__file__).parents[2]


@functools.cache
def functions(path: str) -> set[str]:
  tree = ast.parse((ROOT / path).read_text(encoding='utf-8'))
  return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize('edit', EDITS, ids=lambda edit: edit.bug)
def test_an_edit_is_of_todays_code_and_its_tests_exist(edit):
  text = (ROOT / edit.file).read_text(encoding='utf-8')
  changed = run.mutated(text, edit)
  assert changed != text
  ast.parse(changed)
  assert edit.tests
  for test in edit.tests:
    path, _, name = test.partition('::')
    assert name.partition('[')[0] in functions(path), test


def test_bugs_are_many_and_no_two_alike():
  assert len(EDITS) >= 60
  assert len({edit.bug for edit in EDITS}) == len(EDITS)
  assert len({(e.file, e.before, e.after) for e in EDITS}) == len(EDITS)


def test_a_text_that_is_not_there_once_is_named():
  edit = EDITS[0]
  with pytest.raises(ValueError, match=rf'{edit.bug}: .* has 0 times '):
    run.mutated('', edit)
  with pytest.raises(ValueError, match=r'has 2 times .* expected 1'):
    run.mutated(edit.before * 2, edit)
