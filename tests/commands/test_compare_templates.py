"""`experiments.compare_templates`: its needles, and a run that resumes."""

import json

import pytest

from memagent_jax.io import assets


@pytest.mark.slow
def test_wordings_are_measured_once_and_kept(
  run_command, tmp_path, tiny_model_dir
):
  out = tmp_path / 'templates.json'
  haystack = tmp_path / 'haystack.txt'
  haystack.write_text('It was a dark night. ' * 40, encoding='utf-8')

  def run(*flags):
    done = run_command(
      'compare_templates',
      f'--model={tiny_model_dir}',
      f'--haystack={haystack}',
      f'--out={out}',
      '--num_examples=3',
      '--batch=2',
      '--chunks=2',
      '--chunk_tokens=100',
      '--memory_tokens=24',
      '--answer_tokens=4',
      *flags,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  template = assets.template('quote')
  run(f'--template_file={template}')
  first = json.loads(out.read_text(encoding='utf-8'))
  assert list(first) == ['default', 'quote']
  assert [len(rows) for rows in first.values()] == [3, 3]
  assert all(len(row['in_memory']) == 2 for row in first['default'])
  printed = run(f'--template_file={template}')
  assert json.loads(out.read_text(encoding='utf-8')) == first
  assert '  3 of 3' not in printed and 'answer 0/3' in printed
