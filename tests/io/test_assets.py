"""Models, texts and wordings by name, and errors about unknown ones."""

import hashlib
from pathlib import Path
import subprocess
import sys

import pytest

from memagent_jax.data import text
from memagent_jax.data.benchmarks import haystack
from memagent_jax.io import assets
from memagent_jax.models import initial
from memagent_jax.models.weights import pretrained
from memagent_jax.planning import shapes

MODELS = ('memagent-tiny', 'memagent-tiny-full-context', 'memagent-tiny-warmup')
NOVELS = (
  'adventures_of_sherlock_holmes',
  'pride_and_prejudice',
  'tale_of_two_cities',
)


def test_what_ships():
  assert assets.models() == (*MODELS[:2], 'memagent-tiny-tokenizer', MODELS[2])
  assert assets.texts() == (
    *('adventures_of_sherlock_holmes', 'big_stone_gap'),
    *('demonstrations_example', 'pride_and_prejudice', 'tale_of_two_cities'),
  )
  assert assets.templates() == ('plain', 'question_last', 'quote')


@pytest.mark.parametrize('name', MODELS)
def test_a_shipped_model_is_whole(name):
  model = pretrained.load_model(name)
  assert model.name == name
  assert (model.config.embed_dim, model.tokenizer.vocab_size) == (128, 2048)
  assert shapes.config(name) == model.config


def test_the_models_differ_in_their_weights_alone():
  files = {
    name: hashlib.sha256(
      (assets.model(name) / 'model.safetensors').read_bytes()
    ).hexdigest()
    for name in MODELS
  }
  assert len(set(files.values())) == 3
  tokenizers = {
    (assets.model(name) / 'tokenizer.json').read_bytes()
    for name in assets.models()
  }
  assert len(tokenizers) == 1


def test_a_new_model_takes_a_shipped_tokenizer():
  config = pretrained.describe_model('memagent-tiny').config
  new = initial.new_model(config, 'memagent-tiny-tokenizer')
  assert new.tokenizer.vocab_size == 2048


@pytest.mark.parametrize('name', NOVELS)
def test_a_novel_is_filler_under_the_name_of_its_file(name):
  filler = haystack.essays(name)
  # Examples still name the file as the source of their text.
  assert filler.name == f'{name}.txt.gz'
  assert filler == haystack.essays(assets.text(name))
  assert len(filler.text) > 500_000


def test_a_path_wins_over_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = assets.text('big_stone_gap')
  assert shipped.is_absolute() and 'Big Stone Gap' in shipped.read_text()
  Path('big_stone_gap').write_text('Mine.')
  assert ''.join(text.read_pieces(assets.text('big_stone_gap'))) == 'Mine.'
  Path('memagent-tiny').mkdir()
  assert pretrained.resolve('memagent-tiny') == Path('memagent-tiny')
  assert assets.template(Path('big_stone_gap')) == Path('big_stone_gap')


def test_an_unknown_name_lists_the_known_ones():
  assert assets.model('memagent-huge') is None
  with pytest.raises(ValueError, match='smollm2-135m, memagent-tiny, memagent'):
    pretrained.resolve('memagent-huge')
  with pytest.raises(ValueError, match=r'ulysses: no such file; .* one of adv'):
    assets.text('ulysses')
  with pytest.raises(ValueError, match='one of plain, question_last, quote'):
    assets.template('fancy')


def test_it_is_found_without_loading_anything_else():
  code = (
    'import sys, memagent_jax.io.assets as a; a.texts();'
    'print(len([m for m in sys.modules if m.startswith("memagent_jax")]),'
    ' "numpy" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == '3 False\n'
