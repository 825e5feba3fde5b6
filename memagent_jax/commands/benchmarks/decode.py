"""Measures prefill and decode in tokens/s; ours and transformers take turns."""

from collections.abc import Sequence
import contextlib
import statistics
import time
from typing import TYPE_CHECKING, Any

from memagent_jax.commands.benchmarks import workers

if TYPE_CHECKING:
  import numpy as np


def suite(
  *,
  model: str,
  batches: list[int],
  prompt_tokens: int,
  new_tokens: int,
  repeats: int,
  torch_python: str,
) -> dict:
  """Alternates the two sides; prints medians, and the ratio of the medians."""
  from memagent_jax.models.weights import pretrained

  directory = pretrained.resolve(model)
  rows = []
  with contextlib.ExitStack() as stack:
    sides = {
      side: stack.enter_context(
        workers.Worker(
          python,
          f'decode_{side}',
          model=directory,
          prompt_tokens=prompt_tokens,
          new_tokens=new_tokens,
        )
      )
      for side, python in workers.pythons(torch_python).items()
    }
    for batch in batches:
      for worker in sides.values():
        worker.ask(batch)  # compiles and warms up
      for _ in range(repeats):
        for side, worker in sides.items():
          rows.append({'side': side, 'batch': batch, **worker.ask(batch)})
      _report(rows, batch, prompt_tokens, new_tokens)
  versions = {side: worker.version for side, worker in sides.items()}
  return {'suite': 'decode', 'versions': versions, 'rows': rows}


def _report(
  rows: Sequence[dict[str, Any]],
  batch: int,
  prompt_tokens: int,
  new_tokens: int,
) -> None:
  rates = {}
  for side in ('jax', 'torch'):
    mine = [r for r in rows if r['side'] == side and r['batch'] == batch]
    if not mine:
      continue
    prefill = statistics.median(r['prefill_seconds'] for r in mine)
    decode = statistics.median(r['decode_seconds'] for r in mine)
    rates[side] = (batch * prompt_tokens / prefill, batch * new_tokens / decode)
    print(
      f'batch {batch}  {side:5s}  prefill {rates[side][0]:8.1f} tokens/s  '
      f'decode {rates[side][1]:7.1f} tokens/s  '
      f'({1e3 * decode / new_tokens:.1f} ms a step)',
      flush=True,
    )
  if len(rates) == 2:
    prefill, decode = (a / b for a, b in zip(*rates.values(), strict=True))
    print(f'batch {batch}  ratio  prefill {prefill:.2f}x  decode {decode:.2f}x')


def _prompts(batch: int, prompt_tokens: int) -> 'np.ndarray':
  """Random ids far from the control tokens, the same on both sides."""
  import numpy as np

  shape = (batch, prompt_tokens)
  return np.random.default_rng(0).integers(100, 40_000, shape)


def serve_jax(model: str, prompt_tokens: int, new_tokens: int) -> None:
  """The worker of our side."""
  import jax
  import jax.numpy as jnp

  from memagent_jax import load_model
  from memagent_jax.sampling import decode
  from memagent_jax.structs import Tokens

  loaded = load_model(model)
  prefill = jax.jit(decode.prefill, static_argnums=0)
  respond = jax.jit(decode.respond, static_argnums=(0, 3, 4))
  # The first token comes from the prefill's logits: one step fewer than tokens.
  sampling = decode.SamplingConfig(max_tokens=new_tokens + 1)

  def measure(batch: int) -> dict[str, float]:
    prompt = Tokens(
      jnp.asarray(_prompts(batch, prompt_tokens), jnp.int32),
      jnp.full((batch,), prompt_tokens, jnp.int32),
    )
    keys = decode.row_keys(
      0, jnp.arange(batch, dtype=jnp.uint32), jnp.zeros(batch, jnp.int32)
    )
    start = time.perf_counter()
    prefilled = prefill(loaded.config, loaded.params, prompt)
    jax.block_until_ready(prefilled)
    middle = time.perf_counter()
    response = respond(
      loaded.config, loaded.params, prefilled, sampling, (), keys
    )
    jax.block_until_ready(response)
    end = time.perf_counter()
    return {'prefill_seconds': middle - start, 'decode_seconds': end - middle}

  workers.serve({'jax': jax.__version__}, measure)


def serve_torch(model: str, prompt_tokens: int, new_tokens: int) -> None:
  """The worker of the other side."""
  import torch
  import transformers

  lm = transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=torch.float32, attn_implementation='sdpa'
  ).eval()

  @torch.inference_mode()
  def measure(batch: int) -> dict[str, float]:
    ids = torch.from_numpy(_prompts(batch, prompt_tokens))
    start = time.perf_counter()
    out = lm(ids, use_cache=True, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(new_tokens):
      token = out.logits[:, -1:].argmax(-1)
      out = lm(token, past_key_values=out.past_key_values, use_cache=True)
    end = time.perf_counter()
    return {'prefill_seconds': middle - start, 'decode_seconds': end - middle}

  workers.serve(
    {'torch': torch.__version__, 'transformers': transformers.__version__},
    measure,
  )
