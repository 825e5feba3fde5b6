"""`experiments.inspect_rollout` as a user runs it, on a random model."""

from pathlib import Path
import re
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[2]

GIN = """
from __gin__ import dynamic_registration
import memagent_jax.data.benchmarks.needle_documents as needle_documents
import memagent_jax.rl.rollouts as rollouts
import memagent_jax.models.weights.pretrained as pretrained
import memagent_jax.agent.config as config

include 'gin_configs/train/tiny_grpo.gin'

pretrained.load_model.name_or_dir = 'none'
CHUNK_TOKENS = 700
config.ReadingConfig.memory_tokens = 12
config.ReadingConfig.answer_tokens = 8
config.ReadingConfig.question_tokens = 120
learned/needle_documents.needle_documents.tasks_and_rates = {'niah_single_2': 1.0}
learned/needle_documents.needle_documents.essays = ['ESSAY']
learned/needle_documents.needle_documents.chunks = 2
rollouts.RolloutConfig.documents_per_step = 2
rollouts.RolloutConfig.rollouts = 3
"""


@pytest.fixture
def run(tmp_path, tiny_model_dir):
  essay = tmp_path / 'essay.txt'
  essay.write_text('It rained. Nobody came to see. ' * 99)
  gin_file = tmp_path / 'run.gin'
  gin_file.write_text(GIN.replace('ESSAY', str(essay)))

  def inspect(*flags, code=0):
    command = [sys.executable, '-m', 'experiments.inspect_rollout']
    done = subprocess.run(
      [*command, f'--gin_file={gin_file}', *flags],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == code, done.stderr
    assert 'Traceback' not in done.stderr
    return done

  inspect.model = f'--model={tiny_model_dir}'
  return inspect


@pytest.mark.slow
def test_a_trajectory_is_shown_turn_by_turn(run):
  done = run(run.model, '--document_index=1', '--rollout=2')
  assert 'sampling 2 documents, 3 rollouts each' in done.stderr
  lines = done.stdout.splitlines()
  assert max(map(len, lines)) <= 100
  headings = [line for line in lines if line.endswith('──')]
  assert re.match(r'document niah_single_2/\S+, rollout 2 ─', headings[0])
  kinds = [
    re.match(
      r'turn (\d) of 3: (\w+), \d+ tokens read, \d+ written, finish (eos|len)',
      line,
    ).groups()[:2]
    for line in headings[1:-1]
  ]
  assert kinds == [('1', 'memory'), ('2', 'memory'), ('3', 'answer')]
  assert headings[-1].startswith('verdict ─')
  fields = [line[:13].strip() for line in lines if line[:13].strip()]
  turn = ['prompt', 'memory before', 'memory after', 'ratio']
  shown = [f for f in fields if f in {*turn, 'memory', 'answer', 'question'}]
  last = ['prompt', 'memory', 'answer', 'ratio']
  assert shown == ['question', *turn, *turn, *last, 'answer', 'ratio']
  # A random model answers nothing correctly, so no rollout has an advantage.
  end = '\n'.join(lines[lines.index(headings[-1]) :])
  assert re.search(r"right answers +'\d{7}'", end)
  assert re.search(r'reward +0\.000 by boxed_em', end)
  assert re.search(r'metric +0\.000 by \w+', end)
  assert re.search(r'group +0\.00 0\.00 \[0\.00\], mean 0\.000', end)
  assert 'advantage      +0.0000 for every token of its 3 turns; the' in end
  low, high = re.search(
    r'min (\S+), mean \S+, max (\S+) of \d+ tok', end
  ).groups()
  assert 0.999 < float(low) <= float(high) < 1.001


@pytest.mark.slow
def test_long_texts_are_cut_but_with_full(run):
  """A chunk of 700 bytes makes a prompt of about 800 characters."""
  cut, full = (run(run.model, *flags).stdout for flags in ([], ['--full']))
  gaps = re.findall(r'\[\.\.\.\s+(\d+)\s+characters\s+\.\.\.\]', cut)
  # Only the prompts of both memory turns; questions and memories are short.
  assert len(gaps) == 2 and all(150 < int(gap) < 600 for gap in gaps)
  assert '[...' not in full
  sizes = [len(''.join(text.split())) for text in (cut, full)]
  assert sizes[1] - sizes[0] > sum(map(int, gaps)) / 2
  # The ratio of every token written.
  written = sum(map(int, re.findall(r'(\d+) written, finish', full)))
  ratios = re.findall(r'[\'"]\d\.\d{6}', ''.join(full.split()))
  assert len(ratios) == written > 0


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--gin_bindings=rollouts.RolloutConfig.rollout = 2'],
      r"error: .*doesn't have a parameter named 'rollout'",
    ),
    pytest.param(
      [],
      "error: model 'none': no such name or path; ",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      [
        'MODEL',
        '--gin_file=gin_configs/train/supervised_jsonl.gin',
        '--gin_bindings=demonstrations.Mix.sequence_tokens = 2000',
        '--gin_bindings=demonstrations.Mix.response_tokens = 200',
      ],
      "error: the run's source is Demonstrations, which samples nothing; exp",
      marks=pytest.mark.slow,
    ),
  ],
)
@pytest.mark.slow
def test_what_is_wrong_is_one_line(run, flags, message):
  flags = [run.model if flag == 'MODEL' else flag for flag in flags]
  done = run(*flags, code=1)
  assert re.search(message, done.stderr)
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('error: ')]
  assert done.stderr.endswith(line + '\n') and not done.stdout
