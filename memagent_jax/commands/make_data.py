"""Makes benchmark documents; converts and checks files.

  memagent make-data --task=niah_single_2 --tokens=8192 \\
    --num_examples=64 --out=data/niah_single_2_8192.jsonl
  memagent make-data --task=ruler_hqa --num_paragraphs=200 \\
    --num_examples=128 --hotpotqa=hotpot_dev_distractor_v1.json --out=hqa.jsonl
  memagent make-data --upstream=hotpotqa_train.parquet \\
    --out=data/hotpotqa_train.jsonl
  memagent make-data --validate=own.jsonl
  memagent make-data --estimate=own.jsonl --tokens_per_second=250

Documents have a given length. Writes one JSON object a line (fields of
`memagent_jax.data.examples.Example`) and the same examples as TFRecords;
`memagent_jax.data.tasks.file_task` reads both. --upstream takes MemAgent's
published files, Parquet or JSON; those that have paragraph numbers also need
--hotpotqa=hotpot_dev_distractor_v1.json. Hardware: any; a document of 512K
tokens takes about 5 s on one core. The same seed gives the same bytes with any
--workers.
"""

import collections
from collections.abc import Iterable, Iterator
import concurrent.futures
import itertools
import os
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any

from absl import app, flags

if TYPE_CHECKING:
  from memagent_jax.data.encoders import Encoder
  from memagent_jax.data.examples import Example

_TASK = flags.DEFINE_string(
  'task',
  None,
  'One of the 13 RULER tasks, ruler_hqa, hotpotqa, hotpotqa_train or squad.',
)
_TOKENS = flags.DEFINE_integer(
  'tokens', 8192, 'Length of a RULER sample: 98 to 100 % of this.'
)
_NUM_PARAGRAPHS = flags.DEFINE_integer(
  'num_paragraphs',
  None,
  'Paragraphs of a document. [200; hotpotqa 10, squad 1]',
)
_UPSTREAM = flags.DEFINE_string(
  'upstream', None, "Convert this file of upstream's data instead of --task."
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', 'smollm2-135m', 'Model name, model directory, or bytes.'
)
_NUM_EXAMPLES = flags.DEFINE_integer(
  'num_examples', None, 'How many examples. [8; all of --upstream]'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the set.')
_OUT = flags.DEFINE_string('out', None, 'JSONL file to write.')
_TFRECORD = flags.DEFINE_bool(
  'tfrecord', True, 'Write TFRecords next to the JSONL file.'
)
_WORKERS = flags.DEFINE_integer('workers', 1, 'Processes.')
_TEMPLATE_TOKENS = flags.DEFINE_integer(
  'template_tokens', 0, 'Room for the wording around document and question.'
)
_ANSWER_TOKENS = flags.DEFINE_integer(
  'answer_tokens', None, "Room for the answer. [the task's published budget]"
)
_ESSAYS = flags.DEFINE_string(
  'essays',
  'adventures_of_sherlock_holmes',
  'File or folder of the texts that hide needles.',
)
_SQUAD = flags.DEFINE_string('squad', None, 'SQuAD file. [fetched]')
_HOTPOTQA = flags.DEFINE_string('hotpotqa', None, 'HotpotQA file. [fetched]')
_DROP_ANSWERABLE = flags.DEFINE_string(
  'drop_answerable',
  None,
  'JSONL of model answers without documents ({"id": ..., "answers": [...]}): '
  'examples that any of them answers are left out.',
)
_VALIDATE = flags.DEFINE_string(
  'validate', None, 'Check this JSONL of own documents and stop.'
)
_STRICT = flags.DEFINE_bool(
  'strict', False, 'Own answers that their document lacks are errors.'
)
_ESTIMATE = flags.DEFINE_string(
  'estimate', None, 'Print turns, tokens and hours of this JSONL and stop.'
)
_CHUNK_TOKENS = flags.DEFINE_integer('chunk_tokens', 5000, 'For --estimate.')
_MEMORY_TOKENS = flags.DEFINE_integer('memory_tokens', 1024, 'For --estimate.')
_TOKENS_PER_SECOND = flags.DEFINE_float(
  'tokens_per_second', 250.0, 'For --estimate: reading and writing together.'
)

# Number of sources that are printed; a set of paragraphs has one per example.
_SHOWN_SOURCES = 5
_DEFAULT_EXAMPLES = 8
# Settings, texts and tokenizer of a worker process.
_worker: dict[str, Any] = {}


def main(argv: list[str]) -> None:
  """Does what --validate, --estimate, --upstream or --task asks for."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  try:
    if _VALIDATE.value is not None:
      sys.exit(_validate(_VALIDATE.value))
    elif _ESTIMATE.value is not None:
      _print_estimate(_ESTIMATE.value)
    elif (_TASK.value is None) == (_UPSTREAM.value is None):
      raise app.UsageError('one of --task and --upstream is needed.')
    elif _OUT.value is None:
      raise app.UsageError('--out is needed.')
    else:
      _write(Path(_OUT.value))
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')


def _validate(path: str) -> int:
  """Prints the problems of a file of own documents; returns the exit code."""
  from memagent_jax.data.files import own_documents

  report = own_documents.validate(path, strict=_STRICT.value)
  print(report)
  return 1 if report.problem_count else 0


def _print_estimate(path: str) -> None:
  """Prints turns, tokens and hours of reading a file of own documents."""
  from memagent_jax.data.files import own_documents

  estimate = own_documents.estimate(
    path,
    _encoder(_tokenizer_directory()),
    chunk_tokens=_CHUNK_TOKENS.value,
    memory_tokens=_MEMORY_TOKENS.value,
    answer_tokens=1024
    if _ANSWER_TOKENS.value is None
    else _ANSWER_TOKENS.value,
    tokens_per_second=_TOKENS_PER_SECOND.value,
  )
  print(f'documents         {estimate.documents:,}')
  print(f'turns             {estimate.turns:,}')
  print(f'tokens read       {estimate.tokens_read:,}')
  print(f'tokens generated  {estimate.tokens_generated:,} at most')
  print(f'hours             {estimate.seconds / 3600:,.2f}')


def _tokenizer_directory() -> str | None:
  """The directory of --tokenizer; None for bytes."""
  from memagent_jax.models.weights import pretrained

  if _TOKENIZER.value == 'bytes':
    return None
  return str(pretrained.resolve(_TOKENIZER.value))


def _encoder(directory: str | None) -> 'Encoder':
  """The tokenizer of a directory; without one, one token per byte."""
  from memagent_jax.data.encoders import ByteEncoder
  from memagent_jax.models.tokenizer import Tokenizer

  if directory is None:
    return ByteEncoder()
  return Tokenizer.from_directory(directory)


def _write(out: Path) -> None:
  """Writes the examples in their order, as workers finish them."""
  from memagent_jax.data import examples
  from memagent_jax.data.files import filters

  count = _NUM_EXAMPLES.value
  if (count is not None and count < 1) or _WORKERS.value < 1:
    raise ValueError('num_examples and workers must be at least 1.')
  stream: Iterator[Example]
  if _UPSTREAM.value is not None:
    stream = itertools.islice(_upstream_examples(_UPSTREAM.value), count)
  else:
    count = _DEFAULT_EXAMPLES if count is None else count
    stream = _in_order(_settings(), range(count))
  stream, counts = _counted(stream, count), filters.Counts()
  if _DROP_ANSWERABLE.value is not None:
    stream = filters.drop_answerable(stream, _DROP_ANSWERABLE.value, counts)
  out.parent.mkdir(parents=True, exist_ok=True)
  partial = out.with_name(f'{out.name}.partial')
  sources: dict[str, int] = {}
  with partial.open('w', encoding='utf-8', newline='\n') as lines:
    for example in stream:
      lines.write(example.to_json() + '\n')
      sources[example.source] = sources.get(example.source, 0) + 1
  os.replace(partial, out)
  size = f'{out.stat().st_size / 1e6:.1f} MB'
  print(f'{out}: {sum(sources.values())} examples, {size}')
  if _DROP_ANSWERABLE.value is not None:
    print(
      f'  {counts.dropped} dropped as answerable without their document, '
      f'{counts.without_answers} without model answers kept'
    )
  for source, count in itertools.islice(sources.items(), _SHOWN_SOURCES):
    print(f'  {count} from {source}')
  if len(sources) > _SHOWN_SOURCES:
    print(f'  ... {len(sources)} sources in all; each example names its own')
  if _TFRECORD.value:
    # TensorFlow takes seconds to import.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from memagent_jax.data import tfrecords

    records = out.with_suffix('.tfrecord')
    count = tfrecords.write(records, examples.read_jsonl(out))
    print(f'{records}: the same {count} as TFRecords')


def _counted(
  examples: Iterable['Example'], total: int | None
) -> Iterator['Example']:
  """Yields the examples, and shows their number so far on the terminal."""
  of_total = '' if total is None else f' of {total}'
  for number, example in enumerate(examples, 1):
    print(f'\r{number}{of_total}', end='', file=sys.stderr, flush=True)
    yield example
  print(file=sys.stderr)


def _upstream_examples(path: str) -> Iterator['Example']:
  """The examples of --upstream, in the order of the file."""
  from memagent_jax.data.files import upstream

  paragraphs = None
  if _HOTPOTQA.value is not None:
    paragraphs = upstream.hotpotqa_paragraphs(_HOTPOTQA.value)
  return upstream.read(path, paragraphs=paragraphs)


def _in_order(
  settings: dict[str, Any], indices: Iterable[int]
) -> Iterator['Example']:
  """The examples of --task with these numbers, from one or more processes."""
  if _WORKERS.value == 1:
    _start_worker(settings)
    yield from map(_example, indices)
    return
  import multiprocessing

  with concurrent.futures.ProcessPoolExecutor(
    _WORKERS.value,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_worker,
    initargs=(settings,),
  ) as pool:
    # A window, so that finished documents do not pile up in memory.
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for index in indices:
      pending.append(pool.submit(_example, index))
      if len(pending) > 2 * _WORKERS.value:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


def _settings() -> dict[str, Any]:
  """All that a worker needs, as plain values; fetches missing files."""
  from memagent_jax.data.benchmarks import registry
  from memagent_jax.models.weights import pretrained

  task = _TASK.value
  assert task is not None  # `main` requires it
  if task == registry.OWN:
    raise ValueError('own documents are not made; see --validate.')
  texts = registry.Texts((_ESSAYS.value,), _SQUAD.value, _HOTPOTQA.value)
  files = registry.obtain(task, texts, pretrained.cache_dir() / 'data')
  in_tokens = registry.unit(task) == 'tokens'
  return {
    'task': task,
    'files': files,
    'size': _TOKENS.value if in_tokens else _NUM_PARAGRAPHS.value,
    'seed': _SEED.value,
    'tokenizer': os.path.basename(_TOKENIZER.value.rstrip('/')),
    'tokenizer_directory': _tokenizer_directory(),
    'template_tokens': _TEMPLATE_TOKENS.value,
    'answer_tokens': _ANSWER_TOKENS.value,
  }


def _start_worker(settings: dict[str, Any]) -> None:
  """Loads tokenizer and texts once per process."""
  from memagent_jax.commands import quiet

  quiet.libraries()
  from memagent_jax.data.benchmarks.registry import Benchmark

  _worker.update(
    settings=settings,
    benchmark=Benchmark(settings['task'], settings['files']),
    encoder=_encoder(settings['tokenizer_directory']),
  )


def _example(index: int) -> 'Example':
  """Example `index` of --task, from this process's texts."""
  s = _worker['settings']
  return _worker['benchmark'].example(
    index,
    s['size'],
    encoder=_worker['encoder'],
    encoder_name=s['tokenizer'],
    seed=s['seed'],
    template_tokens=s['template_tokens'],
    answer_tokens=s['answer_tokens'],
  )
