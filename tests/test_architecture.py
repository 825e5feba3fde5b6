"""The floors of the house: imports go strictly downwards, as the pages state."""

import ast
from collections import defaultdict
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'memagent_jax'
# From the bottom up. A wing imports only from lower floors; `__init__` and
# `__main__` are the doors.
FLOORS = (
  ('structs', 'sharding', 'rewards', 'io'),
  ('tokens', 'models'),
  ('data',),
  ('sampling',),
  ('agent',),
  ('train',),
  ('rl', 'sft', 'evals'),
  ('planning',),
  ('commands',),
  ('__init__', '__main__'),
)
FLOOR = {wing: i for i, wings in enumerate(FLOORS) for wing in wings}


def module_name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob('*.py')}
PACKAGES = {
  '.'.join(path.relative_to(ROOT).parts)
  for path in PACKAGE.rglob('*')
  if path.is_dir()
}


def imported(path: Path) -> set[str]:
  """Modules of this package that a file imports, including within functions."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
      for alias in node.names:
        name = f'{node.module}.{alias.name}'
        found.add(name if name in MODULES or name in PACKAGES else node.module)
  return {name for name in found if name.split('.')[0] == 'memagent_jax'}


def wing(module: str) -> str:
  return (*module.split('.')[1:2], '__init__')[0]


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def test_every_module_stands_on_a_floor():
  assert {wing(name) for name in MODULES} == set(FLOOR)


def test_imports_go_strictly_downwards():
  climbs = [
    f'{name} -> {other}'
    for name, others in sorted(IMPORTS.items())
    for other in sorted(others)
    if wing(other) not in ('__init__', wing(name))
    and FLOOR[wing(other)] >= FLOOR[wing(name)]
  ]
  assert climbs == []


def folder(module: str) -> str:
  """The folder of a module; a module at the top is its own folder."""
  parts = module.split('.')[1:]
  return '/'.join(parts[:-1]) or parts[0]


def circles(edges: dict[str, set[str]]) -> list[str]:
  """Nodes that lie on a cycle."""
  found = []
  for start in sorted(edges):
    seen, open_nodes = set(), list(edges[start])
    while open_nodes:
      node = open_nodes.pop()
      if node not in seen:
        seen.add(node)
        open_nodes += edges.get(node, ())
    if start in seen:
      found.append(start)
  return found


def test_there_is_no_circle_between_folders():
  edges = defaultdict(set)
  for name, others in IMPORTS.items():
    for other in others & set(MODULES):
      if folder(other) != folder(name):
        edges[folder(name)].add(folder(other))
  assert circles(edges) == []


def test_there_is_no_circle_between_modules():
  assert (
    circles({name: others & set(MODULES) for name, others in IMPORTS.items()})
    == []
  )


def test_a_circle_is_found():
  assert circles({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c']


def wings_of_table(text: str, heading: str) -> list[tuple[str, ...]]:
  """The second column of the table after a heading, from the floors' rows."""
  rows = re.findall(r'^\| \d+ \|([^|]*)\|', text.split(heading)[1], re.M)
  return [tuple(re.findall(r'`([\w/]+?)/?`', row)) for row in rows]


@pytest.mark.parametrize(
  ('page', 'heading'),
  [('docs/design.md', '## The house'), ('README.md', '## Design')],
)
def test_the_pages_have_the_same_floors(page, heading):
  text = (ROOT / page).read_text(encoding='utf-8')
  # The doors are not wings.
  assert wings_of_table(text, heading) == list(FLOORS[:-1])
