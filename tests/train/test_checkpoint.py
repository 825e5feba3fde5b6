"""Checkpoints come back bit for bit, or not at all."""

import json
import os
from pathlib import Path
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memagent_jax.train import checkpoint, train_state
from memagent_jax.train.checkpoint import Checkpoints
from memagent_jax.train.train_state import OptimizerConfig, TrainState

CONFIG = 'run.seed = 1\nrun.steps = 9\n'
# float32 bits that arithmetic or a cast would change: -0, the smallest
# denormal, a NaN with a payload, -inf.
ODD_BITS = (0x80000000, 0x00000001, 0x7FC12345, 0xFF800000)


def _state(scale: float = 1.0) -> TrainState:
  """A state after one update, odd bits included."""
  config = OptimizerConfig(learning_rate=0.1, warmup_steps=0)
  params = {
    'block': {'w': scale * jnp.arange(16.0).reshape(8, 2)},
    'odd': jnp.zeros(4),
  }
  state = train_state.init_state(config, params)
  gradients = jax.tree.map(jnp.ones_like, params)
  state, _ = train_state.apply_gradients(config, state, gradients)
  odd = jax.lax.bitcast_convert_type(
    jnp.array(ODD_BITS, jnp.uint32), jnp.float32
  )
  return state.replace(params=state.params | {'odd': odd})


def _bytes(tree) -> list[bytes]:
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _save(directory, *steps: int) -> None:
  """Saves; step n holds `_state(n)` and the extras {'next': n}."""
  with Checkpoints(directory) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(step), {'next': step}, CONFIG)


def _flip_bit(path: Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0x10
  path.write_bytes(data)


def _data_file(step: Path) -> Path:
  """The step's file with the most bytes of arrays."""
  files = (p for p in step.glob('state/**/d/*') if p.is_file())
  return max(files, key=lambda p: p.stat().st_size)


def _run(code: str, *args, **environment) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
    env=os.environ | environment,
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
    timeout=120,
  )


# --- what comes back ----------------------------------------------------------


def test_nothing_saved_is_none(tmp_path):
  with Checkpoints(tmp_path / 'a' / 'b') as checkpoints:
    assert checkpoints.restore(_state()) is None


def test_round_trip_is_bitwise(tmp_path, caplog):
  state = _state(3)
  assert [int(b) for b in np.asarray(state.params['odd']).view(np.uint32)] == [
    *ODD_BITS
  ]
  _save(tmp_path, 3)
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(_state())
  assert restored.step == 3
  assert restored.config_text == CONFIG
  assert _bytes(restored.state) == _bytes(state)
  assert jax.tree.structure(restored.state) == jax.tree.structure(state)
  # chain(clip, adamw): without a target Orbax gives dicts here.
  assert type(restored.state.opt_state[1][0]) is optax.ScaleByAdamState
  assert not caplog.records


def test_target_decides_the_dtype(tmp_path):
  _save(tmp_path, 1)
  target = jax.eval_shape(_state)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape,
      jnp.bfloat16 if x.dtype == jnp.float32 else x.dtype,
      sharding=device,
    ),
    target,
  )
  with Checkpoints(tmp_path) as checkpoints:
    w = checkpoints.restore(target).state.params['block']['w']
  assert w.dtype == jnp.bfloat16
  expected = _state().params['block']['w'].astype(jnp.bfloat16)
  assert _bytes(w) == _bytes(expected)


def test_state_may_be_donated_while_it_is_written(tmp_path):
  # 32 MB, so that the write is still running when the buffers are donated.
  params = {str(i): jnp.full((1 << 20,), float(i)) for i in range(8)}
  state = train_state.init_state(OptimizerConfig(), params)
  overwrite = jax.jit(
    lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0
  )
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {}, CONFIG)
    jax.block_until_ready(overwrite(state))
    restored = checkpoints.restore(target).state
    for i in range(8):
      assert np.all(np.asarray(restored.params[str(i)]) == i)
    # Restored values may be donated, too.
    assert int(overwrite(restored).step) == -1


def test_extras_are_exact(tmp_path):
  # 2^53 + 1 is the first integer that a float64 would change.
  extras = {'epoch': 2**53 + 1, 'index': -(2**70), 'nested': {'a': [0, None]}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, _state(), extras, CONFIG)
    assert checkpoints.restore(_state()).extras == extras


def test_extras_are_taken_at_the_save(tmp_path, monkeypatch):
  begun, go_on = threading.Event(), threading.Event()
  dumps = json.dumps

  def slow_dumps(value, *args, **kwargs):
    # Orbax writes from its own threads.
    if threading.current_thread() is not threading.main_thread():
      begun.set()
      go_on.wait(60)
    return dumps(value, *args, **kwargs)

  monkeypatch.setattr(json, 'dumps', slow_dumps)
  counters = {'rows': [1, 2]}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, _state(), counters, CONFIG)
    assert begun.wait(60)
    counters['rows'].append(3)
    go_on.set()
    assert checkpoints.restore(_state()).extras == {'rows': [1, 2]}


@pytest.mark.parametrize(
  'extras',
  [
    {'shape': (1, 2)},
    {1: 2},
    {'rows': {1: 2}},
    {'n': np.int64(1)},
    {'loss': float('nan')},
  ],
)
def test_extras_that_json_changes_are_refused(tmp_path, extras):
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(ValueError, match='extras'),
  ):
    checkpoints.save(1, _state(), extras, CONFIG)


def test_only_the_latest_are_kept(tmp_path):
  with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
    for step in (1, 5, 7):
      checkpoints.save(step, _state(), {}, CONFIG)
  assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == [
    '5',
    '7',
  ]
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(_state()).step == 7
  with pytest.raises(ValueError, match='max_to_keep is 1'):
    Checkpoints(tmp_path, max_to_keep=1)


def test_manifest_is_what_sha256sum_reads(tmp_path):
  _save(tmp_path, 1)
  checked = subprocess.run(
    ['sha256sum', '--check', '--strict', '--quiet', 'SHA256SUMS'],
    cwd=tmp_path / '1',
  )
  assert checked.returncode == 0


@pytest.mark.slow
def test_restores_into_shardings_of_eight_devices(tmp_path):
  _save(tmp_path, 3)
  ran = _run(
    """
    import sys
    import jax
    from jax.sharding import NamedSharding, PartitionSpec as P
    import numpy as np
    from memagent_jax import sharding
    from memagent_jax.train.checkpoint import Checkpoints
    from tests.train.test_checkpoint import _bytes, _state

    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    def split(x):
      spec = P(('data', 'fsdp'), 'tensor') if x.ndim == 2 else P()
      return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
      )
    target = jax.tree.map(split, jax.eval_shape(_state))
    with Checkpoints(sys.argv[1]) as checkpoints:
      state = checkpoints.restore(target).state
      for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target)):
        assert got.sharding == wanted.sharding
      w = state.params['block']['w']
      # 8 rows over 4, 2 columns over 2.
      assert [s.data.shape for s in w.addressable_shards] == [(2, 1)] * 8
      assert _bytes(state) == _bytes(_state(3))
      checkpoints.save(4, state, {}, '')
    """,
    tmp_path,
    XLA_FLAGS='--xla_force_host_platform_device_count=8',
    JAX_PLATFORMS='cpu',
  )
  assert ran.returncode == 0, ran.stderr
  assert 'devices 1 then, 8 now' in ran.stderr
  # And back: one device reads what eight wrote.
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(_state())
  assert restored.step == 4
  assert _bytes(restored.state) == _bytes(_state(3))


# --- damage -------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_found(tmp_path, caplog):
  _save(tmp_path / 'good', 1, 2)
  step = tmp_path / 'good' / '2'
  names = [p.relative_to(step) for p in step.rglob('*') if p.is_file()]
  assert len(names) > 5
  for name in names:
    run = tmp_path / 'flipped'
    shutil.copytree(tmp_path / 'good', run)
    _flip_bit(run / '2' / name)
    caplog.clear()
    with Checkpoints(run) as checkpoints:
      restored = checkpoints.restore(_state())
    assert restored.step == 1, name
    assert _bytes(restored.state) == _bytes(_state(1))
    assert restored.extras == {'next': 1}
    assert (run / 'damaged.2' / name).exists()
    assert not (run / '2').exists()
    [message] = [r.getMessage() for r in caplog.records]
    assert 'checkpoint 2 is damaged' in message
    if name.name != 'SHA256SUMS':
      assert str(name) in message
    shutil.rmtree(run)


@pytest.mark.parametrize(
  'change', ['lost', 'added', 'cut', 'no_manifest', 'metadata']
)
def test_other_damage_is_found(tmp_path, change):
  _save(tmp_path, 1, 2)
  manifest = tmp_path / '2' / 'SHA256SUMS'
  if change == 'lost':
    _data_file(tmp_path / '2').unlink()
  elif change == 'added':
    (tmp_path / '2' / 'state' / 'other').write_text('')
  elif change == 'cut':
    manifest.write_text('')
  elif change == 'metadata':
    # JSON that Orbax rejects when it opens the directory.
    (tmp_path / '2' / '_CHECKPOINT_METADATA').write_text('[]')
  else:
    manifest.unlink()
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(_state()).step == 1
    state = 'unfinished' if change == 'no_manifest' else 'damaged'
    assert (tmp_path / f'{state}.2').exists()
    # The step is free again, and its next damage gets its own name.
    for name in ('damaged.2', 'damaged.2.2')[state == 'damaged' :]:
      checkpoints.save(2, _state(2), {}, CONFIG)
      checkpoints.wait()
      manifest.write_text('')
      assert checkpoints.restore(_state()).step == 1
      assert (tmp_path / name).exists()


def test_a_first_save_that_was_interrupted_is_no_checkpoint(tmp_path):
  """Killed between Orbax's last rename and the manifest."""
  _save(tmp_path, 1)
  (tmp_path / '1' / 'SHA256SUMS').unlink()
  for _ in range(2):
    with Checkpoints(tmp_path) as checkpoints:
      assert checkpoints.restore(_state()) is None
  assert (tmp_path / 'unfinished.1').exists()
  _save(tmp_path, 1)
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(_state()).step == 1


def test_nothing_but_damage_is_an_error_each_time(tmp_path):
  _save(tmp_path, 1, 2)
  for step in '12':
    _flip_bit(_data_file(tmp_path / step))
  for _ in range(2):
    with (
      Checkpoints(tmp_path) as checkpoints,
      pytest.raises(ValueError, match='all checkpoints are damaged'),
    ):
      checkpoints.restore(_state())
  names = {p.name for p in tmp_path.iterdir()}
  assert names >= {'damaged.1', 'damaged.2'}


@pytest.mark.slow
def test_killed_while_saving_leaves_the_step_before(tmp_path):
  ran = _run(
    """
    import os, pathlib, signal, sys
    import jax.numpy as jnp
    from memagent_jax.train.checkpoint import Checkpoints
    from tests.train.test_checkpoint import CONFIG, _state

    run = pathlib.Path(sys.argv[1])
    checkpoints = Checkpoints(run)
    checkpoints.save(1, _state(1), {'next': 1}, CONFIG)
    checkpoints.wait()
    large = _state(2).replace(params={'w': jnp.ones((1 << 24,))})
    checkpoints.save(2, large, {}, CONFIG)
    # Unfinished steps have a longer name.
    while not any(p.name.startswith('2.') for p in run.iterdir()):
      pass
    os.kill(os.getpid(), signal.SIGKILL)
    """,
    tmp_path,
    JAX_PLATFORMS='cpu',
  )
  assert ran.returncode == -9, ran.stderr
  assert any(p.name.startswith('2.') for p in tmp_path.iterdir())
  assert not (tmp_path / '2').exists()
  with Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(_state())
    assert restored.step == 1
    assert restored.extras == {'next': 1}
    assert _bytes(restored.state) == _bytes(_state(1))
    checkpoints.save(3, _state(3), {}, CONFIG)
    assert checkpoints.restore(_state()).step == 3
  # Unfinished saves do not pile up.
  assert not any(p.name.startswith('2.') for p in tmp_path.iterdir())


# --- refusals and failures ----------------------------------------------------


@pytest.mark.parametrize('step', [4, 5])
def test_saving_at_or_below_the_latest_is_an_error(tmp_path, step):
  _save(tmp_path, 5)
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(ValueError, match=rf'step {step}: .* has step 5'),
  ):
    checkpoints.save(step, _state(), {}, CONFIG)


@pytest.fixture
def small_files():
  """Makes files end at 64 KB, as if the disk were full."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('then', ['save', 'wait', 'close', 'restore'])
def test_a_failed_write_surfaces_at_the_next_call(tmp_path, small_files, then):
  # A single array: Orbax closes a save's event loop at the first write that fails,
  # and other writes still running would find it closed.
  noise = jax.random.normal(jax.random.key(0), (1 << 18,))
  large = TrainState(None, {'w': noise}, (), None)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, _state(), {'next': 1}, CONFIG)
  checkpoints.wait()
  small_files()
  checkpoints.save(2, large, {}, CONFIG)
  calls = {
    'save': lambda: checkpoints.save(3, _state(), {}, CONFIG),
    'wait': checkpoints.wait,
    'close': checkpoints.close,
    'restore': lambda: checkpoints.restore(_state()),
  }
  with pytest.raises(OSError, match='step 2 was not saved') as raised:
    calls[then]()
  assert raised.value.__cause__ is not None
  # Once is enough: the error of `with` is the first one.
  checkpoints.close()
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(_state()).step == 1


def test_a_manifest_that_cannot_be_written_is_a_failed_save(
  tmp_path, monkeypatch
):
  def full(step):
    raise OSError(f'no space for {step.name}')

  monkeypatch.setattr(checkpoint.manifest, 'write', full)
  with (
    pytest.raises(OSError, match=r'step 7 was not saved in .*no space for 7'),
    Checkpoints(tmp_path) as checkpoints,
  ):
    checkpoints.save(7, _state(), {}, CONFIG)


def test_another_tree_or_shape_is_refused_by_name(tmp_path):
  _save(tmp_path, 1)
  state = _state()
  wide = state.replace(
    params={**state.params, 'block': {'w': jnp.zeros((8, 3))}}
  )
  deep = state.replace(params=state.params | {'more': jnp.zeros(5)})
  less = state.replace(params={'odd': state.params['odd']})
  unclipped = train_state.init_state(
    OptimizerConfig(clip_norm=0.0), state.params
  )
  loose = jax.eval_shape(_state)
  with Checkpoints(tmp_path) as checkpoints:
    for target, message in (
      (wide, r'params/block/w has shape \(8, 3\) here, expected \(8, 2\)'),
      (deep, r'params/more has shape \(5,\) here, expected absent'),
      (less, r'params/block/w has shape absent here, expected \(8, 2\)'),
      (unclipped, 'opt_state/0/count has shape .* here, expected absent'),
      (loose, 'step has no sharding'),
    ):
      with pytest.raises(ValueError, match=message):
        checkpoints.restore(target)
    # Nothing was mistaken for damage.
    assert checkpoints.restore(state).step == 1


def test_another_environment_is_a_warning(tmp_path, monkeypatch, caplog):
  _save(tmp_path, 1)
  now = checkpoint._environment()
  assert now['jax'] == jax.__version__
  assert now['devices'] == jax.device_count()
  monkeypatch.setattr(
    checkpoint, '_environment', lambda: now | {'jax': '9.9', 'cpu cores': 77}
  )
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore(_state()).step == 1
  [message] = [r.getMessage() for r in caplog.records]
  assert message.endswith(
    f'jax {jax.__version__} then, 9.9 now; '
    f'cpu cores {now["cpu cores"]} then, 77 now'
  )


# --- several processes --------------------------------------------------------


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
  code = textwrap.dedent(
    """
    import pathlib, sys
    import jax
    run, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'localhost:{port}', 2, process)
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding, PartitionSpec as P
    import numpy as np
    from memagent_jax import sharding
    from memagent_jax.train import checkpoint
    from memagent_jax.train.checkpoint import Checkpoints
    from tests.train.test_checkpoint import _bytes, _data_file, _flip_bit, _state

    mesh = sharding.make_mesh(sharding.MeshConfig(1, 2, 1))
    def split(x):
      place = NamedSharding(mesh, P('fsdp') if x.ndim == 2 else P())
      x = np.asarray(x)
      return jax.make_array_from_callback(x.shape, place, lambda i: x[i])
    def shard(state):
      return _bytes([x.addressable_data(0) for x in jax.tree.leaves(state)])
    state = lambda n: jax.tree.map(split, _state(n))

    with Checkpoints(run) as checkpoints:
      assert checkpoints.restore(state(0)) is None
      for step in (1, 2, 3):
        checkpoints.save(step, state(step), {'next': step}, '')
      checkpoints.wait()
      if process == 0:
        _flip_bit(_data_file(pathlib.Path(run, '3')))
      multihost_utils.sync_global_devices('flipped')
      restored = checkpoints.restore(state(0))
      assert (restored.step, restored.extras) == (2, {'next': 2})
      assert shard(restored.state) == shard(state(2))
      # A manifest that cannot be written is a failure on both.
      if process == 0:
        def full(step):
          raise OSError('no space')
        checkpoint.manifest.write = full
      checkpoints.save(3, state(3), {}, '')
      try:
        checkpoints.wait()
        raise AssertionError('no error')
      except OSError as e:
        assert 'step 3 was not saved' in str(e)
    """
  )
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(tmp_path), str(port), str(process)],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      cwd=Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(2)
  ]
  for process in processes:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
  assert (tmp_path / 'damaged.3').exists()
