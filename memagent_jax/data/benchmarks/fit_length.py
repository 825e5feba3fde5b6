"""Documents of an exact length, by a search for the size of the filler.

size -> render -> Draft -> tokens;  until 98 % <= tokens / target <= 100 %
"""

from collections.abc import Callable
import dataclasses

from memagent_jax.data.encoders import Encoder
from memagent_jax.data.examples import Example

# A sample is at least this share of its target, and never above the target.
LEAST_SHARE = 0.98
# Share that the search aims at, so that small errors stay in range.
_AIM_SHARE = 0.992
# Size of the first draft, which shows how many tokens a unit of size takes.
_FIRST_SIZE = 2_000
# Largest growth per step: the rate of a short draft is not that of a long one.
_MAX_GROWTH = 16
_MAX_DRAFTS = 40


@dataclasses.dataclass(frozen=True)
class Draft:
  """A document with its question, which may not fit yet.

  Its fields are those of the same name in `Example`.
  """

  document: str
  question: str
  answers: tuple[str, ...]
  gold_spans: tuple[tuple[int, int], ...]  # characters of `document`
  source: str


def count_tokens(encoder: Encoder, draft: Draft | Example) -> int:
  """Tokens of document and question, each encoded by itself."""
  return sum(len(encoder.encode(t)) for t in (draft.document, draft.question))


def fit(
  render: Callable[[int], Draft],
  encoder: Encoder,
  target_tokens: int,
  reserved_tokens: int,
) -> tuple[Draft, int]:
  """A draft of 98 to 100 % of the target, and its number of tokens.

  The search keeps a bracket and interpolates within it, so a draft of 4M tokens
  is usually encoded twice. Tokens are those of document and question, plus the
  reserved ones.

  Args:
    render: makes a draft with about that many units of filler; more units give
      more tokens, up to small irregularities.
    encoder: the model's own tokenizer.
    target_tokens: upper bound on the sample's tokens.
    reserved_tokens: tokens of the template and of the answer.

  Raises:
    ValueError: the sample is over the target even without filler, or no size
      fits.
  """

  def measure(size: int) -> tuple[Draft, int]:
    draft = render(size)
    return draft, count_tokens(encoder, draft) + reserved_tokens

  _, base = measure(0)
  if base > target_tokens:
    raise ValueError(
      f'{target_tokens} tokens leave no room: question, evidence and '
      f'{reserved_tokens} reserved tokens (template and answer) are {base}. '
      'Ask for more tokens.'
    )
  low, high = (0, base), None  # (size, tokens) below and above the aim
  size = _FIRST_SIZE
  for _ in range(_MAX_DRAFTS):
    draft, tokens = measure(size)
    if LEAST_SHARE * target_tokens <= tokens <= target_tokens:
      return draft, tokens
    if tokens > target_tokens:
      high = (size, tokens)
    else:
      low = (size, tokens)
    if high is not None and high[0] - low[0] <= 1:
      break
    size = _next_size(base, low, high, _AIM_SHARE * target_tokens)
  nearest = [low[1]] if high is None else [low[1], high[1]]
  raise ValueError(
    f'no filler gives {LEAST_SHARE:.0%} to 100 % of {target_tokens} tokens; '
    f'nearest: {nearest}. The units of this task are too coarse for a sample '
    'this short.'
  )


def _next_size(
  base: int,
  low: tuple[int, int],
  high: tuple[int, int] | None,
  aim: float,
) -> int:
  """The size at which the line through two known sizes meets the aim."""
  if high is None:
    rate = max(low[1] - base, 1) / max(low[0], 1)
    size = int((aim - base) / rate)
    return min(max(size, low[0] + 1), _MAX_GROWTH * max(low[0], 1))
  share = (aim - low[1]) / max(high[1] - low[1], 1)
  size = low[0] + int(share * (high[0] - low[0]))
  return min(max(size, low[0] + 1), high[0] - 1)
