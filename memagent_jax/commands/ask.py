"""Reads a document chunk by chunk and answers questions.

  memagent ask --document=FILE --question='Who wears the mask?' \\
    --output=reading.json --trace=reading.html

Hardware: any; two CPU cores read about 250 tokens a second with the default
model (SmolLM2-135M-Instruct, 98 MB, obtained on first use). Compiling delays
the first chunk by about half a minute; later runs find the programs in a cache.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import os
from pathlib import Path
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any, Self

from absl import app, flags

if TYPE_CHECKING:
  from memagent_jax.agent.reader import Answer, Reader
  from memagent_jax.agent.turns import Turn
  from memagent_jax.data.token_store import TokenStore

_DOCUMENT = flags.DEFINE_string(
  'document',
  None,
  'File to read (text, Markdown, PDF), the name of a shipped text, - for a pipe, '
  'or a token store of memagent tokenize-document (folder, gs:// or s3://).',
)
_QUESTION = flags.DEFINE_multi_string(
  'question', None, 'Question to answer; repeat it for several in one pass.'
)
_MODEL = flags.DEFINE_string(
  'model', 'smollm2-135m', 'Model name, Hugging Face directory or .gguf file.'
)
_CHUNK_TOKENS = flags.DEFINE_integer(
  'chunk_tokens', None, 'Tokens read per turn. [1024]'
)
_MEMORY_TOKENS = flags.DEFINE_integer(
  'memory_tokens', None, 'Cap on the memory in tokens. [256]'
)
_ANSWER_TOKENS = flags.DEFINE_integer(
  'answer_tokens', None, 'Cap on the answer in tokens. [128]'
)
_QUESTION_TOKENS = flags.DEFINE_integer(
  'question_tokens', None, 'Longest accepted question in tokens. [1024]'
)
_CHUNK_CUT = flags.DEFINE_enum(
  'chunk_cut', None, ['sentence', 'token'], 'Where a chunk ends. [sentence]'
)
_TEMPERATURE = flags.DEFINE_float('temperature', None, '0 is greedy. [0]')
_TOP_P = flags.DEFINE_float('top_p', None, 'Nucleus of the sampling. [1]')
_SEED = flags.DEFINE_integer('seed', None, 'Seed of the sampling. [0]')
_TEMPLATE_FILE = flags.DEFINE_string(
  'template_file',
  None,
  'JSON with memory_turn, answer_turn and empty_memory, or the name of a shipped '
  'one: another wording.',
)
_MAX_CHARACTERS = flags.DEFINE_integer(
  'max_characters', None, 'Characters of the document to read; all by default.'
)
_ENCODING = flags.DEFINE_string(
  'encoding', 'utf-8', 'Encoding of the document.'
)
_ANSWER_EVERY = flags.DEFINE_integer(
  'answer_every', 0, 'Answer after every N chunks, too; for streams.'
)
_STATE = flags.DEFINE_string(
  'state',
  None,
  'File that saves the reading (a few KB). If it exists, the reading resumes '
  'from it; an unread tail waits for the text that comes next time.',
)
_OUTPUT = flags.DEFINE_string('output', None, 'JSON of answers and turns.')
_TRACE = flags.DEFINE_string('trace', None, "HTML page of the memory's life.")

# Characters (tokens, for a token store) fed at a time: few compared with a
# chunk, so that an answer between two chunks sees little unread text.
_FEED_SIZE = 2048
_STORE_WINDOW_TOKENS = 1 << 16
_Saved = dict[str, Any]  # the content of --state, or a part of it
# Without a terminal: columns of a line, and least time between printed chunks.
_LOG_WIDTH = 79
_LOG_EVERY_SECONDS = 2.0


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not _DOCUMENT.value or not _QUESTION.value:
    raise app.UsageError('--document and --question are needed.')
  try:
    sys.exit(_run())
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')


def _run() -> int:
  """Reads and answers; returns the process's exit code."""
  from memagent_jax.agent import trace
  from memagent_jax.data import text as text_lib

  store = _open_store()
  pieces: Iterator[Any]  # text, or the ids of a token store
  if store is not None:
    pieces = store.windows(_STORE_WINDOW_TOKENS)
  else:
    source = sys.stdin.buffer if _DOCUMENT.value == '-' else _location()
    pieces = text_lib.read_pieces(source, _ENCODING.value)
    if _MAX_CHARACTERS.value is not None:
      pieces = text_lib.head(pieces, _MAX_CHARACTERS.value)
  # The first piece comes before the model: a wrong path fails at once.
  first: Any = next(pieces, '')
  saved = _load_state()
  if saved is None and (len(first) == 0 or (store is None and first.isspace())):
    raise ValueError(f'document {_DOCUMENT.value} is empty.')
  reader = _make_reader(saved, store)
  display = _Display(reader, _expected_chunks(reader, first, store))
  start = time.perf_counter()
  answers, interrupted = [], False
  with trace.TurnLog(_turns_path()) as log, display:

    def on_turn(turn: 'Turn') -> None:
      log.append(dataclasses.asdict(turn))
      display.turn(turn)

    reader.on_turn = on_turn
    try:
      feed = reader.feed if store is None else reader.feed_ids
      _feed(reader, feed, first, pieces, display, saved)
      if _STATE.value is None:
        reader.finish()
      display.note('answering')
      answers = reader.answer()
    except KeyboardInterrupt:
      interrupted = True
  header = {
    'document': _DOCUMENT.value,
    'model': _MODEL.value,
    'questions': reader.questions,
    'config': reader.config.to_json(),
    'date': time.strftime('%Y-%m-%d %H:%M'),
    'tokens_read': reader.tokens_read,
    'chunks_read': reader.chunks_read,
    'seconds': round(time.perf_counter() - start, 1),
    'interrupted': interrupted,
  }
  _write(log.path, header, [dataclasses.asdict(a) for a in answers])
  for answer in answers:
    print(f'\nQ: {answer.question}\nA: {answer.answer.strip()}')
  if interrupted:
    print('interrupted; what was read is written.', file=sys.stderr)
    return 130
  return 0


def _location() -> str:
  """The path of the document; `-` and the address of a store as given."""
  from memagent_jax.io import assets

  value = _DOCUMENT.value
  assert value is not None  # `main` requires it
  return value if value == '-' or '://' in value else str(assets.text(value))


def _open_store() -> 'TokenStore | None':
  """The token store that --document names, or None."""
  location = _location()
  if '://' not in location and not Path(location).is_dir():
    return None
  from memagent_jax.data import token_store

  if _MAX_CHARACTERS.value is not None:
    raise ValueError('max_characters needs text; a token store holds ids.')
  return token_store.open_store(location)


def _make_reader(saved: _Saved | None, store: 'TokenStore | None') -> 'Reader':
  """A new reader, or the one saved in the state file."""
  import jax

  import memagent_jax
  from memagent_jax.agent import prompts
  from memagent_jax.io import assets
  from memagent_jax.models.weights import pretrained

  jax.config.update(
    'jax_compilation_cache_dir', str(pretrained.cache_dir() / 'compiled')
  )
  # XLA on CPU compiles most programs in less than the default minimum.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  given: dict[str, Any] = {
    field: flag.value
    for field, flag in (
      ('chunk_tokens', _CHUNK_TOKENS),
      ('memory_tokens', _MEMORY_TOKENS),
      ('answer_tokens', _ANSWER_TOKENS),
      ('question_tokens', _QUESTION_TOKENS),
      ('chunk_cut', _CHUNK_CUT),
      ('temperature', _TEMPERATURE),
      ('top_p', _TOP_P),
      ('seed', _SEED),
    )
    if flag.value is not None
  }
  if _TEMPLATE_FILE.value is not None:
    path = assets.template(_TEMPLATE_FILE.value)
    given['template'] = prompts.read_template(path)
  config = memagent_jax.ReadingConfig(**given)
  if saved is not None:
    asked = config.to_json()
    _check_same(saved['reader'], {name: asked[name] for name in given})
  model = memagent_jax.load_model(
    _MODEL.value, report=lambda line: print(line, file=sys.stderr)
  )
  if store is not None:
    store.check_tokenizer(model.tokenizer)
  if saved is None:
    return memagent_jax.Reader(model, _QUESTION.value or (), config)
  return memagent_jax.Reader.from_state(model, saved['reader'])


def _load_state() -> _Saved | None:
  """The content of --state, or None if there is no such file yet."""
  if _STATE.value is None or not Path(_STATE.value).exists():
    return None
  try:
    saved = json.loads(Path(_STATE.value).read_text(encoding='utf-8'))
    saved['reader'], saved['document'], saved['characters']
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'state {_STATE.value}: not a saved reading ({e!r}); remove the file to '
      'start anew.'
    ) from None
  return saved


def _check_same(state: _Saved, given: _Saved) -> None:
  """Raises ValueError if flags contradict the saved reading."""
  settings: list[tuple[str, Any, Any]] = [
    ('question', state['questions'], _QUESTION.value)
  ]
  settings += [(k, state['config'].get(k), v) for k, v in given.items()]
  for name, was, now in settings:
    if was != now:
      raise ValueError(
        f'state {_STATE.value} was begun with {name} {was!r}; got {now!r}. '
        'Leave the flag as it was, or use another state file.'
      )


def _save_state(path: str, reader: 'Reader', characters: int) -> None:
  state = {
    'reader': reader.state(),
    'document': os.path.abspath(_location()),
    'characters': characters,
  }
  partial = f'{path}.partial'
  Path(partial).write_text(json.dumps(state), encoding='utf-8')
  os.replace(partial, path)


def _feed(
  reader: 'Reader',
  feed: Callable[[Any], Any],
  first: Any,
  pieces: Iterator[Any],
  display: '_Display',
  saved: _Saved | None,
) -> None:
  """Feeds the document in small steps; answers and saves between chunks.

  `feed` takes what the pieces hold: text, or ids of a token store.
  """
  # The same file again: skip what an earlier run has read.
  skip = 0
  if (
    saved is not None
    and _DOCUMENT.value != '-'
    and saved['document'] == os.path.abspath(_location())
  ):
    skip = saved['characters']
  characters, answered, saved_at = 0, 0, -1

  def slices() -> Iterator[Any]:
    for piece in _chain(first, pieces):
      for start in range(0, len(piece), _FEED_SIZE):
        yield piece[start : start + _FEED_SIZE]

  for text in slices():
    characters += len(text)
    fresh = text[max(0, len(text) - (characters - skip)) :]
    if characters <= skip:
      continue
    feed(fresh)
    if _STATE.value is not None and reader.chunks_read != saved_at:
      _save_state(_STATE.value, reader, characters)
      saved_at = reader.chunks_read
    if _ANSWER_EVERY.value and (
      reader.chunks_read - answered >= _ANSWER_EVERY.value
    ):
      answered = reader.chunks_read
      display.answers(answered, reader.answer())
  if _STATE.value is not None:
    _save_state(_STATE.value, reader, max(characters, skip))


def _chain(first: Any, pieces: Iterator[Any]) -> Iterator[Any]:
  yield first
  yield from pieces


def _turns_path() -> Path:
  """The JSONL that grows during reading; a temporary file without --output."""
  import tempfile

  if _OUTPUT.value is not None:
    return Path(f'{_OUTPUT.value}.turns.jsonl')
  handle, path = tempfile.mkstemp(suffix='.turns.jsonl')
  os.close(handle)
  return Path(path)


def _write(log_path: Path, header: _Saved, answers: list[_Saved]) -> None:
  """Writes the JSON and the page from the logged turns."""
  from memagent_jax.agent import trace

  if _OUTPUT.value is not None:
    trace.write_json(_OUTPUT.value, header, answers, trace.read_turns(log_path))
  if _TRACE.value is not None:
    trace.write_page(_TRACE.value, header, answers, trace.read_turns(log_path))
  if _OUTPUT.value is None:
    log_path.unlink()


class _Display:
  """The terminal: progress, speed, and the current memory of each question.

  On a terminal the picture is redrawn in place; elsewhere a chunk's turns are
  printed every few seconds.
  """

  def __init__(self, reader: 'Reader', chunks: tuple[int, bool] | None) -> None:
    from rich.console import Console
    from rich.live import Live

    self._reader = reader
    self._console = Console(stderr=True)
    self._live = None
    if self._console.is_terminal:
      self._live = Live(console=self._console, refresh_per_second=4)
    self._chunks = chunks
    self._begun_at = reader.tokens_read
    self._start = time.perf_counter()
    self._memories = list(reader.memories)
    self._note = 'reading; the first chunk also compiles'
    # Without a terminal: lines of the latest chunk not printed yet, the latest
    # chunk, and the last chunk that was printed.
    self._kept: list[str] = []
    self._logged_chunk: int | None = None
    self._shown_chunk: int | None = None
    self._shown_at = float('-inf')

  def __enter__(self) -> Self:
    if self._live is not None:
      self._live.__enter__()
    self._draw()
    return self

  def __exit__(self, *details: Any) -> None:
    if self._live is not None:
      self._live.__exit__(*details)
    self._print_kept()

  def turn(self, turn: 'Turn') -> None:
    """Shows one memory turn."""
    self._memories[turn.question_index] = turn.memory
    self._note = f'chunk {turn.chunk_index + 1}{self._of()}'
    if self._live is None:
      self._log(turn)
    self._draw()

  def _log(self, turn: 'Turn') -> None:
    """Prints the turns of a chunk, or keeps them in case it is the last one."""
    if turn.chunk_index != self._logged_chunk:
      self._kept = []
    self._logged_chunk = turn.chunk_index
    self._kept += [
      f'{self._note} | {self._speed()} | {turn.finish_reason}',
      textwrap.fill(
        ' '.join(turn.memory.split()),
        _LOG_WIDTH,
        initial_indent='  ',
        subsequent_indent='  ',
      ),
    ]
    now = time.perf_counter()
    if turn.chunk_index == self._shown_chunk or (
      now - self._shown_at >= _LOG_EVERY_SECONDS
    ):
      self._shown_chunk, self._shown_at = turn.chunk_index, now
      self._print_kept()

  def _print_kept(self) -> None:
    for line in self._kept:
      self._print(line)
    self._kept = []

  def _print(self, text: str) -> None:
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def note(self, text: str) -> None:
    """Shows what is happening now."""
    self._note = text
    self._draw()

  def answers(self, chunks: int, answers: Sequence['Answer']) -> None:
    """Shows answers between two chunks."""
    for answer in answers:
      self._print(
        f'after {chunks} chunks | {answer.question} | {answer.answer.strip()}'
      )

  def _of(self) -> str:
    if self._chunks is None:
      return ''
    total, exact = self._chunks
    total = max(total, self._reader.chunks_read)
    return f' of {total}' if exact else f' of about {total}'

  def _speed(self) -> str:
    seconds = time.perf_counter() - self._start
    tokens = self._reader.tokens_read - self._begun_at
    text = f'{tokens / max(seconds, 1e-9):.0f} tokens/s'
    if self._chunks is not None and self._reader.chunks_read:
      left = max(0, self._chunks[0] - self._reader.chunks_read)
      text += f', {seconds / self._reader.chunks_read * left:.0f} s left'
    return text

  def _draw(self) -> None:
    if self._live is None:
      return
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    parts: list[Any] = [Text(f'{self._note} | {self._speed()}')]
    if self._chunks is not None:
      parts.append(ProgressBar(self._chunks[0], self._reader.chunks_read))
    for question, memory in zip(
      self._reader.questions, self._memories, strict=True
    ):
      parts.append(Panel(Text(memory), title=Text(question)))
    self._live.update(Group(*parts))


def _expected_chunks(
  reader: 'Reader', first: Any, store: 'TokenStore | None'
) -> tuple[int, bool] | None:
  """(chunks, whether exact) of the document; None for a pipe or a PDF."""
  if store is not None:
    return -(-store.num_tokens // reader.config.chunk_tokens), False
  if _DOCUMENT.value == '-' or _location().lower().endswith('.pdf'):
    return None
  from memagent_jax.data import text as text_lib

  seen_bytes = len(first.encode(_ENCODING.value, errors='replace'))
  total_bytes = text_lib.text_bytes(_location())
  limit = _MAX_CHARACTERS.value
  if limit is not None:
    limit_bytes = round(limit * seen_bytes / max(1, len(first)))
    total_bytes = min(total_bytes, limit_bytes)
  chunks = reader.count_chunks(first)
  exact = total_bytes <= seen_bytes + 3  # a byte-order mark is not text
  return (chunks if exact else round(chunks * total_bytes / seen_bytes)), exact
