"""Rows of a length grid as a table, a plot and a page.

    rows.jsonl -> cells(model, chunks) with 95 % intervals
      -> table.md, accuracy.png, accuracy.svg, report.html

Renders whatever rows there are.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import os
from pathlib import Path
import statistics as python_statistics

from memagent_jax.statistics import wilson_interval

# Colour-blind safe (Okabe and Ito 2008), dark enough on white.
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#56b4e9', '#e69f00')
_MARKS = ('o', 's', '^', 'D', 'v', 'P')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One model at one length."""

  model: str
  chunks: int
  tokens: int  # median, of the axis' tokenizer
  own_tokens: int  # median, of the model's tokenizer
  count: int
  score: float
  low: float  # 95 % interval of the score
  high: float


def cells(rows: Sequence[Mapping]) -> list[Cell]:
  """Cells by model in order of appearance, then by length."""
  grouped: dict[tuple[str, int], list[Mapping]] = {}
  for row in rows:
    grouped.setdefault((row['model'], row['chunks']), []).append(row)
  names = list(dict.fromkeys(row['model'] for row in rows))
  found = []
  for model, chunks in sorted(
    grouped, key=lambda key: (names.index(key[0]), key[1])
  ):
    mine = grouped[model, chunks]
    right = sum(row['score'] for row in mine)
    low, high = wilson_interval(right, len(mine))
    found.append(
      Cell(
        model=model,
        chunks=chunks,
        tokens=_median(row['tokens'] for row in mine),
        own_tokens=_median(row['own_tokens'] for row in mine),
        count=len(mine),
        score=right / len(mine),
        low=low,
        high=high,
      )
    )
  return found


def table(found: Sequence[Cell]) -> list[list[str]]:
  """Header and lines: a length a line, a model a column."""
  names = list(dict.fromkeys(cell.model for cell in found))
  by_place = {(cell.model, cell.chunks): cell for cell in found}
  lines = [['chunks', 'SmolLM2 tokens', 'own tokens', 'n', *names]]
  for chunks in sorted({cell.chunks for cell in found}):
    mine = [by_place[n, chunks] for n in names if (n, chunks) in by_place]
    first = mine[0]
    line = [
      str(chunks),
      f'{first.tokens:,}',
      f'{first.own_tokens:,}',
      '/'.join(dict.fromkeys(str(cell.count) for cell in mine)),
    ]
    for name in names:
      cell = by_place.get((name, chunks))
      line.append(
        ''
        if cell is None
        else f'{100 * cell.score:.1f} '
        f'[{100 * cell.low:.1f}, {100 * cell.high:.1f}]'
      )
    lines.append(line)
  return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """The table as Markdown."""
  header, *body = lines
  rows = [header, ['---'] * len(header), *body]
  return ''.join('| ' + ' | '.join(row) + ' |\n' for row in rows)


def write(
  directory: str | os.PathLike,
  rows: Sequence[Mapping],
  *,
  trained_chunks: int,
  title: str,
) -> None:
  """Writes `table.md`, `accuracy.png`, `accuracy.svg` and `report.html`.

  Args:
    directory: made if need be.
    rows: of a length grid.
    trained_chunks: the longest document of training, marked in the plot.
    title: of plot and page.
  """
  directory = Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  found = cells(rows)
  lines = table(found)
  (directory / 'table.md').write_text(markdown(lines), encoding='utf-8')
  _plot(directory, found, trained_chunks, title)
  _page(directory, lines, title)


def _median(values) -> int:
  return round(python_statistics.median(values))


def _plot(directory, found, trained_chunks, title) -> None:
  import matplotlib

  matplotlib.use('Agg')
  import matplotlib.pyplot as plt

  figure, axes = plt.subplots(figsize=(7.5, 4.2), layout='constrained')
  names = list(dict.fromkeys(cell.model for cell in found))
  for i, name in enumerate(names):
    mine = [cell for cell in found if cell.model == name]
    score = [100 * cell.score for cell in mine]
    axes.errorbar(
      [cell.tokens for cell in mine],
      score,
      yerr=[
        # Rounding can take a score of 0 or 1 outside its interval.
        [100 * max(0.0, cell.score - cell.low) for cell in mine],
        [100 * max(0.0, cell.high - cell.score) for cell in mine],
      ],
      color=_COLOURS[i % len(_COLOURS)],
      marker=_MARKS[i % len(_MARKS)],
      markersize=5,
      linewidth=2,
      elinewidth=1,
      capsize=3,
      label=name,
    )
  trained = [cell.tokens for cell in found if cell.chunks <= trained_chunks]
  if trained:
    axes.axvspan(
      min(cell.tokens for cell in found),
      max(trained),
      color='#888888',
      alpha=0.12,
      linewidth=0,
      label=f'lengths trained on (to {trained_chunks} chunks)',
    )
  axes.set_xscale('log', base=2)
  ticks = sorted({cell.chunks: cell.tokens for cell in found}.items())
  axes.set_xticks([tokens for _, tokens in ticks])
  axes.set_xticklabels([f'{_short(t)}\n{chunks}' for chunks, t in ticks])
  axes.minorticks_off()
  axes.set_xlabel('document: SmolLM2 tokens, and chunks below')
  axes.set_ylabel('right answers, %')
  axes.set_ylim(0, 103)
  axes.grid(axis='y', color='#dddddd', linewidth=0.8)
  axes.spines[['top', 'right']].set_visible(False)
  axes.set_title(title, loc='left', fontsize=11)
  axes.legend(frameon=False, fontsize=9)
  for name in ('accuracy.png', 'accuracy.svg'):
    figure.savefig(directory / name, dpi=150)
  plt.close(figure)


def _short(tokens: int) -> str:
  return f'{tokens / 1000:.0f}K' if tokens >= 10_000 else f'{tokens:,}'


def _page(directory, lines, title) -> None:
  svg = (directory / 'accuracy.svg').read_text(encoding='utf-8')
  svg = svg[svg.index('<svg') :]
  header, *body = ([html.escape(text) for text in line] for line in lines)
  head = ''.join(f'<th>{text}</th>' for text in header)
  rows = ''.join(
    '<tr>' + ''.join(f'<td>{text}</td>' for text in line) + '</tr>\n'
    for line in body
  )
  page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
  body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
         max-width: 52rem; padding: 0 1rem; color: #1a1a1a; }}
  svg {{ width: 100%; height: auto; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ text-align: right; padding: .3rem .6rem;
           border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }}
</style>
<h1>{html.escape(title)}</h1>
{svg}
<table><thead><tr>{head}</tr></thead>
<tbody>
{rows}</tbody></table>
<p>Percent of right answers with their 95&nbsp;% interval (Wilson).</p>
</html>
"""
  (directory / 'report.html').write_text(page, encoding='utf-8')
