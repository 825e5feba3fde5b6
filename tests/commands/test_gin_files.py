"""Gin files by path, by shipped name, and by bare name."""

from pathlib import Path

import pytest

from memagent_jax.commands import gin_files

ROOT = Path(__file__).parents[2]


def test_bare_names_are_unique():
  stems = [Path(file).stem for file in gin_files.shipped()]
  assert len(set(stems)) == len(stems) > 30


@pytest.mark.parametrize(
  'name',
  ['gin_configs/train/tiny_grpo.gin', 'tiny_grpo', 'tiny_grpo.gin'],
)
def test_a_shipped_file_is_found_from_any_folder(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert gin_files.find(name) == ROOT / 'gin_configs/train/tiny_grpo.gin'
  with gin_files.open_found(name) as file:
    assert 'trainer.train' in file.read()


def test_a_file_of_ones_own_wins(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  mine = Path('gin_configs/train/tiny_grpo.gin')
  mine.parent.mkdir(parents=True)
  mine.write_text('')
  assert gin_files.find(mine) == mine
  assert gin_files.find(mine.absolute()) == mine.absolute()
  # A bare name is not a path to it.
  assert gin_files.find('tiny_grpo') == ROOT / mine


@pytest.mark.parametrize(
  ('name', 'meant'),
  [
    # Former paths, and misspelt names.
    ('gin_configs/runs/tiny_grpo.gin', 'did you mean gin_configs/train/tiny_g'),
    ('gin_configs/runs/eval_quick.gin', 'did you mean gin_configs/eval/eval_q'),
    (
      'gin_configs/train/tiny_gpro.gin',
      'did you mean gin_configs/train/tiny_g',
    ),
    ('tiny_gpro', 'did you mean gin_configs/train/tiny_grpo.gin?'),
    ('mine/paper', 'did you mean gin_configs/objectives/paper.gin?'),
    ('zzz.gin', 'expected a path, or one of '),
  ],
)
def test_the_nearest_file_is_named(name, meant):
  with pytest.raises(ValueError) as e:
    gin_files.find(name)
  assert str(e.value).startswith(f"gin file '{name}': no such file; {meant}")
