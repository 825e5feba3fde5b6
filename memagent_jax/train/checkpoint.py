"""Checkpoints: TrainState, counters and config to disk and back, checked.

    train loop -> Checkpoints.save ... (killed) ... Checkpoints.restore -> loop

A step is a directory that Orbax writes: `state/` holds the arrays, `run/` a
JSON of counters, config and environment. Orbax restores a flipped bit silently,
so a step also has SHA256SUMS, written once everything else is in place
(`sha256sum -c SHA256SUMS` checks it by hand). A step without it was never
finished. Directories are local or gs://.
"""

from collections.abc import Mapping
import concurrent.futures
import dataclasses
from importlib import metadata
import json
import os
import platform
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

from memagent_jax.io import manifest
from memagent_jax.train.train_state import TrainState

_STATE, _RUN = 'state', 'run'
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint')
# What process 0 broadcasts instead of a step.
_NOTHING, _ALL_DAMAGED = -1, -2


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint held."""

  step: int
  state: TrainState
  extras: dict[str, Any]
  config_text: str


class Checkpoints:
  """The checkpoints of one run; one job at a time may have a directory open.

  All processes call every method. Opening removes what an interrupted save left
  unfinished.
  """

  def __init__(self, directory: str | os.PathLike, *, max_to_keep: int = 3):
    """Opens a directory, creating it if necessary.

    Args:
      directory: local or gs://.
      max_to_keep: steps to keep; each newer one replaces the oldest.

    Raises:
      ValueError: fewer than two steps to keep.
    """
    if max_to_keep < 2:
      raise ValueError(
        f'max_to_keep is {max_to_keep}; expected at least 2, so that a damaged '
        'checkpoint leaves one to resume from.'
      )
    self._directory = _absolute(directory)
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(max_to_keep),
        cleanup_tmp_directories=True,
        # Unreadable metadata must not make older steps unreachable.
        lightweight_initialize=True,
      ),
      item_handlers={
        _STATE: ocp.StandardCheckpointHandler(),
        _RUN: ocp.JsonCheckpointHandler(),
      },
    )
    # Orbax's own hook runs before the step has its final files and name; a
    # thread that waits for the manager needs only its public interface.
    self._sealer = concurrent.futures.ThreadPoolExecutor(1, 'seal')
    self._saving: tuple[int, concurrent.futures.Future] | None = None

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *details: object) -> None:
    self.close()

  def save(
    self,
    step: int,
    state: TrainState,
    extras: Mapping[str, Any],
    config_text: str,
  ) -> None:
    """Starts a save; waits only for the previous one.

    `state` may be donated as soon as this returns.

    Args:
      step: number of the step, above every step saved before.
      state: arrays, sharded or not.
      extras: counters and iterator state; dicts, lists, text, numbers and None.
      config_text: config of the run.

    Raises:
      ValueError: a step at or below the latest, or extras that JSON would
        change (keys that are not text, tuples, nan).
      OSError: the previous save failed.
    """
    self.wait()
    run = {
      'environment': _environment(),
      'extras': _exact_json(extras),
      'config': config_text,
    }
    started = self._manager.save(
      step,
      args=ocp.args.Composite(
        **{
          _STATE: ocp.args.StandardSave(state),
          _RUN: ocp.args.JsonSave(run),
        }
      ),
    )
    if not started:
      raise ValueError(
        f'cannot save step {step}: {self._directory} has step '
        f'{self._manager.latest_step()} already; steps must go up.'
      )
    self._saving = step, self._sealer.submit(self._seal, step)

  def wait(self) -> None:
    """Returns when the last save is complete, manifest included.

    Raises:
      OSError: the save failed; the message has the step and the reason.
    """
    if self._saving is None:
      return
    (step, sealing), self._saving = self._saving, None
    error = None
    try:
      # Orbax raises once in each thread that asks, so asking here as well keeps
      # `close` from raising the same error again.
      self._manager.wait_until_finished()
      sealing.result()
    except Exception as e:
      error = e
    # Process 0 alone writes the manifest, so it alone knows of that failure.
    failed = ocp.multihost.broadcast_one_to_all(np.int32(error is not None))
    if error is not None or failed:
      raise OSError(
        f'checkpoint of step {step} was not saved in {self._directory}: '
        f'{error or "see the log of process 0"}'
      ) from error

  def close(self) -> None:
    """Waits for the last save, then releases the directory.

    Raises:
      OSError: the last save failed.
    """
    try:
      self.wait()
    finally:
      self._sealer.shutdown()
      self._manager.close()

  def restore(self, state_like: TrainState) -> Restored | None:
    """The newest good checkpoint; None if there is none at all.

    Newer steps are renamed, with a warning: damaged ones to `damaged.STEP`,
    those whose save was interrupted to `unfinished.STEP`. An environment that
    differs from the checkpoint's also gives a warning: only in the same one
    does a run continue bit for bit.

    Args:
      state_like: arrays, or ShapeDtypeStructs with shardings. The result has
        its tree, shapes, dtypes and shardings.

    Raises:
      ValueError: all checkpoints are damaged, or `state_like` has another tree
        or shape (the message has the first difference) or a leaf without
        sharding.
      OSError: the previous save failed, or files cannot be read.
    """
    self.wait()
    target = jax.tree_util.tree_map_with_path(_abstract, state_like)
    step = self._newest_good_step()
    if step is None:
      return None
    saved = self._manager.metadata(step).item_metadata[_STATE].tree
    _check_tree(f'checkpoint {self._directory / str(step)}', saved, target)
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{
          _STATE: ocp.args.StandardRestore(target),
          _RUN: ocp.args.JsonRestore(),
        }
      ),
    )
    run = items[_RUN]
    changes = _changes(run['environment'], _environment())
    if changes:
      logging.warning(
        'checkpoint %d was saved under other conditions, so the run does not '
        'resume bit for bit: %s',
        step,
        '; '.join(changes),
      )
    return Restored(step, items[_STATE], run['extras'], run['config'])

  def _seal(self, step: int) -> None:
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      manifest.write(self._directory / str(step))

  def _newest_good_step(self) -> int | None:
    """The same step on all processes; process 0 reads and renames."""
    found = _NOTHING
    if jax.process_index() == 0:
      found = _newest_good(self._directory, self._manager.all_steps())
    found = int(ocp.multihost.broadcast_one_to_all(np.int32(found)))
    self._manager.reload()
    if found == _ALL_DAMAGED:
      raise ValueError(
        f'{self._directory}: all checkpoints are damaged (damaged.*). Put back '
        'a good copy, or use another workdir to start over.'
      )
    return None if found == _NOTHING else found


def _absolute(directory: str | os.PathLike) -> epath.Path:
  path = epath.Path(directory)
  # `absolute` would treat gs:// as part of a local path.
  return path if path.is_absolute() else path.absolute()


def _newest_good(directory: epath.Path, steps: list[int]) -> int:
  """A step, _NOTHING or _ALL_DAMAGED; renames newer ones that are not good."""
  for step in sorted(steps, reverse=True):
    path = directory / str(step)
    fault = manifest.first_difference(path)
    if fault is None:
      return step
    # Without a manifest, its save was interrupted, and its content is lost.
    state = 'damaged' if (path / manifest.NAME).exists() else 'unfinished'
    moved = _free_name(directory, f'{state}.{step}')
    path.rename(moved)
    logging.warning(
      'checkpoint %d is %s (%s); it is now %s.', step, state, fault, moved
    )
  damaged = any(
    path.name.startswith('damaged.') for path in directory.iterdir()
  )
  return _ALL_DAMAGED if damaged else _NOTHING


def _free_name(directory: epath.Path, name: str) -> epath.Path:
  """`name`, or `name.2`, `name.3` ... if the same step was renamed before."""
  path, count = directory / name, 1
  while path.exists():
    count += 1
    path = directory / f'{name}.{count}'
  return path


# --- what else is checked -----------------------------------------------------


def _exact_json(extras: Mapping[str, Any]) -> dict[str, Any]:
  """A copy, so that the caller's counters may change while it is written."""
  try:
    copy = json.loads(json.dumps(extras))
  except TypeError as e:
    raise ValueError(f'extras cannot be kept as JSON: {e}.') from e
  for name, value in extras.items():
    if name not in copy or copy[name] != value:
      raise ValueError(
        f'extras[{name!r}] is {value!r} and would come back as '
        f'{copy.get(str(name))!r}; use text keys, lists and finite numbers.'
      )
  return copy


def _abstract(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    raise ValueError(
      f'{_name(path)} has no sharding to restore into; got '
      f'{type(leaf).__name__}, expected a jax.Array or a ShapeDtypeStruct with '
      'a sharding.'
    )
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _name(path: tuple[Any, ...]) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _check_tree(where: str, saved: Any, target: Any) -> None:
  """Compares names and shapes, which Orbax keeps; it does not keep types."""
  saved_shapes, target_shapes = _shapes(saved), _shapes(target)
  for name in target_shapes | saved_shapes:
    got = target_shapes.get(name, 'absent')
    expected = saved_shapes.get(name, 'absent')
    if got != expected:
      raise ValueError(
        f'{where} is of another model or optimizer: {name} has shape {got} '
        f'here, expected {expected}. Use its config, or another workdir.'
      )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _environment() -> dict[str, Any]:
  """The conditions, besides its config, for a run to continue bit for bit."""
  device = jax.devices()[0]
  environment: dict[str, Any] = {
    package: metadata.version(package) for package in _PACKAGES
  }
  environment |= {
    'python': platform.python_version(),
    'processes': jax.process_count(),
    'device kind': device.device_kind,
    'devices': jax.device_count(),
  }
  if device.platform == 'cpu':
    # XLA splits reductions over threads.
    environment['cpu cores'] = _cpu_cores()
  return environment


def _cpu_cores() -> int | None:
  """The cores this process may use, if the system reports them, or all."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def _changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  return [
    f'{name} {saved.get(name, "unknown")} then, {now.get(name, "unknown")} now'
    for name in {**saved, **now}
    if saved.get(name) != now.get(name)
  ]
