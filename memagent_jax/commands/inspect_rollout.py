"""Shows one trajectory turn by turn, as training sees it.

  memagent inspect-rollout \\
    --gin_file=gin_configs/train/tiny_grpo.gin --model=runs/tiny_grpo/model

Samples the first batch of a reinforcement run's documents; prints prompts,
memories, the ratio of a token's probability between trainer and sampler (1 up
to rounding), reward and advantage; --full adds the ratio of every token and
shows texts in full. Hardware: any; to sample no more than it shows, use
`--gin_bindings="rollouts.RolloutConfig.documents_per_step = 1"`.
"""

from collections.abc import Mapping, Sequence
import sys
from typing import TYPE_CHECKING, Any

from absl import app, flags

from memagent_jax.commands import runs

if TYPE_CHECKING:
  import numpy as np

  from memagent_jax.rl.inspection import InspectedTurn, Inspection

flags.adopt_module_key_flags(runs)
_MODEL = flags.DEFINE_string(
  'model', None, "Name or directory of a model, instead of the run's own."
)
_DOCUMENT_INDEX = flags.DEFINE_integer(
  'document_index', 0, 'Document of the batch.'
)
_ROLLOUT = flags.DEFINE_integer('rollout', 0, 'Rollout of the document.')
_FULL = flags.DEFINE_bool(
  'full', False, 'Show texts in full length, and the ratio of every token.'
)

_WIDTH = 100
# Characters that a shortened text keeps of its head and of its tail.
_HEAD_CHARS, _TAIL_CHARS = 320, 160
# Largest number of characters not worth cutting.
_LEAST_GAP_CHARS = 80


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not runs.GIN_FILE.value:
    raise app.UsageError('--gin_file is needed.')
  with runs.clear_errors():
    runs.parse()
    _show(_inspect())


def _inspect() -> 'Inspection':
  """The trajectory that the flags name."""
  from memagent_jax.models.weights import pretrained
  from memagent_jax.rl import inspection
  from memagent_jax.rl import rollouts as rollouts_lib

  make = runs.bound('source')
  if _MODEL.value is None:
    model = runs.bound('model')
  else:
    model = pretrained.load_model(_MODEL.value)
  source = make(model)
  if not isinstance(source, rollouts_lib.Rollouts):
    raise ValueError(
      f"the run's source is {type(source).__name__}, which samples nothing; "
      'expected rollouts.Rollouts, as in gin_configs/train/tiny_grpo.gin.'
    )
  documents = source.config.documents_per_step
  rollouts = source.config.rollouts
  print(
    f'sampling {documents} documents, {rollouts} rollouts each', file=sys.stderr
  )
  return inspection.inspect(
    source, model, _DOCUMENT_INDEX.value, _ROLLOUT.value
  )


def _show(found: 'Inspection') -> None:
  """Prints an Inspection."""
  from rich.console import Console
  from rich.rule import Rule
  from rich.text import Text

  console = Console()
  if not console.is_terminal or console.width > _WIDTH:
    console = Console(width=_WIDTH)

  def heading(text: str, style: str = 'bold') -> None:
    console.print(Rule(Text(text, style), align='left'))

  heading(f'document {found.id}, rollout {_ROLLOUT.value}')
  _print_fields(console, {'question': _shown(found.question)})
  for number, turn in enumerate(found.turns, 1):
    kind = 'answer' if turn.record is None else 'memory'
    heading(
      f'turn {number} of {len(found.turns)}: {kind}, {turn.prompt_tokens:,} '
      f'tokens read, {len(turn.tokens):,} written, finish {turn.finish_reason}'
    )
    fields = {'prompt': _shown(turn.prompt)}
    if turn.record is None:
      fields |= {'memory': turn.memory_before, 'answer': found.answer}
    else:
      fields |= {
        'memory before': turn.memory_before,
        'memory after': turn.record.memory,
      }
    fields = {name: _shown(text) for name, text in fields.items()}
    if turn.record is not None and turn.record.thought_tokens:
      fields['thinking'] = f'{turn.record.thought_tokens:,} tokens left out'
    fields['ratio'] = _ratio(turn)
    if _FULL.value:
      fields['of tokens'] = '  '.join(
        f'{_shown(token)!r} {ratio:.6f}'
        for token, ratio in zip(turn.tokens, turn.ratio_R, strict=True)
      )
    if not turn.weight:
      fields['weight'] = '0: the turn is not trained on'
    _print_fields(console, fields)
  heading('verdict')
  _print_fields(console, _verdict(found))


def _print_fields(console: Any, fields: Mapping[str, str]) -> None:
  """Prints names and texts in two columns."""
  from rich.table import Table
  from rich.text import Text

  table = Table.grid(padding=(0, 2))
  table.add_column(width=13, style='cyan')
  table.add_column(overflow='fold')
  for name, text in fields.items():
    table.add_row(name, Text(text))
  console.print(table)


def _ratio(turn: 'InspectedTurn') -> str:
  """The ratio's range, and the token that is furthest from 1."""
  import numpy as np

  ratio_R = turn.ratio_R
  worst = int(np.abs(ratio_R - 1).argmax())
  return (
    f'{_range(ratio_R)}; worst: token {worst + 1}, {turn.tokens[worst]!r}, off '
    f'by {ratio_R[worst] - 1:+.1e}'
  )


def _range(ratio_R: 'np.ndarray') -> str:
  low, mean, high = ratio_R.min(), ratio_R.mean(), ratio_R.max()
  return f'min {low:.6f}, mean {mean:.6f}, max {high:.6f}'


def _verdict(found: 'Inspection') -> dict[str, str]:
  turns = len(found.turns)
  rewards = found.group_rewards
  fields = {
    'answer': _shown(found.answer),
    'right answers': ', '.join(map(repr, found.right_answers)),
    'reward': f'{found.reward:.3f} by {found.reward_name}',
    'metric': f'{found.metric:.3f} by {found.metric_name}',
    'group': _numbers(rewards),
  }
  if found.group_scores != rewards:
    fields['less overlong'] = _numbers(found.group_scores)
  advantage = f'{found.advantage:+.4f} for every token of its {turns} turns'
  if len(set(rewards)) == 1:
    advantage += '; the rewards of the group are all alike'
  fields['advantage'] = advantage
  ratios = found.ratios
  fields['ratio'] = f'{_range(ratios)} of {len(ratios):,} tokens'
  return fields


def _numbers(values: Sequence[float]) -> str:
  """The group's numbers, the trajectory's own in brackets, and their mean."""
  shown = [f'{value:.2f}' for value in values]
  shown[_ROLLOUT.value] = f'[{shown[_ROLLOUT.value]}]'
  return f'{" ".join(shown)}, mean {sum(values) / len(values):.3f}'


def _shown(text: str) -> str:
  """Text that a terminal can show, without its middle unless --full is set."""
  left_out = len(text) - _HEAD_CHARS - _TAIL_CHARS
  if left_out > _LEAST_GAP_CHARS and not _FULL.value:
    gap = f' [... {left_out:,} characters ...] '
    text = text[:_HEAD_CHARS] + gap + text[-_TAIL_CHARS:]
  return ''.join(
    c if c.isprintable() or c == '\n' else repr(c)[1:-1] for c in text
  )
