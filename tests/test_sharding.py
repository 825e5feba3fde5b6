"""The rules table and its errors; one run on eight virtual devices."""

from flax import linen as nn
import jax
from jax.sharding import AbstractMesh, PartitionSpec
import pytest

from memagent_jax import sharding
from memagent_jax.models import transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig

TINY = ModelConfig(
  architecture='qwen2',
  vocab_size=32,
  embed_dim=16,
  num_layers=1,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=24,
  max_positions=64,
  norm_epsilon=1e-6,
  rope=RopeConfig(),
  attention_bias=True,
  tie_embeddings=False,
)


def mesh_of(*shape):
  return AbstractMesh(shape, sharding.MESH_AXES)


def box(names, shape):
  return {
    'layer_0': {
      'kernel': nn.LogicallyPartitioned(
        jax.ShapeDtypeStruct(shape, 'float32'), names
      )
    }
  }


def test_specs_of_a_whole_layer():
  specs = jax.tree.map(
    lambda s: s.spec,
    sharding.param_shardings(
      mesh_of(1, 2, 2), transformer.abstract_params(TINY)
    ),
  )
  layer = specs['layer_0']
  assert specs['embedding'] == PartitionSpec('tensor', 'fsdp')
  assert specs['head'] == PartitionSpec('tensor', 'fsdp')
  assert specs['final_norm']['scale'] == PartitionSpec('fsdp')
  assert layer['attention']['q'] == {
    'kernel': PartitionSpec('fsdp', 'tensor', None),
    'bias': PartitionSpec('tensor', None),
  }
  assert layer['attention']['kv'] == {
    'kernel': PartitionSpec('fsdp', None, 'tensor', None),
    'bias': PartitionSpec(None, 'tensor', None),
  }
  assert layer['attention']['o'] == {
    'kernel': PartitionSpec('tensor', None, 'fsdp')
  }
  assert layer['mlp']['gate_up'] == {
    'kernel': PartitionSpec('fsdp', None, 'tensor')
  }
  assert layer['mlp']['down'] == {'kernel': PartitionSpec('tensor', 'fsdp')}


def test_axis_without_a_rule_is_an_error():
  with pytest.raises(ValueError) as e:
    sharding.param_shardings(mesh_of(1, 1, 1), box(('embed', 'colour'), (8, 8)))
  assert "layer_0/kernel: axis 'colour' has no rule" in str(e.value)
  assert "'vocab'" in str(e.value)  # lists the choices


@pytest.mark.parametrize('tensor', [1, 2])
def test_two_axes_on_one_mesh_axis_are_an_error(tensor):
  with pytest.raises(ValueError) as e:
    sharding.param_shardings(
      mesh_of(1, 1, tensor), box(('heads', 'mlp'), (8, 8))
    )
  assert "layer_0/kernel: axes 'heads' and 'mlp'" in str(e.value)
  assert "mesh axis 'tensor'" in str(e.value)


def test_size_that_does_not_divide_is_an_error():
  with pytest.raises(ValueError) as e:
    sharding.param_shardings(
      mesh_of(1, 1, 4), box(('embed', 'kv_heads'), (8, 6))
    )
  assert "layer_0/kernel: axis 'kv_heads' of size 6" in str(e.value)
  assert "'tensor' of size 4" in str(e.value)


def test_replicated_axes_may_repeat_and_need_not_divide():
  got = sharding.param_shardings(
    mesh_of(1, 2, 4), box(('head_dim', 'kv_pair'), (7, 3))
  )
  assert got['layer_0']['kernel'].spec == PartitionSpec(None, None)


def test_wrong_number_of_devices_is_an_error():
  with pytest.raises(ValueError) as e:
    sharding.make_mesh(sharding.MeshConfig(2, 3, 1), jax.devices()[:1])
  message = str(e.value)
  assert "{'data': 2, 'fsdp': 3, 'tensor': 1}" in message
  assert 'does not fit 1 devices' in message


def test_one_size_may_be_left_open():
  shape = sharding.MeshConfig(2, -1, 2).shape
  assert shape(8) == (2, 2, 2)
  assert shape(4) == (2, 1, 2)
  assert sharding.MeshConfig().shape(3) == (1, 3, 1)


@pytest.mark.parametrize('sizes', [(-1, -1, 1), (3, -1, 1), (0, 1, 1)])
def test_sizes_that_cannot_be(sizes):
  with pytest.raises(ValueError, match='does not fit 4 devices'):
    sharding.MeshConfig(*sizes).shape(4)


def test_rollouts_split_no_param_over_fsdp():
  specs = jax.tree.leaves(
    sharding.param_shardings(
      mesh_of(1, 2, 2), transformer.abstract_params(TINY), sharding.ROLLOUTS
    )
  )
  used = {axis for s in specs for axis in s.spec if axis is not None}
  assert used == {'tensor'}


def on_mesh(function, *shape):
  """The jaxpr of a function of one [4, 6, 8] array, under a mesh."""
  mesh = jax.sharding.AbstractMesh(shape, sharding.MESH_AXES)
  with jax.sharding.use_abstract_mesh(mesh):
    return str(jax.make_jaxpr(function)(jax.numpy.zeros((4, 6, 8))))


@pytest.mark.parametrize(
  'lay_out, axes, spec',
  [
    (
      sharding.constrain,
      ('rows', 'tokens', 'mlp'),
      "P(('data', 'fsdp'), None, 'tensor')",
    ),
    # Whole, except for its tensor shards.
    (
      sharding.gather_kernel,
      ('embed', 'gate_up', 'mlp'),
      "P(None, None, 'tensor')",
    ),
  ],
)
def test_activations_and_kernels_are_laid_out_by_their_names(
  lay_out, axes, spec
):
  assert spec in on_mesh(lambda x: lay_out(x, *axes), 2, 2, 2)
  # On one device there are no constraints, and no checks.
  x = jax.numpy.zeros((3, 5, 7))
  assert lay_out(x, *axes) is x


def test_what_an_activation_cannot_be():
  def unknown(x):
    return sharding.constrain(x, 'rows', 'tokens', 'colour')

  def ragged(x):
    return sharding.constrain(x[:3], 'rows', 'tokens', 'mlp')

  with pytest.raises(ValueError, match="axis 'colour' has no rule"):
    on_mesh(unknown, 1, 1, 1)
  with pytest.raises(ValueError) as e:
    on_mesh(ragged, 2, 2, 1)
  assert "axis 'rows' of size 3 does not divide over mesh axes" in str(e.value)
  assert "'data' x 'fsdp' of size 4" in str(e.value)


# Runs in its own process: devices are counted once per process.
ON_EIGHT_DEVICES = f"""
import jax, jax.numpy as jnp, numpy as np
from memagent_jax import sharding
from memagent_jax.models import rope, transformer
from memagent_jax.models.configs import ModelConfig, RopeConfig

config = {TINY!r}
mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
assert dict(mesh.shape) == dict(data=2, fsdp=2, tensor=2), mesh
assert set(mesh.axis_types) == set([jax.sharding.AxisType.Auto]), mesh
params = transformer.init_params(config, jax.random.key(0))
placed = jax.device_put(
  params, sharding.param_shardings(mesh, transformer.abstract_params(config))
)
kernel = placed['layer_0']['attention']['q']['kernel']
# [E=16, H=4, D=8] with E over fsdp and H over tensor.
assert kernel.addressable_shards[0].data.shape == (8, 2, 8), kernel.sharding

ids = jnp.arange(10).reshape(2, 5)
position = jnp.broadcast_to(jnp.arange(5), (2, 5))
frequency = rope.frequencies(config, jnp.array([5, 5]))
forward = jax.jit(
  lambda params: transformer.Decoder(config).apply(
    dict(params=params), ids, position, frequency
  )[0]
)
np.testing.assert_allclose(forward(placed), forward(params), rtol=0, atol=1e-5)
"""


@pytest.mark.slow
def test_sharded_forward_equals_the_plain_one_on_eight_devices(
  run_on_eight_devices,
):
  run_on_eight_devices(ON_EIGHT_DEVICES)
