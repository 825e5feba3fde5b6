"""Plans of small models on slices that this machine does not have."""

import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys

import gin
import pytest

from memagent_jax import sharding
from memagent_jax.commands import runs
from memagent_jax.models.configs import LoraConfig, ModelConfig, RopeConfig
from memagent_jax.planning import chips, hlo, plan, programs, shapes, workloads
from memagent_jax.planning.programs import Workload
from memagent_jax.rl.grpo import GrpoConfig
from memagent_jax.sharding import MeshConfig
from memagent_jax.train.train_state import OptimizerConfig
from tests.planning.conftest import needs_libtpu

ROOT = Path(__file__).parents[2]
TOPOLOGY = 'v5e:2x2'
MODEL = ModelConfig(
  architecture='qwen2',
  vocab_size=2048,
  embed_dim=512,
  num_layers=4,
  num_heads=4,
  num_kv_heads=2,
  head_dim=128,
  mlp_dim=1024,
  max_positions=4096,
  norm_epsilon=1e-6,
  rope=RopeConfig(),
  attention_bias=True,
  tie_embeddings=False,
  dtype='bfloat16',
  remat=True,
)
WORK = Workload(
  model=MODEL,
  objective=GrpoConfig(kl_coefficient=0.0),
  optimizer=OptimizerConfig(),
  memory_prompt_tokens=896,
  answer_prompt_tokens=256,
  memory_tokens=128,
  answer_tokens=128,
  chunks=3,
  documents=4,
  rollouts=4,
  sample_rows=16,
  micro_tokens=4096,
)


def compiled_cost(phase, work):
  devices = sharding.make_mesh(MeshConfig(tensor=2), chips.devices(TOPOLOGY))
  compiled = programs.compile_phase(phase, work, devices)
  return hlo.cost(compiled.hlo, chips.chip(TOPOLOGY).rates)


def with_layers(layers):
  model = dataclasses.replace(MODEL, num_layers=layers)
  return dataclasses.replace(WORK, model=model)


@needs_libtpu
@pytest.mark.slow
def test_decode_gathers_no_weights_and_reads_them_once():
  four, eight = (compiled_cost('decode', with_layers(n)) for n in (4, 8))
  none = 2 * four.flops - eight.flops
  # Apart from the head, 8 layers cost twice as much as 4.
  assert (eight.flops - none) == pytest.approx(2 * (four.flops - none))
  assert none == 2 * 8 * 512 * (2048 // 2)
  # Its half of a layer in bfloat16, twice because of the copies into the chip.
  layer = 2 * (512 * (4 + 2 * 2 + 4) * 128 + 3 * 512 * 1024) // 2
  assert four.largest_gather < layer / 4
  assert four.unknown_loops == 0


@needs_libtpu
@pytest.mark.slow
def test_programs_do_little_more_than_the_model_needs():
  devices = sharding.make_mesh(MeshConfig(tensor=2), chips.devices(TOPOLOGY))
  made = plan.plan(WORK, TOPOLOGY, MeshConfig(tensor=2), plan.DEPTHS)
  assert made.mesh == (1, 2, 2) and made.fits
  by_name = {phase.name: phase for phase in made.phases}
  assert list(by_name) == ['prefill', 'decode', 'update']
  assert 0.95 < by_name['prefill'].waste < 1.15
  assert 0.95 < by_name['update'].waste < 1.35
  # Extrapolated from two depths as if compiled whole.
  whole = plan.plan(WORK, TOPOLOGY, MeshConfig(tensor=2))
  for drawn, true in zip(made.phases, whole.phases, strict=True):
    assert drawn.cost.flops == pytest.approx(true.cost.flops, rel=0.01)
    assert drawn.seconds == pytest.approx(true.seconds, rel=0.03)
  resident = programs.resident_bytes(WORK, devices)
  assert by_name['update'].memory['optimizer'] == resident['optimizer']
  assert by_name['prefill'].memory['cache'] == programs.cache_bytes(
    WORK, devices, responses=False
  )
  # The smallest slice that the mesh fits.
  assert plan.smallest(WORK, 'v5e:4x4', MeshConfig(tensor=2)).devices == 4


@needs_libtpu
def test_an_axis_may_be_part_of_a_physical_one():
  mesh = sharding.make_mesh(MeshConfig(tensor=4), chips.devices('v6e:8x8'))
  assert mesh.devices.shape == (1, 16, 4)
  for pair in mesh.devices.reshape(16, 4):
    # Neighbours: the largest transfers take the shortest way.
    xs, ys = zip(*(d.coords[:2] for d in pair), strict=True)
    assert max(xs) - min(xs) + max(ys) - min(ys) <= 3


@needs_libtpu
def test_what_cannot_be_is_said():
  with pytest.raises(ValueError, match=r"'v9' is unknown.*v4, v5e, v5p, v6e"):
    chips.devices('v9:2x2')
  with pytest.raises(ValueError, match='v5e:3x5'):
    chips.devices('v5e:3x5')
  with pytest.raises(ValueError, match=r'does not divide.*tensor'):
    plan.plan(
      dataclasses.replace(WORK, model=dataclasses.replace(MODEL, mlp_dim=1023)),
      TOPOLOGY,
      MeshConfig(tensor=2),
      plan.DEPTHS,
    )
  with pytest.raises(ValueError, match='two rising'):
    plan.plan(WORK, TOPOLOGY, MeshConfig(), (2,))


def test_memory_of_the_weights_by_arithmetic():
  mesh = sharding.make_mesh(MeshConfig(), [sharding.jax.devices()[0]])
  found = programs.resident_bytes(WORK, mesh)
  c = MODEL
  layer = c.embed_dim * (4 + 2 * 2 + 4) * 128 + 3 * c.embed_dim * c.mlp_dim
  matrices = 2 * c.vocab_size * c.embed_dim + 4 * layer
  vectors = 4 * (2 * c.embed_dim + (4 + 2 * 2) * 128) + c.embed_dim
  assert found['params'] == 4 * (matrices + vectors)
  # Two moments, and counters of a few bytes.
  assert 0 <= found['optimizer'] - 2 * found['params'] <= 16
  assert found['reference'] == 0
  assert found['rollout weights'] <= 2 * (matrices + 2 * vectors)
  rows, slots = WORK.sample_rows, 896 + 128
  assert programs.cache_bytes(WORK, mesh) == 4 * 2 * 2 * rows * 2 * 128 * slots


def test_adapters_alone_have_moments_and_need_no_reference_copy():
  mesh = sharding.make_mesh(MeshConfig(), [sharding.jax.devices()[0]])
  work = dataclasses.replace(WORK, objective=GrpoConfig())
  whole = programs.resident_bytes(work, mesh)
  assert whole['reference'] == whole['params']
  adapted = dataclasses.replace(
    work,
    model=dataclasses.replace(MODEL, lora=LoraConfig(rank=8)),
    frozen_dtype='bfloat16',
  )
  found = programs.resident_bytes(adapted, mesh)
  c = MODEL
  heads, kv, mlp = 4 * 128, 2 * 2 * 128, 2 * c.mlp_dim
  sides = [heads, heads, kv, mlp, c.mlp_dim]  # q, o, kv, gate_up, down
  adapters = 4 * 4 * 8 * sum(c.embed_dim + side for side in sides)
  assert found['reference'] == 0
  assert found['params'] == whole['params'] // 2 + adapters
  assert 0 <= found['optimizer'] - 2 * adapters <= 16


@needs_libtpu
@pytest.mark.slow
def test_adapters_are_learned_with_a_quarter_less():
  whole, adapted = (
    plan.plan(
      dataclasses.replace(
        WORK,
        objective=GrpoConfig(),
        model=dataclasses.replace(MODEL, num_layers=2, lora=adapters),
      ),
      TOPOLOGY,
      MeshConfig(),
    )
    for adapters in (None, LoraConfig(rank=8))
  )
  # Kernels have no gradient; the program also has the adapters' own products.
  whole, adapted = whole.phases[-1], adapted.phases[-1]
  assert 0.7 < adapted.model_flops / whole.model_flops < 0.85
  assert 0.95 < adapted.waste < 1.35
  assert adapted.bytes < whole.bytes


def test_memory_that_falls_with_one_layer_more_does_not_fall_on():
  def phase(layers, activations):
    cost = hlo.Cost(10.0 * layers, 0.0, 0.0, 1.0 * layers, 0, 0)
    return plan.Phase('update', 1, cost, 10.0, {'activations': activations})

  falls = plan._extrapolated([phase(2, 90), phase(3, 80)], 28)
  rises = plan._extrapolated([phase(2, 80), phase(3, 90)], 28)
  assert falls.memory == {'activations': 90}
  assert rises.memory == {'activations': 80 + 28 * 10}
  assert falls.cost.flops == 300 and falls.seconds == 30


RUNS = sorted((ROOT / 'gin_configs' / 'train').glob('*_hotpotqa*.gin'))
MESHES = sorted((ROOT / 'gin_configs' / 'meshes').glob('*.gin'))


@pytest.fixture
def clean_gin(monkeypatch):
  monkeypatch.chdir(ROOT)
  gin.clear_config(clear_constants=True)
  yield
  gin.clear_config(clear_constants=True)


@pytest.mark.parametrize('path', RUNS, ids=lambda path: path.stem)
def test_every_run_has_a_workload(path, clean_gin):
  gin.parse_config_file(str(path))
  work, mesh, steps = workloads.of_run(runs.bound, 28_000)
  name = runs.bound('name_or_dir', 'model').rpartition('/')[2]
  assert work.model.embed_dim == shapes.CONFIGS[name].embed_dim
  assert work.model.remat and work.model.dtype == 'bfloat16'
  assert work.row_tokens <= 8192
  assert steps > 0 and mesh.fsdp == -1
  adapted = path.stem.endswith('_lora')
  assert (work.model.lora is not None) == adapted
  assert work.frozen_dtype == ('bfloat16' if adapted else 'float32')


def test_a_mesh_file_changes_the_mesh_alone(clean_gin):
  run = str(ROOT / 'gin_configs/train/qwen2p5_7b_hotpotqa.gin')
  for path in MESHES:
    gin.clear_config(clear_constants=True)
    gin.parse_config_files_and_bindings([run, str(path)], [])
    work, mesh, _ = workloads.of_run(runs.bound, 28_000)
    assert work.trajectories % work.sample_rows == 0
    assert work.documents == 128 and work.rollouts == 16
    assert work.model.num_kv_heads % mesh.tensor == 0


def test_an_unknown_model_lists_the_known_shapes(tmp_path):
  with pytest.raises(ValueError, match='known: Qwen2'):
    shapes.config(tmp_path / 'nothing')


@needs_libtpu
@pytest.mark.slow
def test_the_command_prints_a_plan(tmp_path):
  out = tmp_path / 'plan.json'
  ran = subprocess.run(
    [
      *(sys.executable, '-m', 'experiments.plan', '--topology=v5e:2x4'),
      '--gin_file=gin_configs/train/smollm2_135m_hotpotqa.gin',
      '--gin_file=gin_configs/meshes/v5e_8.gin',
      *('--nosmallest', f'--out={out}'),
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert '| prefill |' in ran.stdout and 'chip-hours' in ran.stdout
  assert json.loads(out.read_text())['fits']
