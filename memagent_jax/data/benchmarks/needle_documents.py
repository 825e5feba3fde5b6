"""RULER's needle tasks by chunks: documents, and an endless seqio mixture of them.

ruler.example -> as many chunks as asked for -> GeneratedRows -> seqio.Mixture
"""

from collections.abc import Mapping, Sequence
import functools

import seqio

from memagent_jax.data import tasks
from memagent_jax.data.benchmarks import haystack, ruler
from memagent_jax.data.benchmarks.ruler import Corpus
from memagent_jax.data.chunks import ChunkCutter
from memagent_jax.data.example_source import GeneratedRows
from memagent_jax.data.examples import Example

# A chunk that ends at a sentence is shorter than its budget by about this share.
_FILL = 0.94
_MAX_TRIES = 100
# Long documents may have this share of chunks less than asked for.
_TOLERANCE = 0.03


def needle_documents(
  tokenizer,
  *,
  tasks_and_rates: Mapping[str, float],
  chunks: int,
  chunk_tokens: int,
  essays: Sequence[str],
  chunk_cut: str = 'sentence',
  few_symbols_share: float = 0.0,
  echoes: float = 0.0,
  num_examples: int = 20_000,
  seed: int = 0,
) -> seqio.Mixture:
  """Documents of `chunks` chunks, made when they are asked for.

  Above 32 chunks, documents may be up to 3 % shorter.

  Args:
    tokenizer: of the model that reads.
    tasks_and_rates: how often each of `ruler.NEEDLE_TASKS` comes.
    chunks: of every document; never more.
    chunk_tokens: budget of a chunk.
    essays: files or folders of filler text.
    chunk_cut: where chunks end.
    few_symbols_share: of documents whose values are harder to copy.
    echoes: in 1,000 tokens, see `ruler.example`.
    num_examples: of each task until they repeat.
    seed: of the documents; training and evaluation need different ones.

  Raises:
    ValueError: a task that is no needle task, or that never comes.
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
    chunk_tokens=chunk_tokens,
    chunk_cut=chunk_cut,
    few_symbols_share=few_symbols_share,
    echoes=echoes,
    corpus=corpus,
    num_examples=num_examples,
    seed=seed,
  )
  made = [
    tasks.example_task(
      f'{name}_{chunks}_chunks',
      {
        'train': GeneratedRows(
          lambda index, name=name: make(name, index), num_examples
        )
      },
      vocabulary,
    )
    for name in tasks_and_rates
  ]
  rates = [
    (task, rate)
    for task, rate in zip(made, tasks_and_rates.values(), strict=True)
  ]
  return seqio.Mixture('needle_documents', rates)


def example(
  task: str,
  index: int,
  *,
  tokenizer,
  chunks: int,
  chunk_tokens: int,
  corpus: Corpus,
  chunk_cut: str = 'sentence',
  few_symbols_share: float = 0.0,
  echoes: float = 0.0,
  num_examples: int = 20_000,
  seed: int = 0,
) -> Example:
  """Document number `index` of so many chunks; a pure function of its arguments.

  Args:
    task: one of `ruler.NEEDLE_TASKS`.
    index: less than `num_examples`.
    tokenizer: of the model that reads.
    chunks: never more; above 32, up to 3 % less.
    chunk_tokens: budget of a chunk.
    corpus: has the essay.
    chunk_cut: where chunks end.
    few_symbols_share: as in `ruler.example`.
    echoes: as there.
    num_examples: what does not fit is made anew from a number beyond these.
    seed: of the documents.

  Raises:
    ValueError: none of many tries has so many chunks.
  """
  cutter = ChunkCutter(tokenizer, chunk_tokens, chunk_cut)
  size = int(chunks * chunk_tokens * _FILL)
  for trial in range(_MAX_TRIES):
    made = ruler.example(
      task,
      index + trial * num_examples,
      tokens=size,
      encoder=tokenizer,
      encoder_name=tokenizer.fingerprint,
      corpus=corpus,
      seed=seed,
      answer_tokens=0,
      few_symbols_share=few_symbols_share,
      echoes=echoes,
    )
    got = len(cutter.split(tokenizer.encode(made.document)))
    if (1 - _TOLERANCE) * chunks <= got <= chunks:
      return made
    # Sentences differ: a longer or shorter text comes closer.
    size += (chunks - got) * chunk_tokens // 4
  raise ValueError(
    f'task {task}: no document of {chunks} chunks of {chunk_tokens} tokens in '
    f'{_MAX_TRIES} tries; the last had {got}.'
  )
