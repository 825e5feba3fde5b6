"""Measures one optimizer step of the policy loss: tokens/s and peak memory.

The step: `rows` turns of prompt and response, the paper's objective without a
reference model, gradients in micro-batches, clipping, AdamW. Both sides start
from the same weights, ids and advantages and take the same steps, so losses and
gradient norms must agree at every step. PyTorch runs the decoder of
transformers, the head on response positions only, and the fused AdamW.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import statistics
import time
from typing import TYPE_CHECKING, Any

from memagent_jax.commands.benchmarks import workers

if TYPE_CHECKING:
  import numpy as np

# The paper's learning rate, without its warm-up, and the clip norm.
_LEARNING_RATE, _CLIP_NORM = 1e-6, 1.0
# Largest difference between losses (advantages have scale 1), and largest
# relative difference between gradient norms.
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Workload:
  """What one update trains on."""

  rows: int
  prompt_tokens: int
  response_tokens: int

  @property
  def tokens(self) -> int:
    return self.rows * (self.prompt_tokens + self.response_tokens)

  def draw(self, vocab_size: int) -> 'tuple[np.ndarray, np.ndarray]':
    """Random ids [rows, tokens] far from control ids, and advantages [rows]."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (self.rows, self.prompt_tokens + self.response_tokens)
    ids = rng.integers(
      min(100, vocab_size // 2), min(40_000, vocab_size), shape
    )
    return ids, rng.standard_normal(self.rows).astype(np.float32)


def suite(
  *,
  model: str,
  workload: Workload,
  micro_batches: dict[str, list[int]],
  repeats: int,
  torch_python: str,
) -> dict:
  """Measures every micro-batch in a fresh process per side; the two take turns.

  Args:
    model: name or directory.
    workload: what one update trains on.
    micro_batches: micro-batch sizes to measure, in rows, by side.
    repeats: measurements of each size, after a step that compiles.
    torch_python: interpreter of the side `torch`.

  Raises:
    RuntimeError: the sides do not compute the same.
  """
  from memagent_jax.models.weights import pretrained

  directory = pretrained.resolve(model)
  pythons = workers.pythons(torch_python)
  rows: list[dict[str, Any]] = []
  versions: dict[str, dict] = {}
  for size in sorted({n for side in pythons for n in micro_batches[side]}):
    # Only one worker of each side is in memory at a time.
    with contextlib.ExitStack() as stack:
      sides = {
        side: stack.enter_context(
          workers.Worker(
            python,
            f'update_{side}',
            model=directory,
            **dataclasses.asdict(workload),
          )
        )
        for side, python in pythons.items()
        if size in micro_batches[side]
      }
      for step in range(repeats + 1):
        for side, worker in sides.items():
          found = {'side': side, 'micro_batch': size, 'step': step}
          rows.append(found | worker.ask(size))
      versions |= {side: worker.version for side, worker in sides.items()}
    for side in sides:
      _report_size(rows, side, size, workload)
  check_agreement(rows)
  _report_best(rows, workload)
  return {
    'suite': 'update',
    'workload': dataclasses.asdict(workload),
    'versions': versions,
    'rows': rows,
  }


def check_agreement(rows: list[dict]) -> None:
  """Prints how far apart losses and gradient norms of the same step are.

  Raises:
    RuntimeError: they are farther apart than rounding explains.
  """
  import numpy as np

  # NumPy's functions, unlike Python's max, let NaN through.
  losses, norms = [], []
  steps = {row['step'] for row in rows}
  for step in steps:
    mine = [row for row in rows if row['step'] == step]
    losses.append(np.ptp([row['loss'] for row in mine]))
    found = [row['gradient_norm'] for row in mine]
    norms.append(np.ptp(found) / np.max(found))
  loss, norm = np.max(losses), np.max(norms)
  text = (
    f'{len(steps)} steps: losses differ by at most {loss:.1e}, gradient norms '
    f'by {norm:.1e} of them'
  )
  print(text)
  # `not <=` rather than `>`: NaN fails.
  if not (loss <= _TOLERANCE and norm <= _TOLERANCE):
    raise RuntimeError(f'{text}; expected at most {_TOLERANCE}.')


def _report_size(
  rows: Sequence[dict[str, Any]], side: str, size: int, workload: Workload
) -> None:
  rate, peak = _medians(rows, side, size, workload)
  print(
    f'micro-batch {size:2d}  {side:5s}  {rate:7.1f} tokens/s  '
    f'peak {peak / 2**20:6.0f} MB',
    flush=True,
  )


def _report_best(rows: Sequence[dict[str, Any]], workload: Workload) -> None:
  best = {}
  for side in ('jax', 'torch'):
    sizes = {row['micro_batch'] for row in rows if row['side'] == side}
    if sizes:
      best[side] = max(
        (*_medians(rows, side, size, workload), size) for size in sizes
      )
      rate, peak, size = best[side]
      print(
        f'best {side:5s}  {rate:7.1f} tokens/s, micro-batch {size}, peak '
        f'{peak / 2**20:.0f} MB'
      )
  if len(best) == 2:
    (rate, peak, _), (torch_rate, torch_peak, _) = best.values()
    print(
      f'ratio {rate / torch_rate:.2f}x in tokens/s, {peak / torch_peak:.2f}x '
      'in peak memory'
    )


def _medians(
  rows: Sequence[dict[str, Any]], side: str, size: int, workload: Workload
) -> tuple[float, int]:
  """Median tokens/s after the step that compiles, and peak bytes."""
  mine = [r for r in rows if (r['side'], r['micro_batch']) == (side, size)]
  seconds = statistics.median(r['seconds'] for r in mine if r['step'])
  return workload.tokens / seconds, max(r['peak_bytes'] for r in mine)


def serve_jax(model: str, workload: Workload) -> None:
  """The worker of our side."""
  import jax
  import numpy as np

  from memagent_jax import load_model
  from memagent_jax.rl.grpo import GrpoConfig
  from memagent_jax.rl.policy import Policy
  from memagent_jax.train import sequences, train_state
  from memagent_jax.train import update as update_lib
  from memagent_jax.train.train_state import OptimizerConfig

  loaded = load_model(model)
  config = loaded.config
  objective = Policy(
    config, GrpoConfig(kl_coefficient=0.0, log_entropy=False), 1.0
  )
  optimizer = OptimizerConfig(
    learning_rate=_LEARNING_RATE, warmup_steps=0, clip_norm=_CLIP_NORM
  )
  state = train_state.init_state(optimizer, loaded.params)
  del loaded  # its params are donated with the state
  ids, advantage_N = workload.draw(config.vocab_size)
  n = workload.rows

  @functools.cache
  def batches(micro_batch: int) -> tuple[sequences.MicroBatches]:
    """The rows, split, with log-probs of the policy before any update."""
    unknown = np.zeros((n, workload.response_tokens), np.float32)
    rows = sequences.PolicySequences(
      turns=sequences.Sequences(
        ids.astype(np.int32),
        np.full((n,), workload.prompt_tokens, np.int32),
        np.full((n,), workload.response_tokens, np.int32),
      ),
      sampler_logprob_NxR=unknown,
      old_logprob_NxR=unknown,
      reference_logprob_NxR=None,
      advantage_N=advantage_N,
      weight_N=np.ones((n,), np.float32),
    )
    (batch,) = sequences.micro_batches(
      rows,
      widths=[ids.shape[1]],
      micro_tokens=micro_batch * ids.shape[1],
      capacity=n,
    )
    old = update_lib.log_probs(config, 1.0, state.params, batch)
    rows = batch.sequences.replace(sampler_logprob_NxR=old, old_logprob_NxR=old)
    return (batch.replace(sequences=rows),)

  def measure(micro_batch: int) -> dict[str, float]:
    nonlocal state
    given = batches(micro_batch)
    start = time.perf_counter()
    state, metrics = update_lib.update(objective, optimizer, state, given)
    jax.block_until_ready(state)
    return {
      'seconds': time.perf_counter() - start,
      'loss': float(metrics['loss'].sum / metrics['loss'].weight),
      'gradient_norm': float(metrics['grad_norm'].sum),
      'peak_bytes': workers.peak_bytes(),
    }

  workers.serve({'jax': jax.__version__}, measure)


def serve_torch(model: str, workload: Workload) -> None:
  """The worker of the other side."""
  import torch
  import transformers

  lm = transformers.AutoModelForCausalLM.from_pretrained(
    model, dtype=torch.float32, attn_implementation='sdpa'
  ).train()
  optimizer = torch.optim.AdamW(
    lm.parameters(), lr=_LEARNING_RATE, weight_decay=0.0, fused=True
  )
  ids, advantage_N = map(torch.from_numpy, workload.draw(lm.config.vocab_size))
  prompt, last = workload.prompt_tokens, ids.shape[1]

  def response_log_probs(ids_NxS: torch.Tensor) -> torch.Tensor:
    hidden = lm.model(ids_NxS, use_cache=False).last_hidden_state
    logits = lm.lm_head(hidden[:, prompt - 1 : last - 1])
    return -torch.nn.functional.cross_entropy(
      logits.transpose(1, 2), ids_NxS[:, prompt:], reduction='none'
    )

  @functools.cache
  @torch.no_grad()
  def old_log_probs(micro_batch: int) -> torch.Tensor:
    return torch.cat([response_log_probs(x) for x in ids.split(micro_batch)])

  def measure(micro_batch: int) -> dict[str, float]:
    old = old_log_probs(micro_batch)
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = 0.0
    for x_NxS, old_NxR, a_N in zip(
      *(x.split(micro_batch) for x in (ids, old, advantage_N)), strict=True
    ):
      ratio = (response_log_probs(x_NxS) - old_NxR).exp()
      a_Nx1 = a_N[:, None]
      clipped = ratio.clamp(1 - 0.2, 1 + 0.28)
      part = torch.maximum(-a_Nx1 * ratio, -a_Nx1 * clipped).sum() / old.numel()
      part.backward()
      loss += float(part.detach())
    norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), _CLIP_NORM)
    optimizer.step()
    return {
      'seconds': time.perf_counter() - start,
      'loss': loss,
      'gradient_norm': float(norm),
      'peak_bytes': workers.peak_bytes(),
    }

  workers.serve(
    {'torch': torch.__version__, 'transformers': transformers.__version__},
    measure,
  )
