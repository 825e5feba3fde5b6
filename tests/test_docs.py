"""The pages are true: commands, gin, examples and links of README and docs/."""

import ast
import functools
import os
from pathlib import Path
import re
import runpy
import shlex
import subprocess
import sys

from absl import flags
import gin
import pytest

from memagent_jax.commands import cli, gin_files, runs

ROOT = Path(__file__).parents[1]
COMMANDS = ROOT / 'memagent_jax' / 'commands'
PAGES = [
  ROOT / 'README.md',
  *sorted((ROOT / 'docs').glob('*.md')),
  ROOT / 'experiments' / 'RUNS.md',
  ROOT / 'experiments' / 'launch' / 'README.md',
]
PLUGINS = sorted((ROOT / 'docs').glob('add-*.md'))
# The output of their examples, as patterns.
PRINTED = {
  'add-a-memory-rule': r'((kept|written) .*)+',
  'add-a-reward': r'12 Score\(value=1.0, .*\n260 Score\(value=0.9, .*\n',
  'add-a-task': r"\('birthdays/0/\d+', .*",
  'add-an-engine': r'\(3, 8\) 1 [\d.]+ s\n\n',
}
# Why commands that start with these words are not run.
NOT_RUN = {
  'python birthdays.py': 'the test of the example on its page runs it',
  'make demo': 'installs into .venv and trains for minutes',
  'make test': 'is this suite',
  'pip install': 'changes the environment',
  'hf download': 'fetches gigabytes',
  'memagent benchmark --suite': 'minutes each; needs torch or another venv',
  'memagent compare-templates': '15 minutes a wording',
  'memagent plan': 'four minutes a slice; tests/planning plans small runs',
  'memagent measure-retention': '0.6 hours; tests/evals measures few turns',
  'memagent make-data --task=ruler_hqa': 'fetches HotpotQA',
  'memagent make-data --task=hotpotqa': 'fetches HotpotQA, and needs a 7B model',
  'memagent make-data --upstream': 'needs a published file of gigabytes',
  'memagent make-data --task=niah_single_2 --tokens=524288': 'half a minute',
  'memagent import-weights --source=MODEL.gguf': 'a name in place of a file',
  'memagent train --gin_file=gin_configs/train/qwen2p5_7b_hotpotqa': 'needs TPUs',
  'memagent train --gin_file=gin_configs/train/tiny_warmup.gin': '4 hours',
  'memagent train --gin_file=gin_configs/train/tiny_full_context.gin': '1.3 hours',
  'memagent train --gin_file=gin_configs/train/supervised_jsonl.gin': (
    'loads SmolLM2; tests/sft trains on JSONL'
  ),
  'memagent evaluate --gin_file=gin_configs/eval/eval_tiny.gin': '11 hours',
  'memagent report --workdir=runs/eval_tiny': 'draws what was not run',
  'memagent evaluate --gin_file=gin_configs/eval/tiny_lengths': '0.5 hours',
  'memagent report --workdir=runs/tiny_lengths': 'draws what was not run',
  'memagent evaluate --gin_file=gin_configs/eval/eval_smollm2.gin': '2 hours',
  'memagent evaluate --gin_file=gin_configs/eval/eval_hotpotqa.gin': (
    'fetches HotpotQA'
  ),
  'memagent evaluate --gin_file=gin_configs/eval/eval_ruler_hqa.gin': (
    'fetches HotpotQA, and needs a 7B model'
  ),
  'memagent report --workdir=runs/eval_quick --compare': 'needs another run',
}
TINY = '--model=memagent-tiny'
ONE_STEP = (
  '--gin_bindings=STEPS = 1',
  '--gin_bindings=trainer.train.evaluators = []',
  '--gin_bindings=rollouts.RolloutConfig.documents_per_step = 2',
  '--gin_bindings=rollouts.RolloutConfig.rollouts = 2',
  # One program of every kind.
  '--gin_bindings=rollouts.RolloutConfig.width_shares = (1.0,)',
  '--gin_bindings=rollouts.RolloutConfig.micro_tokens = 1024',
)
# Flags, put after a command's own, that make it quick.
QUICK = {
  'ask': (
    *(TINY, '--chunk_tokens=128', '--memory_tokens=16', '--answer_tokens=8'),
    '--question_tokens=64',
  ),
  'tokenize-document': (TINY,),
  'make-data': ('--num_examples=2', '--tokens=1024', '--tokenizer=bytes'),
  'make-data --validate': (),
  'make-data --estimate': ('--tokenizer=bytes',),
  'train': ONE_STEP,
  'evaluate': (
    '--gin_bindings=grid.GridBlock.sizes = [256]',
    '--gin_bindings=grid.GridBlock.examples = 1',
  ),
  'evaluate --gin_file=own.gin': (
    '--gin_bindings=MODEL = "memagent-tiny"',
    # Its window is 1,024.
    '--gin_bindings=config.ReadingConfig.chunk_tokens = 128',
    '--gin_bindings=config.ReadingConfig.memory_tokens = 64',
  ),
  'report': (),
  'inspect-rollout': ('--gin_bindings=rollouts.RolloutConfig.rollouts = 2',),
  'compare-objectives': (),
  'training-curve': (),
}


@pytest.fixture(autouse=True)
def clean_gin():
  gin.clear_config(clear_constants=True)
  yield
  gin.clear_config(clear_constants=True)


# --- Contents of a page -------------------------------------------------------


def text_of(page: Path) -> str:
  return page.read_text(encoding='utf-8')


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
  """(title, text) of every fenced block of a language."""
  found = re.findall(
    rf'^```{language}(?: title="([^"]*)")?\n(.*?)^```$',
    text_of(page),
    re.M | re.S,
  )
  return [(title, text) for title, text in found]


def shell_lines(page: Path) -> list[str]:
  """The commands of a page's shell blocks, one per line."""
  return [
    line
    for language in ('bash', 'sh')
    for _, text in blocks(page, language)
    for line in text.replace('\\\n', ' ').splitlines()
    if line.strip()
  ]


def words(line: str) -> list[str]:
  """The words of a command, without comments and leading variables."""
  found = shlex.split(line, comments=True)
  while found and re.match(r'[A-Z_]+=', found[0]):
    del found[0]
  return found


def started(line: str) -> str:
  """The command without leading variables, with single spaces."""
  return ' '.join(words(line))


def memagent_commands(page: Path) -> list[list[str]]:
  """[name, flags...] of every `memagent` of a page, in blocks and in the text."""
  text = text_of(page)
  inline = re.findall(
    r'`([^`\n]*)`', re.sub(r'```.*?```', '', text, flags=re.S)
  )
  # Blocks without a language are read too: the launch files' page has them.
  bare = [
    line
    for _, block in blocks(page, '')
    for line in block.replace('\\\n', ' ').splitlines()
  ]
  found = []
  for line in [*shell_lines(page), *bare, *inline]:
    line = line.replace('python -m experiments.', 'memagent ')
    if not re.match(r'(?:[A-Z_]+=\S+ )*memagent [a-z]', line):
      continue
    name, *rest = words(line)[1:]
    rest = [word for word in rest if '...' not in word and '`' not in word]
    found.append([name.replace('-', '_'), *rest])
  return found


@functools.cache
def flags_of(command: str) -> flags.FlagValues:
  """The flags of a command, read from its source without starting it."""
  values = flags.FlagValues()
  names = [command]
  source = text_of(COMMANDS / f'{command}.py')
  if 'adopt_module_key_flags(runs)' in source:
    names.append('runs')
  for name in names:
    for node in ast.walk(ast.parse(text_of(COMMANDS / f'{name}.py'))):
      if not isinstance(node, ast.Call) or not isinstance(
        node.func, ast.Attribute
      ):
        continue
      if node.func.attr.startswith('DEFINE_'):
        define = getattr(flags, node.func.attr)
        given = []
        for argument in node.args:
          try:
            given.append(ast.literal_eval(argument))
          except ValueError:  # a computed default
            given.append(None)
        define(*given, flag_values=values)
  return values


# --- The default suite --------------------------------------------------------


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_every_command_and_flag_of_a_page_exists(page):
  for name, *given in memagent_commands(page):
    # `memagent NAME` stands for any command.
    if name != 'NAME':
      assert name in cli.COMMANDS, name
      values = flags_of(name)
      values.unparse_flags()
      assert values(['memagent', *given]) == ['memagent'], (name, given)


def test_commands_are_found_in_blocks_and_in_the_text():
  counts = {page.stem: len(memagent_commands(page)) for page in PAGES}
  # At least those of the front page, of every table of results, of long runs.
  assert counts['RUNS'] >= 15 and counts['results'] >= 15
  assert counts['training'] >= 10 and len(shell_lines(PAGES[0])) >= 8


def test_an_unknown_flag_is_found():
  with pytest.raises(flags.UnrecognizedFlagError):
    flags_of('train')(['memagent', '--wrokdir=a'])
  with pytest.raises(flags.IllegalFlagValueError):
    flags_of('ask')(['memagent', '--chunk_tokens=many'])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_flags_in_the_text_of_a_page_exist(page):
  known = {name for command in cli.COMMANDS for name in flags_of(command)} | {
    'help',
    'local-dir',
    'distributed',
  }
  got = re.findall(r'`--([a-z_]+)', text_of(page))
  assert set(got) - known == set()


def test_gin_files_of_the_pages_exist_and_take_the_bindings(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  save_blocks(tmp_path)
  seen = set()
  for page in PAGES:
    for name, *given in memagent_commands(page):
      values = dict.fromkeys(('gin_file', 'gin_bindings'), ())
      for flag in values:
        start = f'--{flag}='
        values[flag] = tuple(
          word.removeprefix(start) for word in given if word.startswith(start)
        )
      if not values['gin_file'] or values in [dict(s) for s in seen]:
        continue
      seen.add(tuple(values.items()))
      gin.clear_config(clear_constants=True)
      if name == 'compare_objectives':
        for file in values['gin_file']:
          gin.clear_config()
          runs.parse_files([file])
      else:
        runs.parse_files(values['gin_file'], values['gin_bindings'])
  assert len(seen) > 20


def save_blocks(folder: Path) -> dict[str, str]:
  """Writes the titled blocks of all pages to the files that they name."""
  saved = {}
  for page in PAGES:
    for language in ('python', 'gin', 'json'):
      for title, text in blocks(page, language):
        if title:
          assert saved.setdefault(title, text) == text, title
          (folder / title).write_text(text, encoding='utf-8')
  return saved


def test_gin_of_the_pages_is_read(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  save_blocks(tmp_path)
  count = 0
  for page in PAGES:
    for _, text in blocks(page, 'gin'):
      path = tmp_path / 'block.gin'
      path.write_text(text, encoding='utf-8')
      gin.clear_config(clear_constants=True)
      runs.parse_files([str(path)])
      count += 1
  assert count >= 8


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page):
  text = text_of(page)
  for name in re.findall(
    r'`((?:gin_configs|memagent_jax|tests|docs)/[^`*\s]*)`', text
  ):
    assert (ROOT / name).exists(), name
  # Files written by a run, and by readers of the pages.
  written = {'config', 'operative_config'} | titles()
  for name in set(re.findall(r'`(\w+)\.gin`', text)) - written:
    assert gin_files.find(name).is_file(), name


def titles() -> set[str]:
  """Stems of the files that readers of the pages write."""
  return {
    Path(title).stem
    for page in PAGES
    for title, _ in blocks(page, 'gin')
    if title
  }


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_between_files_lead_somewhere(page):
  for link in re.findall(r'\]\(([^)\s]+)\)', text_of(page)):
    path, _, anchor = link.partition('#')
    if '://' in link:
      continue
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
  """A page's headings as GitHub and the site turn them into anchors."""
  headings = re.findall(r'^#+ (.*)$', text_of(page), re.M)
  plain = [re.sub(r'[^\w\s-]', '', heading).strip() for heading in headings]
  return {re.sub(r'\s+', '-', heading).lower() for heading in plain}


@pytest.mark.parametrize(
  'page',
  [
    # Sampling with a temperature takes longest to compile.
    pytest.param(page, marks=pytest.mark.slow)
    if page.stem == 'add-an-engine'
    else page
    for page in PLUGINS
  ],
  ids=lambda page: page.stem,
)
def test_the_example_of_a_page_works(
  page, tiny_model_dir, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  ((title, code),) = blocks(page, 'python')
  assert len(code.splitlines()) < 40
  # The tests' model, in place of one that takes longer to compile.
  path = tmp_path / title
  path.write_text(code.replace("'memagent-tiny'", repr(str(tiny_model_dir))))
  runpy.run_path(str(path), run_name='__main__')
  printed = capsys.readouterr().out
  assert re.fullmatch(PRINTED[page.stem], printed, re.DOTALL), printed


@pytest.mark.slow
def test_the_snippets_of_reading_work(tiny_model_dir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path('novel.txt').write_text('The King wears the mask. \n' * 20)
  for page in (ROOT / 'README.md', ROOT / 'docs' / 'reading.md'):
    ((_, code),) = blocks(page, 'python')
    code = code.replace("'smollm2-135m'", repr(str(tiny_model_dir)))
    exec(compile(code, str(page), 'exec'), {})


def test_every_shell_command_is_run_or_says_why_not():
  unused = set(NOT_RUN)
  for page in PAGES:
    for line in shell_lines(page):
      reasons = {start for start in NOT_RUN if started(line).startswith(start)}
      unused -= reasons
      assert reasons or quick(line) is not None, line
  assert unused == set()


def quick(line: str) -> list[str] | None:
  """A command with the flags that make it quick; None if none are known."""
  command, *rest = words(line)
  if command == 'python' and len(rest) == 1:
    return [sys.executable, *rest]
  if command != 'memagent':
    return None
  keys = [key for key in QUICK if ' '.join(rest).startswith(key)]
  if not keys:
    return None
  return [
    sys.executable,
    '-m',
    'memagent_jax',
    *rest,
    *QUICK[max(keys, key=len)],
  ]


# --- Commands for real --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
  'page',
  [
    page
    for page in PAGES
    if any(
      not any(started(line).startswith(start) for start in NOT_RUN)
      for line in shell_lines(page)
    )
  ],
  ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_run_quickly(page, tmp_path):
  """One after another in one folder, as a reader would run them."""
  save_blocks(tmp_path)
  (tmp_path / 'own.jsonl').write_text(
    dict(blocks(ROOT / 'docs' / 'data.md', 'json'))['own.jsonl']
  )
  (tmp_path / 'huge.txt').write_text('The King wears the mask. \n' * 200)
  environment = os.environ | {
    'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}',
    # They spend more time compiling than computing.
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }
  for line in shell_lines(page):
    if any(started(line).startswith(start) for start in NOT_RUN):
      continue
    done = subprocess.run(
      quick(line),
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr[-3000:])
