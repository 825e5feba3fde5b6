"""RULER's needle tasks sized in chunks: documents, and a mixture to train on.

ruler.example        -> example: a document of a given number of chunks
hard_needles.example -> example -> GeneratedExamples -> seqio.Mixture
"""

from collections.abc import Callable, Mapping, Sequence
import functools

import seqio

from memagent_jax.data import tasks
from memagent_jax.data.batch import BatchConfig
from memagent_jax.data.benchmarks import hard_needles, haystack, ruler
from memagent_jax.data.benchmarks.ruler import Corpus
from memagent_jax.data.chunks import ChunkCutter
from memagent_jax.data.example_source import GeneratedExamples
from memagent_jax.data.examples import Example
from memagent_jax.models.tokenizer import Tokenizer

# Share of its budget that a chunk fills when it ends at a sentence.
_FILL = 0.94
_MAX_TRIES = 100
# Share of its chunks by which a long document may fall short.
_TOLERANCE = 0.03


def needle_documents(
  tokenizer: Tokenizer,
  sizes: BatchConfig,
  *,
  tasks_and_rates: Mapping[str, float],
  chunks: int,
  essays: Sequence[str],
  few_symbols_share: float = 0.0,
  echoes: float = 0.0,
  num_examples: int = 20_000,
  seed: int = 0,
) -> seqio.Mixture:
  """Documents of `chunks` chunks, generated when they are read.

  From 34 chunks on, documents may be up to 3 % shorter. Without
  `few_symbols_share` and `echoes` they are those of the benchmark.

  Args:
    tokenizer: the tokenizer of the model that reads.
    sizes: budget of a chunk, and where it ends.
    tasks_and_rates: some of `ruler.NEEDLE_TASKS`, and the rate of each.
    chunks: chunks per document; never exceeded.
    essays: files or folders of filler text.
    few_symbols_share: share of documents whose values are harder to copy, as in
      `hard_needles.example`.
    echoes: echoes of the needle per 1,000 tokens, as there.
    num_examples: examples per task before they repeat.
    seed: seed of the documents; training and evaluation need different ones.

  Raises:
    ValueError: no task, one that is no needle task, or a rate not above 0.
  """
  if any(not rate > 0 for rate in tasks_and_rates.values()):
    raise ValueError(
      f'tasks_and_rates is {dict(tasks_and_rates)}; expected rates above 0: leave '
      'a task out that is not to come.'
    )
  unknown = sorted(set(tasks_and_rates) - set(ruler.NEEDLE_TASKS))
  if unknown or not tasks_and_rates:
    raise ValueError(
      f'tasks {unknown or "none"}; choose from {", ".join(ruler.NEEDLE_TASKS)}.'
    )
  corpus = Corpus(essay=haystack.essays(*essays))
  vocabulary = tasks.TokenizerVocabulary(tokenizer, tokenizer.vocab_size)
  make = functools.partial(
    example,
    tokenizer=tokenizer,
    chunks=chunks,
    chunk_tokens=sizes.chunk_tokens,
    chunk_cut=sizes.chunk_cut,
    corpus=corpus,
    num_examples=num_examples,
    seed=seed,
    sample=functools.partial(
      hard_needles.example, few_symbols_share=few_symbols_share, echoes=echoes
    ),
  )
  rates = []
  for name, rate in tasks_and_rates.items():
    generated = GeneratedExamples(functools.partial(make, name), num_examples)
    task = tasks.example_task(
      f'{name}_{chunks}_chunks', {'train': generated}, vocabulary
    )
    rates.append((task, rate))
  return seqio.Mixture('needle_documents', rates)


def example(
  task: str,
  index: int,
  *,
  tokenizer: Tokenizer,
  chunks: int,
  chunk_tokens: int,
  corpus: Corpus,
  chunk_cut: str = 'sentence',
  num_examples: int = 20_000,
  seed: int = 0,
  sample: Callable[..., Example] = ruler.example,
) -> Example:
  """Document `index` of `chunks` chunks; a pure function of its arguments.

  Arguments that are not listed are those of `needle_documents`.

  Args:
    task: one of `ruler.NEEDLE_TASKS`.
    index: less than `num_examples`; a document that does not fit is replaced by
      one with an index beyond these.
    chunk_tokens: budget of a chunk.
    chunk_cut: where chunks end.
    corpus: texts, with the essay if the task needs one.
    sample: makes a document of a given number of tokens, with the arguments of
      `ruler.example`.

  Raises:
    ValueError: none of many tries has this number of chunks.
  """
  cutter = ChunkCutter(tokenizer, chunk_tokens, chunk_cut)
  size = int(chunks * chunk_tokens * _FILL)
  for trial in range(_MAX_TRIES):
    document = sample(
      task,
      index + trial * num_examples,
      tokens=size,
      encoder=tokenizer,
      encoder_name=tokenizer.fingerprint,
      corpus=corpus,
      seed=seed,
      answer_tokens=0,
    )
    got = len(cutter.split(tokenizer.encode(document.document)))
    if (1 - _TOLERANCE) * chunks <= got <= chunks:
      return document
    # Sentence lengths differ: a longer or shorter text comes closer.
    size += (chunks - got) * chunk_tokens // 4
  raise ValueError(
    f'task {task}: no document of {chunks} chunks of {chunk_tokens} tokens in '
    f'{_MAX_TRIES} tries; the last had {got}.'
  )
