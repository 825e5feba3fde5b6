"""Runs a grid, resumably: makes documents, gets answers, scores, writes.

    GridPlan.shard -> batch by batch -> traces/, records.jsonl, timings.jsonl

WORKDIR/config.gin            the grid; a workdir of another grid is refused
        records*.jsonl        one line per finished example, never computed twice
        timings*.jsonl        one line per finished batch
        likelihood.jsonl      how well each model predicts from its memory
        traces/, progress/    changes of the memories; saves of running batches
        not_run.jsonl         cells that are too long, and what they would cost
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import os
from pathlib import Path
import statistics

import jax

from memagent_jax import rewards, sharding
from memagent_jax.data.benchmarks import registry
from memagent_jax.data.benchmarks.registry import Benchmark, Texts
from memagent_jax.data.examples import Example
from memagent_jax.evals import grid, records
from memagent_jax.evals import likelihood as likelihood_lib
from memagent_jax.evals.eta import Eta
from memagent_jax.evals.grid import GridBatch, GridBlock, GridPlan
from memagent_jax.evals.likelihood import LikelihoodConfig
from memagent_jax.evals.methods.method import Answered, Method, Result
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.evals.records import CellExample
from memagent_jax.io import jsonl, process_memory, workdirs
from memagent_jax.models.model import Model
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.models.weights import pretrained
from memagent_jax.sharding import MeshConfig

# Longest document in which the tokens of two tokenizers are compared.
_SAMPLE_TOKENS = 65_536
# Loads the model of a name, with or without params.
_Loader = Callable[[str, bool], Model]


@dataclasses.dataclass(frozen=True)
class ChunkSizes:
  """Document sizes in chunks of one model instead of tokens."""

  # Name or directory of the model, or directory of its tokenizer.
  tokenizer: str
  chunk_tokens: int
  chunk_cut: str = 'sentence'


@dataclasses.dataclass(frozen=True)
class DocumentsConfig:
  """The documents of a grid: their texts, and the unit of their sizes."""

  texts: Texts = dataclasses.field(default_factory=Texts)
  # Model whose tokenizer counts sizes and the `tokens` of every record.
  counted_with: str = pretrained.DEFAULT_MODEL
  # Chunks in which sizes are counted; None: sizes in `registry.unit`.
  chunks: ChunkSizes | None = None
  # Tokens of a size reserved for the wording around document and question.
  template_tokens: int = 64
  # Tokens of a size reserved for the answer; None: the task's published budget.
  answer_tokens: int | None = None

  @property
  def size_tokens(self) -> int | None:
    """Tokens of one unit of size; None: the unit depends on the task."""
    return None if self.chunks is None else self.chunks.chunk_tokens


@sharding.under_mesh
def evaluate(
  *,
  workdir: str | os.PathLike,
  models: Mapping[str, str],
  methods: Mapping[str, Method],
  blocks: Sequence[GridBlock],
  documents: DocumentsConfig,
  batch_size: int = 32,
  config_text: str = '',
  shard: tuple[int, int] = (0, 1),
  retry_failed: bool = False,
  merge: Sequence[str | os.PathLike] | None = None,
  likelihood: LikelihoodConfig | None = None,
  mesh: MeshConfig | None = None,
  save_every_seconds: float = 30.0,
  report: Callable[[str], None] = print,
) -> None:
  """Runs what is missing from a grid, or from one shard of it.

  Args:
    workdir: shards may share a workdir or have their own.
    models: name or directory of every model, by its name in the records.
    methods: methods by their names in the records.
    blocks: which models, methods, tasks and sizes are combined.
    documents: what the documents are made of.
    batch_size: most documents that are computed together.
    config_text: the grid's config; a workdir of another one is refused.
    shard: index of this part of the grid, and the number of parts.
    retry_failed: whether failed records are computed again.
    merge: workdirs of shards whose records are taken over, without running any;
      None: the grid is run.
    likelihood: what the first shard measures for every model; None: nothing.
    mesh: devices of this process that share every batch, for models too large for
      one; None: the default device alone. Several hosts take a shard each.
    save_every_seconds: least time between two saves of a running batch.
    report: gets a line per batch, and one a minute while a batch runs.

  Raises:
    ValueError: a workdir of another grid, an unknown task, model or method, or
      a cell with more examples than its task has.
  """
  workdir = Path(workdir)
  configs = {
    name: pretrained.describe_model(directory).config
    for name, directory in models.items()
  }
  plan = grid.plan(blocks, methods, configs, batch_size, documents.size_tokens)
  workdirs.claim(workdir, config_text)
  if merge is not None:
    records.collect(workdir, merge, config_text)
    count, all_count = records.join(workdir, plan.order())
    report(f'{workdir}: {count} of {all_count} records')
    return
  batches = plan.shard(*shard)
  suffix = '' if shard == (0, 1) else f'_{shard[0]}_of_{shard[1]}'
  with workdirs.exclusive(workdir / f'lock{suffix}'):
    loader = _loader(models, mesh)
    examples = _ExampleMaker(documents)
    if shard[0] == 0:
      _price_not_run(workdir, plan, methods, loader, examples)
    _Runner(
      workdir=workdir,
      methods=methods,
      loader=loader,
      examples=examples,
      writer=records.Writer(workdir, suffix),
      done={
        records.key(record)
        for record in records.read_records(workdir)
        if not (retry_failed and record['error'])
      },
      save_every_seconds=save_every_seconds,
      eta=Eta(report),
    ).run(batches)
    if likelihood is not None and shard[0] == 0:
      _measure_likelihood(workdir, models, loader, likelihood)
    if shard == (0, 1):
      records.join(workdir, plan.order())


def _loader(models: Mapping[str, str], mesh: MeshConfig | None) -> _Loader:
  """Loads models by name; keeps the two that were used last.

  Without params a model has only its config and tokenizer.
  """

  @functools.lru_cache(maxsize=2)
  def load(directory: str, with_params: bool) -> Model:
    if not with_params:
      return pretrained.describe_model(directory)
    return pretrained.load_model(directory, mesh, sharding.ROLLOUTS)

  return lambda name, with_params: load(models[name], with_params)


class _ExampleMaker:
  """Makes the examples of a grid."""

  def __init__(self, config: DocumentsConfig):
    self._config = config
    self._benchmark = functools.lru_cache(_open_benchmark)
    self._encoder = _tokenizer(config.counted_with)
    if config.chunks is not None:
      self._chunk_tokenizer = _tokenizer(config.chunks.tokenizer)

  def __call__(self, cell_example: CellExample) -> Example:
    """The document, question and answers of an example.

    Raises:
      ValueError: the task has fewer examples.
    """
    cell, index, config = cell_example.cell, cell_example.index, self._config
    benchmark = self._benchmark(cell.task, config.texts)
    if benchmark.count is not None and index >= benchmark.count:
      raise ValueError(
        f'task {cell.task} has {benchmark.count} examples; the grid asks for '
        f'number {index + 1}. Lower examples.'
      )
    if config.chunks is not None:
      example = benchmark.example_of_chunks(
        index,
        cell.size,
        tokenizer=self._chunk_tokenizer,
        chunk_tokens=config.chunks.chunk_tokens,
        chunk_cut=config.chunks.chunk_cut,
        seed=cell.seed,
      )
      return dataclasses.replace(
        example,
        tokens=len(self._encoder.encode(example.document)),
        tokenizer=config.counted_with,
      )
    return benchmark.example(
      index,
      cell.size or None,
      encoder=self._encoder,
      encoder_name=config.counted_with,
      seed=cell.seed,
      template_tokens=config.template_tokens,
      answer_tokens=config.answer_tokens,
    )


def _tokenizer(model: str) -> Tokenizer:
  return Tokenizer.from_directory(pretrained.resolve(model))


def _open_benchmark(task: str, texts: Texts) -> Benchmark:
  cache = pretrained.cache_dir() / 'data'
  return Benchmark(task, registry.obtain(task, texts, cache))


@dataclasses.dataclass
class _Runner:
  """Runs batches one after another."""

  workdir: Path
  methods: Mapping[str, Method]
  loader: _Loader
  examples: _ExampleMaker
  writer: records.Writer
  # Examples whose records are written.
  done: set[CellExample]
  save_every_seconds: float
  eta: Eta

  def run(self, batches: Sequence[GridBatch]) -> None:
    """Computes the records that are missing, and reports on every batch."""
    count = sum(len(batch.examples) for batch in batches)
    unfinished = [batch for batch in batches if self._missing(batch)]
    for number, batch in enumerate(unfinished):
      remaining = unfinished[number + 1 :]
      after = count - sum(len(self._missing(b)) for b in remaining)
      before = after - len(self._missing(batch))
      written, seconds = self._run_batch(
        batch,
        functools.partial(
          self.eta.on_progress, batch, remaining, f'{before}/{count}'
        ),
      )
      right = sum(record['score'] for record in written)
      failed = sum(bool(record['error']) for record in written)
      outcome = f'{right:g}/{len(written)} right'
      outcome += f', {failed} failed' if failed else ''
      self.eta.on_finished(
        batch, remaining, f'{after}/{count}', outcome, seconds
      )

  def _missing(self, batch: GridBatch) -> list[CellExample]:
    return [e for e in batch.examples if e not in self.done]

  def _run_batch(
    self, batch: GridBatch, on_progress: Callable[[float, float], None]
  ) -> tuple[list[dict], float]:
    """Answers a batch; writes and returns its missing records, and seconds."""
    method, missing = self.methods[batch.cell.method], self._missing(batch)
    computed: Sequence[CellExample] = missing
    filler: Sequence[CellExample] = ()
    if not method.independent_examples:
      # The batch always has its full shape.
      computed = batch.examples
      filler = batch.examples[:1] * (batch.size - len(batch.examples))
    examples = [self.examples(e) for e in (*computed, *filler)]
    model = self.loader(batch.cell.model, method.needs_params)
    folder = self.workdir / 'progress'
    folder.mkdir(exist_ok=True)
    with process_memory.Peak() as peak:
      progress = Progress(
        folder / f'{batch.name}.json', on_progress, self.save_every_seconds
      )
      answered = method.answer(model, examples, progress)
      seconds = progress.seconds
    written = [
      self._record(cell_example, example, result, method)
      # Not strict: the filler at the end is left out.
      for cell_example, example, result in zip(
        computed, examples, answered.results, strict=False
      )
      if cell_example in missing
    ]
    self.writer.add_records(written)
    self.writer.add_timing(_timing(batch, answered, seconds, peak.host_bytes))
    # A failed example that is retried resumes where it was.
    if not any(record['error'] for record in written):
      progress.finish()
    self.done |= set(missing)
    return written, seconds

  def _record(
    self,
    cell_example: CellExample,
    example: Example,
    result: Result,
    method: Method,
  ) -> dict:
    """Writes an example's trace; returns its line of `records.jsonl`.

    The line holds no times, so that the records of two runs are equal.
    """
    trace = ''
    if result.trace:
      first = {
        'question': example.question,
        'answer': result.answer,
        'caps': dict(method.caps),
      }
      trace = self.writer.write_trace(
        cell_example.cell, example.id, [first, *result.trace]
      )
    score = 0.0
    if not result.error:
      answers = example.answers
      score = rewards.score(example.metric, result.answer, answers).value
    depth = None
    if example.gold_spans:
      depth = example.gold_spans[0][0] / max(len(example.document), 1)
    return {
      **dataclasses.asdict(cell_example.cell),
      'index': cell_example.index,
      'id': example.id,
      'tokens': example.tokens,
      'sampling': method.sampling,
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


def _timing(
  batch: GridBatch, answered: Answered, seconds: float, host_bytes: int
) -> dict:
  """A line of `timings.jsonl`."""
  results, chunk_seconds = answered.results, answered.chunk_seconds
  return {
    'batch': batch.name,
    'model': batch.cell.model,
    'method': batch.cell.method,
    'size': batch.cell.size,
    'tokens': batch.tokens,
    'batch_size': len(results),
    'read_tokens': sum(result.read_tokens for result in results),
    'flops': sum(result.flops for result in results),
    'seconds': round(seconds, 3),
    'chunk_seconds': round(statistics.median(chunk_seconds), 6)
    if chunk_seconds
    else None,
    # Whether the seconds are those of chunks; else of whole prompts.
    'chunked': any(result.turns for result in results),
    'peak_host_bytes': host_bytes,
    'peak_device_bytes': _device_bytes(),
  }


def _device_bytes() -> int | None:
  """Peak memory of the first device so far; None if it does not say."""
  stats = jax.local_devices()[0].memory_stats()
  return None if stats is None else stats.get('peak_bytes_in_use')


def _price_not_run(
  workdir: Path,
  plan: GridPlan,
  methods: Mapping[str, Method],
  loader: _Loader,
  examples: _ExampleMaker,
) -> None:
  """Writes what one document of every cell that is not run would cost."""
  if not plan.not_run or records.read_not_run(workdir):
    return
  ratios, priced = {}, []
  for cell, tokens in plan.not_run:
    model = loader(cell.model, False)
    names = cell.model, cell.task
    if names not in ratios:
      ratios[names] = _token_ratio(plan, cell.task, model.tokenizer, examples)
    flops = methods[cell.method].flops(
      model.config, round(tokens * ratios[names])
    )
    priced.append((cell, tokens, flops))
  records.write_not_run(workdir, priced)


def _token_ratio(
  plan: GridPlan, task: str, tokenizer: Tokenizer, examples: _ExampleMaker
) -> float:
  """Tokens of a tokenizer for each counted token, in one of the grid's documents."""
  candidates = (
    cell_example
    for batch in plan.batches  # the longest first
    if batch.tokens <= _SAMPLE_TOKENS
    for cell_example in batch.examples
    if cell_example.cell.task == task
  )
  cell_example = next(candidates, None)
  if cell_example is None:
    return 1.0
  example = examples(cell_example)
  return len(tokenizer.encode(example.document)) / example.tokens


def _measure_likelihood(
  workdir: Path,
  models: Mapping[str, str],
  loader: _Loader,
  config: LikelihoodConfig,
) -> None:
  """Appends a line to `likelihood.jsonl` for every model that has none."""
  measured = {line['model'] for line in records.read_likelihood(workdir)}
  for name in models:
    if name not in measured:
      result = likelihood_lib.measure(loader(name, True), config)
      line = {'model': name} | result
      jsonl.append(workdir / records.LIKELIHOOD, [line])
