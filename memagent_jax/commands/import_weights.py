"""Writes a model as a Hugging Face directory, verified.

  memagent import-weights --source=MODEL.gguf --out=DIR

--source is a Hugging Face directory, a .gguf file or a model name (like --model
of the other commands). The directory holds safetensors, config.json, the
tokenizer and its chat template, and loads in transformers. Verifying reads it
back into params and compares every tensor with the source's, bit for bit.

Hardware: one CPU core, a few seconds for 135M parameters from GGUF; host memory
for the params and one more tensor.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

if TYPE_CHECKING:
  from memagent_jax.models.configs import ModelConfig
  from memagent_jax.models.tokenizer import Tokenizer

_SOURCE = flags.DEFINE_string(
  'source', None, 'Model directory, .gguf file or model name.', required=True
)
_OUT = flags.DEFINE_string(
  'out', None, 'Directory to write; absent or empty.', required=True
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  'float32',
  ['float32', 'bfloat16', 'float16'],
  'Type of the weights in the directory.',
)


def import_weights(
  source: str, out: str, dtype: str, report: Callable[[str], None] = print
) -> None:
  """Writes and verifies `out`; prints a summary through `report`.

  Raises:
    ValueError: the source is unknown, unsupported or damaged; `out` is not
      empty; a weight does not fit `dtype`; or what was written differs.
  """
  # Imported here so that --help need not wait for jax.
  from pathlib import Path
  import shutil

  from memagent_jax.models.weights import huggingface, pretrained

  directory = Path(out)
  huggingface.check_free(directory)
  path = pretrained.resolve(source, report)
  config, tokenizer, read = pretrained.open_model(path)
  report(f'reading {path}')
  params = huggingface.params_from_tensors(config, read, dtype=dtype)
  report(f'writing {directory}')
  huggingface.save_model(directory, config, params, tokenizer, dtype)
  del params
  report('verifying')
  try:
    verify(directory, config, tokenizer, read, dtype)
  except ValueError:
    shutil.rmtree(directory)
    raise
  for line in _summary(directory, config, tokenizer, dtype):
    report(line)


def verify(
  directory: Path,
  config: 'ModelConfig',
  tokenizer: 'Tokenizer',
  read: Callable[[str], Any],
  dtype: str,
) -> None:
  """Raises ValueError unless `directory` reads back as what was written to it.

  Args:
    directory: the written model directory.
    config: the source's ModelConfig.
    tokenizer: the source's Tokenizer.
    read: tensor name -> the source's tensor.
    dtype: type of the directory's weights.
  """
  import jax.numpy as jnp
  import numpy as np

  from memagent_jax.models.tokenizer import Tokenizer
  from memagent_jax.models.weights import huggingface

  written = huggingface.read_config(directory)
  if written != config:
    raise ValueError(
      f'{directory}: config is {written} when read back, expected {config}.'
    )
  fingerprint = Tokenizer.from_directory(directory).fingerprint
  if fingerprint != tokenizer.fingerprint:
    raise ValueError(
      f'{directory}: tokenizer is {fingerprint} when read back, expected '
      f'{tokenizer.fingerprint}.'
    )
  params = huggingface.load_params(directory, config, dtype=dtype)
  for name, tensor in huggingface.tensors_from_params(config, params):
    expected = np.ascontiguousarray(read(name), jnp.dtype(dtype))
    # As bytes: NaN equals itself, and 0.0 is not -0.0.
    if tensor.tobytes() != expected.tobytes():
      raise ValueError(
        f'{directory}: tensor {name} differs from the source when read back.'
      )
    if not np.isfinite(tensor.astype(np.float32)).all():
      raise ValueError(
        f'tensor {name} has values that are not finite in {dtype}; use '
        '--dtype=float32, or get the source again.'
      )


def _summary(
  directory: Path, config: 'ModelConfig', tokenizer: 'Tokenizer', dtype: str
) -> list[str]:
  import math

  from memagent_jax.io import downloads
  from memagent_jax.models.weights import tensor_layout

  shapes = tensor_layout.tensor_shapes(config)
  parameters = sum(math.prod(shape) for shape in shapes.values())
  files = sorted(directory.glob('*.safetensors'))
  return [
    f'{directory}: {config.architecture}, {len(shapes)} tensors, '
    f'{parameters:,} parameters, {dtype}; equal to the source',
    f'tokenizer: {tokenizer.vocab_size:,} tokens, sha {tokenizer.fingerprint}',
    *(f'{file.name}: sha256 {downloads.sha256(file)}' for file in files),
  ]


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  try:
    import_weights(_SOURCE.value, _OUT.value, _DTYPE.value)
  except (ValueError, OSError) as e:
    raise SystemExit(f'error: {e}') from None
