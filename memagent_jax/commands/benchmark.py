"""Times decode, reading and update against PyTorch.

  memagent benchmark --suite=decode --out=docs/results/decode.json
  memagent benchmark --suite=reading --out=docs/results/reading.json
  memagent benchmark --suite=update --out=docs/results/update.json
  TPU_SKIP_MDS_QUERY=1 memagent benchmark --suite=tpu_aot \\
    --tunix_python=VENV/bin/python --out=docs/results/tpu_aot.json

`decode`: tokens/s at batch 1 and 8 after a prompt of 1,024 tokens, float32,
SmolLM2-135M; ours and transformers take turns, each in its own process. PyTorch
runs if the extra [parity] is installed, or in the interpreter --torch_python.
`reading`: seconds a chunk and peak host memory for few chunks and for many, with
a tiny random model, through the public `Reader`.
`update`: trained tokens/s and peak host memory of one optimizer step on 16 turns
of 640 + 64 tokens, float32, SmolLM2-135M, by size of the micro-batch; both sides
take turns and must agree in loss and gradient norm.
`tpu_aot`: memory and traffic of one update of a Qwen2.5-7B with fewer layers,
compiled ahead of time for a slice (extra [tpu_aot]); --tunix_python is the
interpreter of a venv with google-tunix and libtpu.

Hardware: two CPU cores, about 15, 5, 45 (with --repeats=3) and 15 minutes. Goals:
prefill at least 1.0x and decode at least 2.0x of PyTorch's rate; seconds a chunk
within 10 %, memory within 64 MB; update at least 1.0x of PyTorch's rate with no more
memory; on TPU no more memory and traffic than tunix. Results: docs/results.md.
"""

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import platform
import sys
import time
from typing import Any

from absl import app, flags

from memagent_jax.commands.benchmarks import decode, reading, tpu_aot, update

_SUITE = flags.DEFINE_enum(
  'suite',
  'decode',
  ['decode', 'reading', 'update', 'tpu_aot'],
  'What is measured.',
)
_OUT = flags.DEFINE_string('out', None, 'JSON with every single figure.')
_MODEL = flags.DEFINE_string(
  'model', 'smollm2-135m', 'Model directory or name.'
)
_BATCH = flags.DEFINE_list(
  'batch', ['1', '8'], 'Rows side by side in `decode`.'
)
_PROMPT_TOKENS = flags.DEFINE_integer(
  'prompt_tokens',
  None,
  'Tokens of a prompt. [1024 in `decode`, 640 in `update`, 7168 in `tpu_aot`]',
)
_NEW_TOKENS = flags.DEFINE_integer('new_tokens', 32, 'Decode steps timed.')
_ROWS = flags.DEFINE_integer(
  'rows', None, 'Turns of one update. [16; 32 in `tpu_aot`]'
)
_RESPONSE_TOKENS = flags.DEFINE_integer(
  'response_tokens', None, 'Tokens of a response. [64; 1024 in `tpu_aot`]'
)
_MICRO_BATCH = flags.DEFINE_list(
  'micro_batch', ['1', '2', '4', '8', '16'], 'Turns at once in our `update`.'
)
_TORCH_MICRO_BATCH = flags.DEFINE_list(
  'torch_micro_batch', ['1', '2', '4', '8'], "Turns at once in PyTorch's."
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Interleaved measurements.')
_TORCH_PYTHON = flags.DEFINE_string(
  'torch_python', sys.executable, 'Interpreter that has torch and transformers.'
)
_TUNIX_PYTHON = flags.DEFINE_string(
  'tunix_python', sys.executable, 'Interpreter that has google-tunix.'
)
_TOPOLOGY = flags.DEFINE_string('topology', 'v5p:2x4x4', 'Slice for `tpu_aot`.')
_LAYERS = flags.DEFINE_integer(
  'layers', 4, 'Layers of the decoder in `tpu_aot`.'
)
_TENSOR = flags.DEFINE_integer('tensor', 4, 'Tensor shards in `tpu_aot`.')
_CHUNKS = flags.DEFINE_list(
  'chunks', ['8', '200'], 'Chunks of a document in `reading`.'
)
_WORKER = flags.DEFINE_enum(
  'worker',
  None,
  [
    'decode_jax',
    'decode_torch',
    'reading',
    'update_jax',
    'update_torch',
    'tpu_aot_ours',
    'tpu_aot_tunix',
  ],
  'Internal: one side of a suite.',
)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if _WORKER.value is not None:
    _work(_WORKER.value)
    return
  result = {
    'decode': _decode,
    'reading': _reading,
    'update': _update,
    'tpu_aot': _tpu_aot,
  }[_SUITE.value]()
  result['machine'] = {
    'cores': len(os.sched_getaffinity(0)),
    'processor': platform.processor() or platform.machine(),
    'date': time.strftime('%Y-%m-%d'),
  }
  if _OUT.value is not None:
    Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + '\n'
    Path(_OUT.value).write_text(text, encoding='utf-8')


def _work(worker: str) -> None:
  """Runs one side of a suite, with the flags that `workers` passed to it."""
  if worker == 'reading':
    reading.read_once(*_integers(_CHUNKS))
    return
  if worker.startswith('tpu_aot'):
    side = worker.removeprefix('tpu_aot_')
    compile_side = {
      'ours': tpu_aot.compile_ours,
      'tunix': tpu_aot.compile_tunix,
    }
    compile_side[side](**_aot_workload())
    return
  sides: dict[str, Callable[..., None]] = {
    'decode_jax': decode.serve_jax,
    'decode_torch': decode.serve_torch,
    'update_jax': update.serve_jax,
    'update_torch': update.serve_torch,
  }
  serve = sides[worker]
  if worker.startswith('decode'):
    serve(_MODEL.value, _given(_PROMPT_TOKENS, 1024), _NEW_TOKENS.value)
  else:
    serve(_MODEL.value, _workload())


def _decode() -> dict:
  return decode.suite(
    model=_MODEL.value,
    batches=_integers(_BATCH),
    prompt_tokens=_given(_PROMPT_TOKENS, 1024),
    new_tokens=_NEW_TOKENS.value,
    repeats=_REPEATS.value,
    torch_python=_TORCH_PYTHON.value,
  )


def _reading() -> dict:
  return reading.suite(chunks=_integers(_CHUNKS), repeats=_REPEATS.value)


def _update() -> dict:
  return update.suite(
    model=_MODEL.value,
    workload=_workload(),
    micro_batches={
      'jax': _integers(_MICRO_BATCH),
      'torch': _integers(_TORCH_MICRO_BATCH),
    },
    repeats=_REPEATS.value,
    torch_python=_TORCH_PYTHON.value,
  )


def _tpu_aot() -> dict:
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  return tpu_aot.suite(tunix_python=_TUNIX_PYTHON.value, **_aot_workload())


def _aot_workload() -> dict[str, Any]:
  return {
    'topology': _TOPOLOGY.value,
    'layers': _LAYERS.value,
    'tensor': _TENSOR.value,
    'rows': _given(_ROWS, 32),
    'prompt_tokens': _given(_PROMPT_TOKENS, 7168),
    'response_tokens': _given(_RESPONSE_TOKENS, 1024),
  }


def _workload() -> update.Workload:
  return update.Workload(
    _given(_ROWS, 16), _given(_PROMPT_TOKENS, 640), _given(_RESPONSE_TOKENS, 64)
  )


def _given(flag: flags.FlagHolder, default: int) -> int:
  return default if flag.value is None else flag.value


def _integers(flag: flags.FlagHolder) -> list[int]:
  return [int(text) for text in flag.value]
