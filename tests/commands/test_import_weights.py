"""The import command: what it writes, verifies and refuses."""

from pathlib import Path
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from memagent_jax.commands import import_weights
from memagent_jax.io import downloads
from memagent_jax.models.weights import huggingface
from tests.models.weights.gguf_files import (
  WITH_TOKENIZER,
  tensors_of,
  write,
  write_with_tokenizer,
)


@pytest.fixture(scope='module')
def gguf_path(tmp_path_factory):
  return write_with_tokenizer(tmp_path_factory.mktemp('gguf') / 'tiny.gguf')


def run(source, out, dtype='float32'):
  """The lines printed by the command."""
  lines = []
  import_weights.import_weights(str(source), str(out), dtype, lines.append)
  return lines


@pytest.mark.parametrize('dtype', huggingface.DTYPES)
def test_imports_gguf_then_its_own_output(tmp_path, gguf_path, dtype):
  first, second = tmp_path / 'first', tmp_path / 'second'
  lines = run(gguf_path, first, dtype)
  stored = safetensors.numpy.load_file(first / 'model.safetensors')
  for name, tensor in tensors_of(WITH_TOKENIZER).items():
    np.testing.assert_array_equal(
      stored[name], tensor.astype(jnp.dtype(dtype)), strict=True
    )
  # 2 layers of 9 tensors each, an embedding and a norm.
  parameters = sum(t.size for t in tensors_of(WITH_TOKENIZER).values())
  (summary,) = [line for line in lines if ' tensors, ' in line]
  assert f'llama, 20 tensors, {parameters:,} parameters, {dtype}' in summary
  assert any('260 tokens' in line for line in lines)
  sha = downloads.sha256(first / 'model.safetensors')
  assert lines[-1] == f'model.safetensors: sha256 {sha}'

  run(first, second, dtype)
  for path in first.iterdir():
    assert (second / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_flipped_bit_in_what_was_written_is_found(
  tmp_path, gguf_path, monkeypatch
):
  save = huggingface.save_model

  def save_badly(directory, *args):
    save(directory, *args)
    file = directory / 'model.safetensors'
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

  monkeypatch.setattr(huggingface, 'save_model', save_badly)
  with pytest.raises(ValueError, match=r'tensor model\.\S+ differs from the s'):
    run(gguf_path, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.filterwarnings('ignore:overflow encountered')
def test_a_value_beyond_the_dtype_is_refused(tmp_path, tiny_tokenizer):
  tensors = tensors_of(WITH_TOKENIZER)
  tensors['model.norm.weight'][3] = 1e6  # float16 ends at 65504
  params = huggingface.params_from_tensors(WITH_TOKENIZER, tensors.__getitem__)
  source = tmp_path / 'source'
  huggingface.save_model(source, WITH_TOKENIZER, params, tiny_tokenizer)
  with pytest.raises(
    ValueError, match=r'model\.norm\.weight has values that are not finite'
  ):
    run(source, tmp_path / 'out', 'float16')
  assert not (tmp_path / 'out').exists()
  run(source, tmp_path / 'out', 'bfloat16')


def test_an_occupied_directory_is_refused_before_any_work(tmp_path):
  (tmp_path / 'mine').write_text('')
  with pytest.raises(ValueError, match='not an empty directory'):
    run('no such source', tmp_path)


def test_the_command_line(tmp_path):
  # With one tensor missing, the message is one line without a traceback.
  tensors = tensors_of(WITH_TOKENIZER)
  del tensors['model.norm.weight']
  path = write(tmp_path / 'm.gguf', WITH_TOKENIZER, tensors)

  def command(*args):
    return subprocess.run(
      [sys.executable, '-m', 'experiments.import_weights', *args],
      cwd=Path(__file__).parents[2],
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  failed = command(f'--source={path}', f'--out={tmp_path / "out"}')
  assert failed.returncode == 1
  assert '1 tensors missing: output_norm.weight' in failed.stderr
  assert 'Traceback' not in failed.stderr
  assert '--source' in command('--help').stdout
  assert 'jax' not in _modules_of_help()


def _modules_of_help():
  """Top-level modules loaded once the command has defined its flags."""
  code = (
    'import sys, experiments.import_weights;'
    'print(*{m.partition(".")[0] for m in sys.modules})'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=True,
  )
  return out.stdout.split()
