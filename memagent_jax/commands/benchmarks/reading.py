"""Measures seconds a chunk and peak memory of `Reader`, short against long."""

import json
import math
import statistics
import time
from typing import TYPE_CHECKING

from memagent_jax.commands.benchmarks import workers

if TYPE_CHECKING:
  from memagent_jax.models.tokenizer import Tokenizer


def suite(*, chunks: list[int], repeats: int) -> dict:
  """Measures all lengths in turn, each in a fresh process; prints medians."""
  rows = []
  for _ in range(repeats):
    for length in chunks:
      rows.append(workers.run_once('reading', chunks=length))
  medians = {}
  for length in chunks:
    mine = [r for r in rows if r['chunks'] == length]
    seconds = statistics.median(r['seconds_per_chunk'] for r in mine)
    peak = statistics.median(r['peak_bytes'] for r in mine)
    grown = statistics.median(r['second_half_bytes'] for r in mine)
    medians[length] = (seconds, peak)
    print(
      f'{length:6,d} chunks  {1e3 * seconds:7.2f} ms a chunk  '
      f'peak {peak / 2**20:7.1f} MB, {grown / 2**20:+.1f} MB in the second half'
    )
  (short, short_peak), *_, (long, long_peak) = medians.values()
  print(
    f'ratio {long / short:.3f} in seconds a chunk, '
    f'{(long_peak - short_peak) / 2**20:+.1f} MB in peak memory'
  )
  return {'suite': 'reading', 'rows': rows}


def read_once(chunks: int) -> None:
  """The worker: reads the chunks after a warm-up; prints what they cost."""
  import jax

  from memagent_jax import Reader, ReadingConfig
  from memagent_jax.models import transformer
  from memagent_jax.models.configs import ModelConfig, RopeConfig
  from memagent_jax.models.model import Model

  model_config = ModelConfig(
    'llama', 260, 128, 4, 4, 2, 32, 384, 2048, 1e-5, RopeConfig()
  )
  params = transformer.init_params(model_config, jax.random.key(0))
  model = Model('tiny', model_config, params, _byte_tokenizer())
  config = ReadingConfig(
    chunk_tokens=1024, memory_tokens=64, answer_tokens=16, chunk_cut='token'
  )
  reader = Reader(model, 'Who?', config)
  text = 'It was a dark night, and nobody saw it. ' * 128  # five chunks
  reader.feed(text)
  reader.answer()
  read_before, start = reader.chunks_read, time.perf_counter()

  def read_on(most: int) -> None:
    while reader.chunks_read - read_before < most:
      reader.feed(text[: config.chunk_tokens])

  read_on(math.ceil(chunks / 2))
  half_way = workers.resident_bytes()
  read_on(chunks)
  seconds = time.perf_counter() - start
  result = {
    'chunks': chunks,
    'seconds_per_chunk': seconds / (reader.chunks_read - read_before),
    'peak_bytes': workers.peak_bytes(),
    'second_half_bytes': workers.resident_bytes() - half_way,
  }
  print(json.dumps(result))


def _byte_tokenizer() -> 'Tokenizer':
  """One id per byte, and two control tokens."""
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers
  import transformers

  from memagent_jax.models.tokenizer import Tokenizer

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(['<|end|>'])
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='<|end|>'
  )
  return Tokenizer(backend, hf)
