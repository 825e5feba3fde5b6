"""A live display of a run's reward: curve, slope with its interval, time so far."""

from collections.abc import Mapping, Sequence
import time

from memagent_jax.evals.statistics import slope

_BLOCKS = ' ▁▂▃▄▅▆▇█'
_WIDTH = 60


class LiveReward:
  """Called after every step with its metrics; a context manager.

  On a terminal one panel is redrawn; elsewhere a line is printed every few
  seconds.
  """

  def __init__(self) -> None:
    """Makes a display; nothing is shown before the first step."""
    import rich.console
    import rich.live

    from memagent_jax.train.metric_log import PacedLines

    self._rewards: list[float] = []
    self._begun = time.perf_counter()
    self._console = rich.console.Console()
    self._live = rich.live.Live(console=self._console, auto_refresh=False)
    self._lines = PacedLines(
      lambda line: self._console.print(line, highlight=False)
    )

  def __enter__(self) -> 'LiveReward':
    self._console.print('the first step compiles; that takes a while')
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *details: object) -> None:
    if self._console.is_terminal:
      self._live.stop()
    self._lines.finish()
    # The slope gets its own line: the summary is too long for one.
    for line in f'reward {summary(self._rewards)}'.split('; '):
      self._console.print(line, highlight=False)

  def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows one more step.

    Raises:
      ValueError: the run has no rewards.
    """
    if 'reward/mean' not in metrics:
      raise ValueError(
        '--live shows the reward of reinforcement, and this run has none: leave '
        'the flag out.'
      )
    self._rewards.append(metrics['reward/mean'])
    elapsed = time.perf_counter() - self._begun
    text = (
      f'step {step + 1}  reward {self._rewards[-1]:.2f}  '
      f'evidence kept {metrics.get("memory/evidence_kept", 0.0):.2f}  '
      f'entropy {metrics.get("entropy", 0.0):.2f}  '
      f'{metrics.get("seconds/step", 0.0):.1f} s a step  {elapsed:.0f} s'
    )
    if not self._console.is_terminal:
      self._lines.add(text)
      return
    import rich.panel
    import rich.text

    body = rich.text.Text(
      f'{sparkline(self._rewards)}\n{summary(self._rewards)}\n{text}'
    )
    self._live.update(
      rich.panel.Panel(
        body, title='reward of GRPO, step by step', width=100, padding=(1, 2)
      ),
      refresh=True,
    )


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
  """Values in 0 ... 1 as a row of block characters; long rows are averaged."""
  size = -(-len(values) // width)
  parts = [values[i : i + size] for i in range(0, len(values), size)]
  levels = len(_BLOCKS) - 1
  return ''.join(
    _BLOCKS[round(levels * min(1.0, max(0.0, sum(p) / len(p))))] for p in parts
  )


def summary(rewards: Sequence[float]) -> str:
  """Means of the first and the last sixth, and the slope with its interval."""
  if not rewards:
    return 'no steps'
  sixth = max(1, len(rewards) // 6)
  first = sum(rewards[:sixth]) / sixth
  last = sum(rewards[-sixth:]) / sixth
  text = f'{first:.2f} at first, {last:.2f} at last'
  middle, low, high = slope(rewards)
  if len(rewards) > 2:
    text += (
      f'; slope {10 * middle:+.3f} in 10 steps, 95 % interval '
      f'[{10 * low:+.3f}, {10 * high:+.3f}]'
    )
  return text
