"""Weights in and out: layout, bits, memory, and refusals."""

import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import transformers

from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import (
  huggingface,
  safetensors_io,
  tensor_layout,
)

EVERYTHING = ModelConfig(
  architecture='qwen3',
  vocab_size=300,
  embed_dim=16,
  num_layers=11,  # layer_10 sorts before layer_2
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  mlp_dim=24,
  max_positions=64,
  norm_epsilon=1e-6,
  rope=RopeConfig(rope_theta=1e6),
  attention_bias=True,
  attention_output_bias=True,
  qk_norm=True,
  tie_embeddings=False,
)
LLAMA = ModelConfig(
  architecture='llama',
  vocab_size=300,
  embed_dim=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_dim=24,
  max_positions=64,
  norm_epsilon=1e-5,
  rope=RopeConfig(rope_type='linear', factor=2.0),
)


# 154 MB of weights in 4 layers.
BIG = dataclasses.replace(
  LLAMA,
  vocab_size=1024,
  embed_dim=512,
  num_layers=4,
  num_heads=8,
  num_kv_heads=8,
  head_dim=64,
  mlp_dim=5120,
)


class NoTokenizer:
  """Stands in where the tokenizer's files do not matter."""

  eos_ids, bos_id, pad_id = (), None, None

  def save(self, directory):
    pass


def random_tensors(config, dtype='float32'):
  rng = np.random.default_rng(0)
  return {
    name: rng.standard_normal(shape).astype(jnp.dtype(dtype))
    for name, shape in tensor_layout.tensor_shapes(config).items()
  }


def random_params(config, dtype='float32'):
  return huggingface.params_from_tensors(
    config, random_tensors(config, dtype).__getitem__, dtype=dtype
  )


def as_bytes(tree):
  return jax.tree.map(
    lambda x: (x.dtype, x.shape, np.asarray(x).tobytes()), tree
  )


def write_directory(path, config, tensors):
  """A model directory written by the safetensors library."""
  path.mkdir(exist_ok=True)
  huggingface._write_json(path / 'config.json', {'model_type': 'llama'})
  safetensors.numpy.save_file(tensors, path / huggingface.SINGLE)
  return path


def test_names_and_shapes_are_those_of_transformers():
  shapes = tensor_layout.tensor_shapes(EVERYTHING)
  assert next(iter(shapes)) == 'model.embed_tokens.weight'
  layer = {
    name.removeprefix('model.layers.10.'): shape
    for name, shape in shapes.items()
    if name.startswith('model.layers.10.')
  }
  assert layer == {
    'input_layernorm.weight': (16,),
    'post_attention_layernorm.weight': (16,),
    'self_attn.q_proj.weight': (24, 16),
    'self_attn.q_proj.bias': (24,),
    'self_attn.k_proj.weight': (12, 16),
    'self_attn.k_proj.bias': (12,),
    'self_attn.v_proj.weight': (12, 16),
    'self_attn.v_proj.bias': (12,),
    'self_attn.o_proj.weight': (16, 24),
    'self_attn.o_proj.bias': (16,),
    'self_attn.q_norm.weight': (6,),
    'self_attn.k_norm.weight': (6,),
    'mlp.gate_proj.weight': (24, 16),
    'mlp.up_proj.weight': (24, 16),
    'mlp.down_proj.weight': (16, 24),
  }
  assert len(shapes) == 3 + 11 * len(layer)
  assert 'lm_head.weight' not in tensor_layout.tensor_shapes(LLAMA)


def test_a_param_computes_what_its_torch_weight_does():
  tensors = random_tensors(EVERYTHING)
  params = huggingface.params_from_tensors(EVERYTHING, tensors.__getitem__)
  layer = params['layer_10']
  prefix = 'model.layers.10.'

  def torch_linear(name, x):
    bias = tensors.get(f'{prefix}{name}.bias', 0.0)
    return x @ tensors[f'{prefix}{name}.weight'].T + bias

  x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
  q = np.einsum('ne,ehd->nhd', x, layer['attention']['q']['kernel'])
  q = q + layer['attention']['q']['bias']
  np.testing.assert_allclose(
    q.reshape(3, 24), torch_linear('self_attn.q_proj', x), atol=1e-5
  )
  kv = np.einsum('ne,epjd->npjd', x, layer['attention']['kv']['kernel'])
  kv = kv + layer['attention']['kv']['bias']
  for i, name in enumerate(('k_proj', 'v_proj')):
    np.testing.assert_allclose(
      kv[:, i].reshape(3, 12), torch_linear(f'self_attn.{name}', x), atol=1e-5
    )
  o = np.einsum('nhd,hde->ne', q, layer['attention']['o']['kernel'])
  o = o + layer['attention']['o']['bias']
  np.testing.assert_allclose(
    o, torch_linear('self_attn.o_proj', q.reshape(3, 24)), atol=1e-4
  )
  gate_up = np.einsum('ne,epf->npf', x, layer['mlp']['gate_up']['kernel'])
  for i, name in enumerate(('gate_proj', 'up_proj')):
    np.testing.assert_allclose(
      gate_up[:, i], torch_linear(f'mlp.{name}', x), atol=1e-5
    )
  np.testing.assert_allclose(
    gate_up[:, 0] @ layer['mlp']['down']['kernel'],
    torch_linear('mlp.down_proj', gate_up[:, 0]),
    atol=1e-4,
  )
  for ours, theirs in (
    (params['embedding'], 'model.embed_tokens.weight'),
    (params['head'], 'lm_head.weight'),
    (params['final_norm']['scale'], 'model.norm.weight'),
    (layer['attention_norm']['scale'], f'{prefix}input_layernorm.weight'),
    (layer['mlp_norm']['scale'], f'{prefix}post_attention_layernorm.weight'),
    (layer['attention']['k_norm']['scale'], f'{prefix}self_attn.k_norm.weight'),
  ):
    np.testing.assert_array_equal(ours, tensors[theirs])


@pytest.mark.parametrize('config', [EVERYTHING, LLAMA], ids=['all', 'llama'])
def test_the_tree_is_the_one_that_init_makes(config):
  params = huggingface.params_from_tensors(
    config, random_tensors(config).__getitem__
  )
  init = nn.meta.unbox(transformer.abstract_params(config))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, init)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('dtype', huggingface.DTYPES)
@pytest.mark.parametrize('config', [EVERYTHING, LLAMA], ids=['all', 'llama'])
def test_export_undoes_import_bit_for_bit(config, dtype):
  tensors = random_tensors(config, dtype)
  params = huggingface.params_from_tensors(
    config, tensors.__getitem__, dtype=dtype
  )
  exported = dict(huggingface.tensors_from_params(config, params))
  assert list(exported) == list(tensors)
  assert as_bytes(exported) == as_bytes(tensors)


@pytest.mark.parametrize('dtype', huggingface.DTYPES)
@pytest.mark.parametrize('shard_bytes', [10_000, huggingface.SHARD_BYTES])
def test_saved_directory_reads_back(
  tmp_path, tiny_tokenizer, dtype, shard_bytes
):
  tensors = random_tensors(LLAMA, dtype)
  params = huggingface.params_from_tensors(
    LLAMA, tensors.__getitem__, dtype=dtype
  )
  out = tmp_path / 'out'
  huggingface.save_model(out, LLAMA, params, tiny_tokenizer, dtype, shard_bytes)
  files = sorted(out.glob('*.safetensors'))
  # The embedding (300 x 16) alone exceeds the small limit in float32.
  assert (len(files) > 1) == (shard_bytes == 10_000)
  by_library = {}
  for file in files:
    by_library |= safetensors.numpy.load_file(file)
  assert as_bytes(by_library) == as_bytes(
    {name: tensors[name] for name in by_library}
  )
  assert set(by_library) == set(tensors)
  config = huggingface.read_config(out)
  assert config == LLAMA
  loaded = huggingface.load_params(out, config, dtype=dtype)
  assert as_bytes(loaded) == as_bytes(params)
  assert not list(tmp_path.glob('.out*'))


def test_shards_respect_their_limit(tmp_path, tiny_tokenizer):
  params = random_params(LLAMA)
  huggingface.save_model(
    tmp_path / 'out', LLAMA, params, tiny_tokenizer, shard_bytes=5000
  )
  index = json.loads((tmp_path / 'out' / huggingface.INDEX).read_text())
  for file in set(index['weight_map'].values()):
    with safetensors.safe_open(tmp_path / 'out' / file, 'numpy') as f:
      sizes = [f.get_tensor(name).nbytes for name in f.keys()]  # noqa: SIM118
    assert sum(sizes) <= 5000 or len(sizes) == 1
  assert index['metadata']['total_size'] == sum(
    x.nbytes for x in jax.tree.leaves(params)
  )


def test_saved_directory_is_what_transformers_expects(tmp_path, tiny_tokenizer):
  params = random_params(LLAMA)
  out = tmp_path / 'out'
  huggingface.save_model(out, LLAMA, params, tiny_tokenizer, 'bfloat16')
  config = transformers.AutoConfig.from_pretrained(out)
  assert isinstance(config, transformers.LlamaConfig)
  assert config.rope_parameters['rope_type'] == 'linear'
  assert config.eos_token_id == 264
  assert config.pad_token_id == 262
  generation = transformers.GenerationConfig.from_pretrained(out)
  assert generation.eos_token_id == 264
  hf = transformers.AutoTokenizer.from_pretrained(out)
  text = '<|im_start|>hell<think>'
  assert hf(text)['input_ids'] == tiny_tokenizer.encode_template(text)
  assert Tokenizer.from_directory(out).fingerprint == tiny_tokenizer.fingerprint


@pytest.mark.parametrize('stored', huggingface.DTYPES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_file_dtype_is_cast(tmp_path, stored, dtype):
  tensors = random_tensors(LLAMA, stored)
  write_directory(tmp_path, LLAMA, tensors)
  params = huggingface.load_params(tmp_path, LLAMA, dtype=dtype)
  np.testing.assert_array_equal(
    params['embedding'],
    tensors['model.embed_tokens.weight'].astype(jnp.dtype(dtype)),
  )
  assert params['embedding'].dtype == dtype


def test_params_share_no_memory_with_what_was_read(tmp_path):
  tensors = random_tensors(LLAMA)
  params = huggingface.params_from_tensors(LLAMA, tensors.__getitem__)
  before = as_bytes(params)
  for tensor in tensors.values():
    tensor[...] = 7.0
  assert as_bytes(params) == before
  write_directory(tmp_path, LLAMA, tensors)
  loaded = huggingface.load_params(tmp_path, LLAMA)
  if sys.platform == 'linux':
    assert huggingface.SINGLE not in Path('/proc/self/maps').read_text()
  assert loaded['embedding'][0, 0] == 7.0


def test_extra_tensors_that_repeat_others_are_ignored(tmp_path):
  tensors = random_tensors(LLAMA)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(
    2, np.float32
  )
  write_directory(tmp_path, LLAMA, tensors)
  params = huggingface.load_params(tmp_path, LLAMA)
  assert 'head' not in params


def test_refused_tensors(tmp_path):
  def load(change):
    tensors = random_tensors(LLAMA)
    change(tensors)
    write_directory(tmp_path, LLAMA, tensors)
    huggingface.load_params(tmp_path, LLAMA)

  name = 'model.layers.1.mlp.up_proj.weight'
  with pytest.raises(ValueError, match=rf'1 tensors missing: {name}'):
    load(lambda t: t.pop(name))
  with pytest.raises(ValueError, match=r'1 unexpected tensors: adapter\.x'):
    load(lambda t: t.update({'adapter.x': np.ones(2, np.float32)}))
  with pytest.raises(
    ValueError, match=rf'{name}.*got shape \[24, 15\], expected \[24, 16\]'
  ):
    load(lambda t: t.update({name: np.ones((24, 15), np.float32)}))
  with pytest.raises(
    ValueError, match=rf'{name} has dtype I32.*F32, F16, BF16'
  ):
    load(lambda t: t.update({name: np.ones((24, 16), np.int32)}))


def test_a_truncated_file_names_tensor_and_bytes(tmp_path):
  write_directory(tmp_path, LLAMA, random_tensors(LLAMA))
  file = tmp_path / huggingface.SINGLE
  size = file.stat().st_size
  os.truncate(file, size - 100)
  # The library writes tensors in order of name: model.norm.weight is the last.
  with pytest.raises(
    ValueError,
    match=rf'{file}: truncated: tensor \S+ has \d+ bytes, expected \d+; the '
    rf'file has {size - 100} bytes',
  ):
    huggingface.load_params(tmp_path, LLAMA)
  os.truncate(file, 50)
  with pytest.raises(ValueError, match=r'truncated in its header.* 50 bytes'):
    huggingface.load_params(tmp_path, LLAMA)
  os.truncate(file, 0)
  with pytest.raises(ValueError, match='no safetensors file: 0 bytes'):
    huggingface.load_params(tmp_path, LLAMA)


def test_a_damaged_file_is_refused(tmp_path):
  write_directory(tmp_path, LLAMA, random_tensors(LLAMA))
  file = tmp_path / huggingface.SINGLE
  good = file.read_bytes()
  file.write_bytes(good + b'rest')
  with pytest.raises(ValueError, match=rf'damaged.*{len(good) + 4} bytes'):
    huggingface.load_params(tmp_path, LLAMA)
  file.write_bytes(good[:8] + b'x' + good[9:])
  with pytest.raises(ValueError, match='damaged: its header is no JSON'):
    huggingface.load_params(tmp_path, LLAMA)
  file.write_bytes(good.replace(b'[300,16]', b'[301,16]'))
  with pytest.raises(
    ValueError,
    match=r'model\.embed_tokens\.weight spans 19200 bytes, expected 19264',
  ):
    huggingface.load_params(tmp_path, LLAMA)


def test_missing_files_are_named(tmp_path, tiny_tokenizer):
  with pytest.raises(
    ValueError, match=r'no such directory.*config\.json.*llama, qwen2, qwen3'
  ):
    huggingface.read_config(tmp_path / 'absent')
  with pytest.raises(ValueError, match='no such file'):
    huggingface.read_config(tmp_path)
  with pytest.raises(ValueError, match=r'no weights; expected model\.safet'):
    huggingface.load_params(tmp_path, LLAMA)
  params = random_params(LLAMA)
  out = tmp_path / 'out'
  huggingface.save_model(out, LLAMA, params, tiny_tokenizer, shard_bytes=5000)
  shard = sorted(out.glob('*.safetensors'))[1]
  shard.unlink()
  with pytest.raises(ValueError, match=f'shards missing: {shard.name}'):
    huggingface.load_params(out, LLAMA)
  (out / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json: not valid JSON'):
    huggingface.read_config(out)


def test_save_is_all_or_nothing(tmp_path, tiny_tokenizer):
  params = random_params(LLAMA)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/file').write_text('mine')
  with pytest.raises(ValueError, match='not an empty directory'):
    huggingface.save_model(tmp_path / 'full', LLAMA, params, tiny_tokenizer)
  with pytest.raises(ValueError, match="'int8'; supported: float32"):
    huggingface.save_model(
      tmp_path / 'out', LLAMA, params, tiny_tokenizer, 'int8'
    )

  class Failing(NoTokenizer):
    def save(self, directory):
      raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    huggingface.save_model(tmp_path / 'out', LLAMA, params, Failing())
  assert [p.name for p in tmp_path.iterdir()] == ['full']


def run_python(code, *args, **env):
  """stdout of `code` in a fresh process."""
  run = subprocess.run(
    [sys.executable, '-c', code, *args],
    env={**os.environ, **env},
    cwd=Path(__file__).parents[3],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert run.returncode == 0, run.stderr
  return run.stdout


SHARDED = """
import jax, numpy as np
from memagent_jax import sharding
from memagent_jax.models import transformer
from memagent_jax.models.weights import huggingface
from tests.models.weights.test_huggingface import EVERYTHING, random_tensors
import dataclasses
config = dataclasses.replace(EVERYTHING, num_layers=1, head_dim=4)
mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 2))
shardings = sharding.param_shardings(mesh, transformer.abstract_params(config))
tensors = random_tensors(config)
whole = huggingface.params_from_tensors(config, tensors.__getitem__)
split = huggingface.params_from_tensors(config, tensors.__getitem__, shardings)
def check(a, b, s):
  assert b.sharding == s, (b.sharding, s)
  np.testing.assert_array_equal(a, b)
jax.tree.map(check, whole, split, shardings)
kernel = split['layer_0']['attention']['kv']['kernel']
print(sorted({s.data.shape for s in kernel.addressable_shards}))
exported = dict(huggingface.tensors_from_params(config, split))
assert all((exported[k] == tensors[k]).all() for k in tensors)
"""


@pytest.mark.slow
def test_sharded_import_on_four_devices():
  out = run_python(
    SHARDED, XLA_FLAGS='--xla_force_host_platform_device_count=4'
  )
  # [16, 2, 2, 4]: embed over fsdp, kv heads over tensor.
  assert out.strip() == '[(8, 2, 1, 4)]'


MEMORY = """
from pathlib import Path
import sys
import jax
from memagent_jax.models.weights import huggingface
from memagent_jax.models.weights.tensor_layout import param_table
from tests.models.weights.test_huggingface import BIG, NoTokenizer

def peak_mb():
  (line,) = [x for x in open('/proc/self/status') if x.startswith('VmHWM')]
  return int(line.split()[1]) / 1024

def reset_peak():
  Path('/proc/self/clear_refs').write_text('5')
  return peak_mb()

param_table(BIG)
jax.device_put(1.0)
before = reset_peak()
params = huggingface.load_params(sys.argv[1], BIG)
print(sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20)
print(peak_mb() - before)
before = reset_peak()
huggingface.save_model(sys.argv[2], BIG, params, NoTokenizer())
print(peak_mb() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.slow
def test_no_second_copy_in_host_memory(tmp_path):
  shapes = tensor_layout.tensor_shapes(BIG)
  tensors = ((name, np.full(s, 0.5, np.float32)) for name, s in shapes.items())
  safetensors_io.write_file(
    tmp_path / huggingface.SINGLE, shapes, tensors, 'float32'
  )
  out = run_python(MEMORY, str(tmp_path), str(tmp_path / 'copy'))
  size, loading, saving = map(float, out.split())
  assert size > 120  # MB
  # Loading all tensors before the params would take 2 x size, and saving via a
  # dict of tensors 1 x size. One layer's gate_up is 20 MB: on top of the params,
  # it is mapped once for loading, and split once for saving.
  assert size * 0.9 < loading < size + 30
  assert saving < 40
