"""Runs a grid: makes its documents, answers, scores, writes, and goes on.

Plan.shard -> batch by batch -> traces/, rows.jsonl, timings.jsonl

WORKDIR/config.gin            the grid; a workdir of another one is refused
        rows*.jsonl           a finished row a line, never computed twice
        timings*.jsonl        a finished batch a line
        likelihood.jsonl      how well each model predicts from its memory
        traces/, progress/    what memories did; where killed batches were
        not_run.jsonl         cells that are too long, and what they cost
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
from pathlib import Path
import re
import statistics

import jax

from memagent_jax import rewards, sharding
from memagent_jax.data.benchmarks import registry
from memagent_jax.data.benchmarks.registry import Benchmark, Texts
from memagent_jax.data.examples import Example
from memagent_jax.evals import grid, records
from memagent_jax.evals import likelihood as likelihood_lib
from memagent_jax.evals.eta import Pace
from memagent_jax.evals.grid import Batch, Block, Place, Plan
from memagent_jax.evals.likelihood import LikelihoodConfig
from memagent_jax.evals.methods.method import Method, Result
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.io import jsonl, process_memory, workdirs
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import pretrained
from memagent_jax.sharding import MeshConfig

_NAME = re.compile(r'[\w .+-]+')
# Longest document that tokens of two tokenizers are compared in.
_SAMPLE_TOKENS = 65_536


@dataclasses.dataclass(frozen=True)
class ChunkSizes:
  """Sizes are chunks of one model, not tokens."""

  # Name or directory of the model, or of its tokenizer.
  tokenizer: str
  chunk_tokens: int
  chunk_cut: str = 'sentence'


@dataclasses.dataclass(frozen=True)
class Documents:
  """What the documents of a grid are made of, and counted with."""

  texts: Texts = dataclasses.field(default_factory=Texts)
  # Its tokenizer counts tokens: of sizes, and of every row.
  counted_with: str = pretrained.DEFAULT_MODEL
  # None: sizes are as `benchmarks.unit` says.
  chunks: ChunkSizes | None = None
  # Room in a size for the wording around document and question.
  template_tokens: int = 64
  # Room in a size for the answer; None: the task's published budget.
  answer_tokens: int | None = None


@sharding.under_mesh
def evaluate(
  *,
  workdir: str | os.PathLike,
  models: Mapping[str, str],
  methods: Mapping[str, Method],
  blocks: Sequence[Block],
  documents: Documents,
  rows: int = 32,
  config_text: str = '',
  shard: tuple[int, int] = (0, 1),
  retry_failed: bool = False,
  merge: Sequence[str | os.PathLike] | None = None,
  likelihood: LikelihoodConfig | None = None,
  mesh: MeshConfig | None = None,
  save_every_seconds: float = 30.0,
  report: Callable[[str], None] = print,
) -> None:
  """Runs what of a grid, or of one shard of it, is not done.

  Args:
    workdir: of the grid; shards may share it or have their own.
    models: name or directory of each, by the name that rows have.
    methods: by the name that rows have.
    blocks: what is run with what.
    documents: what they are made of.
    rows: of a batch at most.
    config_text: a workdir of another one is refused.
    shard: which part of how many.
    retry_failed: compute rows that failed once more.
    merge: workdirs of shards: take their rows, run nothing.
    likelihood: measured for every model, by the first shard; None: not at all.
    mesh: devices of this process that share every batch, for models that one does
      not hold; None: the default device alone. Several hosts take a shard each.
    save_every_seconds: least time between two saves of a batch in flight.
    report: gets a line per batch, and one a minute meanwhile.

  Raises:
    ValueError: a workdir of another grid, an unknown task, model or method, or
      a cell with more examples than its task has.
  """
  for name in (*models, *methods):
    if not _NAME.fullmatch(name):
      raise ValueError(
        f'name {name!r}: expected letters, digits, spaces and . + - _ only.'
      )
  workdir = Path(workdir)
  made = _plan(models, methods, blocks, rows, documents)
  workdirs.claim(workdir, config_text)
  if merge is not None:
    _collect(workdir, merge, config_text)
    done, all_rows = finish(workdir, made)
    report(f'{workdir}: {done} of {all_rows} rows')
    return
  batches = made.shard(*shard)
  ending = '' if shard == (0, 1) else f'_{shard[0]}_of_{shard[1]}'
  with workdirs.alone(workdir / f'lock{ending}'):
    runner = _Runner(
      workdir,
      ending,
      models,
      methods,
      documents,
      mesh,
      save_every_seconds,
      retry_failed,
      report,
    )
    if shard[0] == 0:
      runner.price(made)
    runner.run(batches)
    if likelihood is not None and shard[0] == 0:
      runner.measure_likelihood(likelihood)
    if shard == (0, 1):
      finish(workdir, made)


def finish(workdir: str | os.PathLike, made: Plan) -> tuple[int, int]:
  """Brings all rows of a workdir into one file, in the grid's order.

  Returns:
    how many rows there are, and how many the grid has.
  """
  order = made.order()
  rows = {
    order[place]: row
    for row in records.read_rows(workdir)
    if (place := records.place(row)) in order
  }
  jsonl.rewrite(Path(workdir) / 'rows.jsonl', [rows[i] for i in sorted(rows)])
  for path in Path(workdir).glob('rows_*.jsonl'):
    path.unlink()
  return len(rows), len(order)


def _collect(
  workdir: Path, others: Sequence[str | os.PathLike], config_text: str
) -> None:
  """Copies rows, timings and traces of other workdirs of the same grid here."""
  for number, other in enumerate(map(Path, others)):
    if not (other / workdirs.CONFIG).exists():
      raise ValueError(f'{other}: no grid ran here.')
    workdirs.claim(other, config_text)
    for kind in ('rows', 'timings'):
      for path in sorted(other.glob(f'{kind}*.jsonl')):
        target = workdir / f'{kind}_from_{number}_{path.name}'
        jsonl.rewrite(target, list(jsonl.read(path)))
    # Both are of the first shard alone.
    for name in (records.LIKELIHOOD, records.NOT_RUN):
      if (other / name).exists():
        jsonl.rewrite(workdir / name, list(jsonl.read(other / name)))
    for path in (other / 'traces').rglob('*.jsonl'):
      target = workdir / path.relative_to(other)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(path.read_bytes())


@dataclasses.dataclass
class _Runner:
  """Runs batches one after another."""

  workdir: Path
  # Of the names of its files.
  ending: str
  models: Mapping[str, str]
  methods: Mapping[str, Method]
  documents: Documents
  mesh: MeshConfig | None
  save_every_seconds: float
  retry_failed: bool
  report: Callable[[str], None]

  def __post_init__(self):
    documents = self.documents
    self._done = {
      records.place(row)
      for row in records.read_rows(self.workdir)
      if not (self.retry_failed and row['error'])
    }
    load = functools.partial(_load, mesh=self.mesh)
    self._load = functools.lru_cache(maxsize=2)(load)
    self._benchmark = functools.lru_cache(_open_benchmark)
    self._encoder = Tokenizer.from_directory(
      pretrained.resolve(documents.counted_with)
    )
    if documents.chunks is not None:
      self._chunk_tokenizer = Tokenizer.from_directory(
        pretrained.resolve(documents.chunks.tokenizer)
      )
    self._pace = Pace(self.report)

  def run(self, batches: Sequence[Batch]) -> None:
    """Computes the rows that are missing."""
    open_batches = [b for b in batches if self._missing(b)]
    known = sum(len(b.places) for b in batches)
    for number, batch in enumerate(open_batches):
      left = open_batches[number + 1 :]
      done = known - sum(len(self._missing(b)) for b in left)
      before = done - len(self._missing(batch))
      told = functools.partial(
        self._pace.meanwhile, batch, left, f'{before} of {known} rows'
      )
      rows, seconds = self._batch(batch, told)
      right = sum(row['score'] for row in rows)
      failed = sum(bool(row['error']) for row in rows)
      what = f'{right:g} of {len(rows)} right'
      what += f', {failed} failed' if failed else ''
      self._pace.finished(batch, left, f'{done} of {known} rows', what, seconds)

  def price(self, made: Plan) -> None:
    """Writes what one document of every cell that is not run would cost."""
    if not made.not_run or records.read_not_run(self.workdir):
      return
    shares, priced = {}, []
    for cell, tokens in made.not_run:
      key = cell.model, cell.task
      if key not in shares:
        shares[key] = self._own_share(made, *key)
      config = self._load(self.models[cell.model], False).config
      flops = self.methods[cell.method].flops(
        config, round(tokens * shares[key])
      )
      priced.append((cell, tokens, flops))
    records.write_not_run(self.workdir, priced)

  def _own_share(self, made: Plan, model: str, task: str) -> float:
    """A model's tokens of a counted token, in a document that the grid has."""
    places = (
      place
      for batch in made.batches  # the longest first
      if batch.tokens <= _SAMPLE_TOKENS
      for place in batch.places
      if place.cell.task == task
    )
    place = next(places, None)
    if place is None:
      return 1.0
    example = self._example(place)
    tokenizer = self._load(self.models[model], False).tokenizer
    return len(tokenizer.encode(example.document)) / example.tokens

  def measure_likelihood(self, config: LikelihoodConfig) -> None:
    """Appends a line a model to `likelihood.jsonl`."""
    path = self.workdir / records.LIKELIHOOD
    known = {line['model'] for line in records.read_likelihood(self.workdir)}
    for name, directory in self.models.items():
      if name not in known:
        model = self._load(directory, True)
        found = likelihood_lib.measure(model, config)
        jsonl.append(path, [{'model': name} | found])

  def _missing(self, batch: Batch) -> list[Place]:
    return [p for p in batch.places if (p.cell, p.index) not in self._done]

  def _batch(
    self, batch: Batch, told: Callable[[float, float], None]
  ) -> tuple[list[dict], float]:
    """Answers a batch and writes what was missing of it; its rows, and seconds."""
    method, cell = self.methods[batch.cell.method], batch.cell
    wanted = self._missing(batch)
    if method.independent_rows:
      places = list(wanted)
    else:
      # The shape is always the full one.
      filler = batch.places[:1] * (batch.rows - len(batch.places))
      places = [*batch.places, *filler]
    examples = [self._example(place) for place in places]
    model = self._load(self.models[cell.model], method.needs_params)
    folder = self.workdir / 'progress'
    folder.mkdir(exist_ok=True)
    with process_memory.Peak() as peak:
      progress = Progress(
        folder / f'{batch.name}.json', told, self.save_every_seconds
      )
      answered = method.answer(model, examples, progress)
      seconds = progress.seconds
    rows = []
    for place, example, result in zip(
      places, examples, answered.results, strict=True
    ):
      if place in wanted:
        wanted.remove(place)
        trace = self._write_trace(place, example, result, method.caps)
        rows.append(_row(place, example, result, method.sampling, trace))
    self._append('rows', rows)
    chunk_seconds = answered.chunk_seconds
    self._append(
      'timings',
      [
        {
          'batch': batch.name,
          'model': cell.model,
          'method': cell.method,
          'size': cell.size,
          'tokens': batch.tokens,
          'rows': len(places),
          'read_tokens': sum(r.read_tokens for r in answered.results),
          'flops': sum(r.flops for r in answered.results),
          'seconds': round(seconds, 3),
          'chunk_seconds': round(statistics.median(chunk_seconds), 6)
          if chunk_seconds
          else None,
          # Whether the seconds are those of chunks, or of whole prompts.
          'chunked': any(r.turns for r in answered.results),
          'peak_host_bytes': peak.host_bytes,
          'peak_device_bytes': _device_bytes(),
        }
      ],
    )
    if not any(row['error'] for row in rows):
      # A failed row that is retried goes on where it was.
      progress.finish()
    self._done |= {records.place(row) for row in rows}
    return rows, seconds

  def _example(self, place: Place) -> Example:
    cell, d = place.cell, self.documents
    benchmark = self._benchmark(cell.task, d.texts)
    if benchmark.count is not None and place.index >= benchmark.count:
      raise ValueError(
        f'task {cell.task} has {benchmark.count} examples; the grid asks for '
        f'number {place.index + 1}. Lower examples.'
      )
    if d.chunks is not None:
      made = benchmark.example_of_chunks(
        place.index,
        cell.size,
        tokenizer=self._chunk_tokenizer,
        chunk_tokens=d.chunks.chunk_tokens,
        chunk_cut=d.chunks.chunk_cut,
        seed=cell.seed,
      )
      counted = len(self._encoder.encode(made.document))
      return dataclasses.replace(made, tokens=counted, tokenizer=d.counted_with)
    return benchmark.example(
      place.index,
      cell.size or None,
      encoder=self._encoder,
      encoder_name=d.counted_with,
      seed=cell.seed,
      template_tokens=d.template_tokens,
      answer_tokens=d.answer_tokens,
    )

  def _write_trace(
    self,
    place: Place,
    example: Example,
    result: Result,
    caps: Mapping[str, int],
  ) -> str:
    if not result.trace:
      return ''
    cell = place.cell
    name = example.id.replace('/', '_')
    path = Path('traces') / cell.model / cell.method / f'{name}.jsonl'
    (self.workdir / path).parent.mkdir(parents=True, exist_ok=True)
    jsonl.rewrite(
      self.workdir / path,
      [
        {
          'question': example.question,
          'answer': result.answer,
          'caps': dict(caps),
        },
        *result.trace,
      ],
    )
    return str(path)

  def _append(self, kind: str, lines: Sequence[Mapping]) -> None:
    jsonl.append(self.workdir / f'{kind}{self.ending}.jsonl', lines)


def _plan(models, methods, blocks, rows, documents) -> Plan:
  configs = {
    name: pretrained.describe_model(path).config
    for name, path in models.items()
  }
  chunks = documents.chunks
  unit = None if chunks is None else chunks.chunk_tokens
  return grid.plan(blocks, methods, configs, rows, unit)


def _load(name: str, with_params: bool, mesh: MeshConfig | None) -> Model:
  if not with_params:
    return pretrained.describe_model(name)
  return pretrained.load_model(name, mesh, sharding.ROLLOUTS)


def _open_benchmark(task: str, texts: Texts) -> Benchmark:
  cache = pretrained.cache_dir() / 'data'
  return Benchmark(task, registry.obtain(task, texts, cache))


def _row(
  place: Place, example: Example, result: Result, sampling: str, trace: str
) -> dict:
  """A line of `rows.jsonl`; no times, so that two runs' are equal."""
  cell = place.cell
  score = 0.0
  if not result.error:
    score = rewards.score(example.metric, result.answer, example.answers).value
  depth = None
  if example.gold_spans:
    depth = example.gold_spans[0][0] / max(len(example.document), 1)
  return {
    **dataclasses.asdict(cell),
    'index': place.index,
    'id': example.id,
    'tokens': example.tokens,
    'sampling': sampling,
    'answer': result.answer,
    'answers': list(example.answers),
    'score': score,
    'error': result.error,
    'finish_reason': result.finish_reason,
    'turns': dict(result.turns),
    'own_tokens': result.own_tokens,
    'read_tokens': result.read_tokens,
    'flops': result.flops,
    'depth': depth,
    'health': dict(result.health),
    'trace': trace,
  }


def _device_bytes() -> int | None:
  """Most memory of the first device so far; None where it does not say."""
  stats = jax.local_devices()[0].memory_stats()
  return None if stats is None else stats.get('peak_bytes_in_use')
