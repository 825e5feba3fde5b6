"""What a reading leaves behind: a JSONL of turns, a JSON, and an HTML page.

    Reader.on_turn -> TurnLog (JSONL, one line per turn, as it happens)
                        |-> write_json   answers and turns in one document
                        `-> write_page   the life of the memory, for people

Turns stream from the log, and the page keeps a bounded number of them, so
nothing here grows with the square of a document's length.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import difflib
import html
import json
import os
from pathlib import Path
import re
from typing import Any, TextIO

from memagent_jax.io import jsonl

# The fields of `turns.Turn`; seconds and thought_tokens may be left out.
Turn = Mapping[str, Any]

# Turns always shown at each end; maximum number of changed ones in between.
_END_TURNS = 200
_MIDDLE_TURNS = 2000
# Maximum number of bars in a strip of memory lengths.
_STRIP_BARS = 240
_WORD = re.compile(r'\w+', re.UNICODE)


class TurnLog:
  """Appends turns to a JSONL file; what was appended survives a kill."""

  def __init__(self, path: str | os.PathLike):
    self.path = Path(path)

  def __enter__(self) -> 'TurnLog':
    self._file = self.path.open('w', encoding='utf-8')
    return self

  def __exit__(self, *details: object) -> None:
    self._file.close()

  def append(self, turn: Turn) -> None:
    """Writes one turn as a line."""
    self._file.write(json.dumps(turn) + '\n')
    self._file.flush()


def read_turns(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """Turns of a log, one at a time; a half-written last line is left out."""
  return jsonl.read(path)


def write_json(
  path: str | os.PathLike,
  header: Mapping[str, Any],
  answers: Sequence[Mapping[str, Any]],
  turns: Iterable[Turn],
) -> None:
  """Writes header, `answers` and `turns` as one JSON document, atomically."""
  with _replacing(path) as out:
    head = json.dumps({**header, 'answers': list(answers)}, indent=1)
    out.write(head.removesuffix('\n}') + ',\n "turns": [')
    for i, turn in enumerate(turns):
      out.write((',' if i else '') + '\n  ' + json.dumps(turn))
    out.write('\n ]\n}\n')


@contextlib.contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[TextIO]:
  """Opens a temporary file that replaces `path` if all goes well."""
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  partial = Path(f'{path}.partial')
  # UTF-8 cannot encode lone surrogates; they come out as question marks.
  with partial.open('w', encoding='utf-8', errors='replace') as out:
    yield out
  os.replace(partial, path)


def write_page(
  path: str | os.PathLike,
  header: Mapping[str, Any],
  answers: Sequence[Mapping[str, Any]],
  turns: Iterable[Turn],
) -> None:
  """Writes a self-contained page: what each chunk added, kept and dropped.

  It shows the first and last 200 turns of each question and, in between, up to
  2,000 that changed the memory; the others are only counted.

  Args:
    path: path of the page.
    header: `document`, `model`, `questions`, `config`, `tokens_read`,
      `chunks_read`, `seconds`, `date`, `interrupted`.
    answers: fields of `reader.Answer`; empty where reading was interrupted.
    turns: fields of `turns.Turn`, in document order; read once.
  """
  cap = header['config']['memory_tokens']
  lives = [_Life(cap) for _ in header['questions']]
  for turn in turns:
    lives[turn['question_index']].add(turn)
  with _replacing(path) as out:
    out.write(_HEAD.replace('@title@', _escape(header['document'])))
    out.write(_summary(header))
    for index, question in enumerate(header['questions']):
      answer = answers[index] if answers else None
      out.write(_question(question, answer, header['interrupted']))
      lives[index].write(out)
      out.write('</section>\n')
    out.write('</main></body></html>\n')


class _Life:
  """One question's turns, rendered as they come; keeps a bounded number."""

  def __init__(self, cap: int):
    self._cap = cap
    self._memory = ''
    self._first: list[str] = []
    self._middle: list[str] = []
    self._last: collections.deque = collections.deque()
    self._left_out = 0
    # Per bar, of `_per_bar` turns: longest memory, and whether one was cut.
    self._bars: list[tuple[int, bool]] = []
    self._per_bar, self._count = 1, 0

  def add(self, turn: Turn) -> None:
    before, self._memory = self._memory, turn['memory']
    self._add_bar(len(turn['memory_ids']), turn['finish_reason'] == 'length')
    if len(self._first) < _END_TURNS:
      self._first.append(_turn(turn, before))
      return
    self._last.append((turn, before))
    if len(self._last) > _END_TURNS:
      turn, before = self._last.popleft()
      if turn['memory'] != before and len(self._middle) < _MIDDLE_TURNS:
        self._middle.append(_turn(turn, before))
      else:
        self._left_out += 1

  def _add_bar(self, tokens: int, cut: bool) -> None:
    if self._count % self._per_bar == 0:
      self._bars.append((0, False))
    self._count += 1
    longest, any_cut = self._bars[-1]
    self._bars[-1] = (max(longest, tokens), any_cut or cut)
    if len(self._bars) > _STRIP_BARS:
      # Halved resolution keeps the strip bounded over any number of turns.
      pairs = [self._bars[i : i + 2] for i in range(0, len(self._bars), 2)]
      self._bars = [
        (max(t for t, _ in pair), any(c for _, c in pair)) for pair in pairs
      ]
      self._per_bar *= 2

  def write(self, out: TextIO) -> None:
    out.write(_strip(self._bars, self._cap))
    if not self._count:
      out.write('<p class="quiet">No turn was finished.</p>')
    out.writelines(self._first)
    out.writelines(self._middle)
    if self._left_out:
      out.write(
        f'<p class="quiet">{self._left_out:,} turns are not shown: the memory '
        f'did not change, or {_MIDDLE_TURNS:,} changes are above.</p>'
      )
    out.writelines(_turn(turn, before) for turn, before in self._last)


def _escape(text: Any) -> str:
  """HTML text; characters that a page cannot hold become visible."""
  cleaned = re.sub(r'[\x00-\x08\x0b-\x1f\x7f]', '\ufffd', str(text))
  return html.escape(cleaned)


def _summary(header: Mapping[str, Any]) -> str:
  config = header['config']
  facts = [
    f'{header["tokens_read"]:,} tokens in {header["chunks_read"]:,} chunks',
    f'chunks of {config["chunk_tokens"]:,} tokens',
    f'memory of {config["memory_tokens"]:,} tokens',
    header['model'],
  ]
  if 'seconds' in header:
    facts.append(f'{header["seconds"]:,} s')
  if 'date' in header:
    facts.append(header['date'])
  items = ''.join(f'<li>{_escape(fact)}</li>' for fact in facts)
  name = _escape(os.path.basename(str(header['document'])) or '-')
  return f'<header><h1>{name}</h1><ul class="facts">{items}</ul></header><main>'


def _question(
  question: str, answer: Mapping[str, Any] | None, interrupted: bool
) -> str:
  if answer is None:
    reason = 'The reading was interrupted' if interrupted else 'No answer'
    told = f'<p class="answer quiet">{reason}.</p>'
  else:
    text = (
      _escape(answer['answer'].strip()) or '<span class="quiet">empty</span>'
    )
    told = f'<p class="answer">{text}</p>'
  return f'<section><h2>{_escape(question)}</h2>{told}'


def _strip(bars: Sequence[tuple[int, bool]], cap: int) -> str:
  """Memory length over the turns; a bar is red where a memory was cut."""
  if not bars:
    return ''
  width, height = 4, 36
  rects = []
  for i, (tokens, cut) in enumerate(bars):
    h = max(1, round(height * min(tokens, cap) / cap))
    kind = ' class="cut"' if cut else ''
    rects.append(
      f'<rect{kind} x="{i * width}" y="{height - h}" width="{width - 1}" '
      f'height="{h}"/>'
    )
  cuts = sum(cut for _, cut in bars)
  label = (
    f'Memory length over {len(bars)} bars, the cap is {cap} tokens; '
    f'{cuts} reached it.'
  )
  return (
    f'<figure><svg role="img" aria-label="{label}" height="{height}" '
    f'viewBox="0 0 {len(bars) * width} {height}" '
    f'style="max-width:{len(bars) * width * 2}px" '
    f'preserveAspectRatio="none">{"".join(rects)}</svg>'
    f'<figcaption>Memory length, turn by turn; full height is {cap} tokens, '
    'red where the memory was cut there.</figcaption></figure>'
  )


def _turn(turn: Turn, before: str) -> str:
  """One turn: the chunk, and the memory as a diff against the previous one."""
  added, kept, dropped, shown = _difference(before, turn['memory'])
  facts = (
    f'{turn["chunk_tokens"]:,} tokens read, memory {len(turn["memory_ids"])} '
    f'tokens, {added} words added, {kept} kept, {dropped} dropped'
  )
  if turn['finish_reason'] == 'length':
    facts += ', <b class="cut">cut at the cap</b>'
  if turn.get('thought_tokens'):
    facts += f', {turn["thought_tokens"]} thinking tokens dropped'
  if 'seconds' in turn:
    facts += f', {turn["seconds"]:.1f} s'
  return (
    f'<article><h3>Chunk {turn["chunk_index"] + 1}</h3>'
    f'<p class="quiet">{facts}</p><div class="pair">'
    f'<div class="memory"><h4>Memory</h4><p>{shown}</p></div>'
    f'<details class="chunk" open><summary>Text of the chunk</summary>'
    f'<p>{_marked(turn["chunk"], turn["memory"])}</p></details>'
    '</div></article>\n'
  )


def _difference(before: str, after: str) -> tuple[int, int, int, str]:
  """Words added, kept and dropped, and the marked-up text."""
  old, new = before.split(), after.split()
  matcher = difflib.SequenceMatcher(None, old, new)
  added = kept = dropped = 0
  parts = []
  for tag, a, b, c, d in matcher.get_opcodes():
    if tag == 'equal':
      kept += d - c
      parts.append(_escape(' '.join(new[c:d])))
      continue
    if b > a:
      dropped += b - a
      parts.append(f'<del>{_escape(" ".join(old[a:b]))}</del>')
    if d > c:
      added += d - c
      parts.append(f'<ins>{_escape(" ".join(new[c:d]))}</ins>')
  return added, kept, dropped, ' '.join(parts) or '<i>empty</i>'


def _marked(chunk: str, memory: str) -> str:
  """The chunk with the longer words of the memory marked."""
  wanted = {
    word.lower()
    for word in _WORD.findall(memory)
    if len(word) > 3 or word.isdigit()
  }
  parts, end = [], 0
  for match in _WORD.finditer(chunk):
    if match.group().lower() in wanted:
      parts.append(_escape(chunk[end : match.start()]))
      parts.append(f'<mark>{_escape(match.group())}</mark>')
      end = match.end()
  parts.append(_escape(chunk[end:]))
  return ''.join(parts)


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@title@ - the life of a memory</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #636871;
  --line: #dfe1e5; --page: #fbfbfa; --card: #fff; --bar: #8aa0b8;
  --add: #d9f0dc; --addink: #14532d; --drop: #9a4a44; --mark: #fdeeb5;
  --cut: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e5e7; --soft: #9ba1aa;
  --line: #34373c; --page: #17181a; --card: #1f2124; --bar: #5d7288;
  --add: #1f3d29; --addink: #b9e4c4; --drop: #d08d86; --mark: #55491a;
  --cut: #f2867e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 5rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.6 Georgia, 'Times New Roman', serif; overflow-wrap: anywhere; }
h1, h2, h3, h4, .facts, .quiet, figcaption, summary { font-family:
  system-ui, -apple-system, 'Segoe UI', sans-serif; }
h1 { font-size: 1.1rem; margin: 0; }
h2 { font-size: 1.6rem; line-height: 1.25; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
h4 { font-size: .75rem; margin: 0 0 .35rem; color: var(--soft);
  text-transform: uppercase; letter-spacing: .06em; }
.facts { list-style: none; margin: .3rem 0 0; padding: 0; display: flex;
  flex-wrap: wrap; gap: 0 1.2rem; color: var(--soft); font-size: .85rem; }
.quiet, figcaption { color: var(--soft); font-size: .85rem; }
.answer { font-size: 1.2rem; border-left: 3px solid var(--bar);
  padding: .2rem 0 .2rem 1rem; margin: 0 0 1.5rem; white-space: pre-wrap; }
figure { margin: 0 0 1.5rem; }
svg { display: block; width: 100%; fill: var(--bar);
  border-bottom: 1px solid var(--line); }
svg .cut { fill: var(--cut); }
b.cut { color: var(--cut); font-weight: 600; }
article { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 1rem 1.25rem; margin: 0 0 1rem;
  break-inside: avoid; }
article > .quiet { margin: .1rem 0 .8rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; }
.pair p { margin: 0; }
.chunk p { white-space: pre-wrap; font-size: .9rem; max-height: 13rem;
  overflow: auto; margin-top: .5rem; }
summary { cursor: pointer; font-size: .75rem; color: var(--soft);
  text-transform: uppercase; letter-spacing: .06em; font-weight: 700; }
ins { background: var(--add); color: var(--addink); text-decoration: none;
  border-radius: 3px; padding: 0 .15em; box-decoration-break: clone; }
del { color: var(--drop); }
mark { background: var(--mark); color: inherit; border-radius: 3px; }
@media (max-width: 44rem) { .pair { grid-template-columns: 1fr; gap: 1rem; }
  body { padding-top: 1.25rem; } h2 { font-size: 1.3rem; } }
@media print { body { max-width: none; } .chunk p { max-height: none; } }
</style></head><body>
"""
