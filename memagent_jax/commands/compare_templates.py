"""Compares prompt wordings on needles hidden in a novel.

  memagent compare-templates --out=docs/results/templates.json

Documents are a few chunks long; decoding is greedy. Hardware: any; about 15
minutes a wording on two CPU cores with the default model. Resumes by repeating
the command: wordings already in --out are kept. Expected numbers: the table of
wordings in docs/results.md.
"""

from collections.abc import Sequence
import json
import os
from pathlib import Path
import random
from typing import TYPE_CHECKING, Any

from absl import app, flags

from memagent_jax import tokens as tokens_lib
from memagent_jax.io import assets

if TYPE_CHECKING:
  from memagent_jax.agent.prompts import Template
  from memagent_jax.models.model import Model
  from memagent_jax.models.tokenizer import Tokenizer

_MODEL = flags.DEFINE_string('model', 'smollm2-135m', 'As in memagent ask.')
_TEMPLATES = flags.DEFINE_multi_string(
  'template_file',
  assets.templates(),
  'Wordings to compare with the default one.',
)
_HAYSTACK = flags.DEFINE_string(
  'haystack',
  'adventures_of_sherlock_holmes',
  'Text that hides the needles.',
)
_NUM_EXAMPLES = flags.DEFINE_integer('num_examples', 32, 'Needles a wording.')
_BATCH = flags.DEFINE_integer('batch', 8, 'Documents read side by side.')
_CHUNKS = flags.DEFINE_integer('chunks', 4, 'Chunks of a document.')
_CHUNK_TOKENS = flags.DEFINE_integer('chunk_tokens', 400, 'Tokens of a chunk.')
_MEMORY_TOKENS = flags.DEFINE_integer('memory_tokens', 96, 'Cap on the memory.')
_ANSWER_TOKENS = flags.DEFINE_integer('answer_tokens', 48, 'Cap on the answer.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of needles and places.')
_OUT = flags.DEFINE_string('out', None, 'JSON with the results.', required=True)

_THINGS = (
  'lantern violin harbour compass cellar orchard ferry locket chimney parrot '
  'saddle mirror tunnel kettle glacier bonnet anchor meadow quarry trumpet'
).split()


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  from memagent_jax import load_model
  from memagent_jax.agent import prompts
  from memagent_jax.data import text

  model = load_model(_MODEL.value)
  haystack = model.tokenizer.encode(
    ''.join(text.read_pieces(assets.text(_HAYSTACK.value)))
  )
  examples = [
    _example(model.tokenizer, haystack, i) for i in range(_NUM_EXAMPLES.value)
  ]
  wordings = {'default': prompts.DEFAULT_TEMPLATE}
  for path in _TEMPLATES.value:
    wordings[Path(path).stem] = prompts.read_template(assets.template(path))
  results = {}
  if os.path.exists(_OUT.value):
    results = json.loads(Path(_OUT.value).read_text(encoding='utf-8'))
  Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
  for name, template in wordings.items():
    if name not in results:
      results[name] = _measure(model, template, examples)
      Path(_OUT.value).write_text(
        json.dumps(results, indent=1) + '\n', encoding='utf-8'
      )
    rows = results[name]
    n = len(rows)
    print(
      f'{name:16s} answer {sum(r["in_answer"] for r in rows)}/{n}  '
      f'last memory {sum(r["in_memory"][-1] for r in rows)}/{n}  '
      f'noted at once {sum(r["in_memory"][r["chunk"]] for r in rows)}/{n}',
      flush=True,
    )


def _example(
  tokenizer: 'Tokenizer', haystack: list[int], index: int
) -> dict[str, Any]:
  """A question, its golden number, and the chunks, one with the needle."""
  rng = random.Random(f'{_SEED.value}/{index}')
  thing = rng.choice(_THINGS)
  number = str(rng.randrange(1_000_000, 10_000_000))
  needle = tokenizer.encode(
    f' The special magic number of the {thing} is {number}.'
  )
  where = rng.randrange(_CHUNKS.value)
  length = _CHUNK_TOKENS.value
  start = rng.randrange(len(haystack) - _CHUNKS.value * length)
  chunks = []
  for c in range(_CHUNKS.value):
    at = start + c * length
    chunk = haystack[at : at + length]
    if c == where:
      depth = rng.randrange(length - len(needle))
      chunk = (chunk[:depth] + needle + chunk[depth:])[:length]
    chunks.append(chunk)
  question = f'What is the special magic number of the {thing}?'
  return {
    'question': question,
    'number': number,
    'chunk': where,
    'chunks': chunks,
  }


def _measure(
  model: 'Model', template: 'Template', examples: list[dict[str, Any]]
) -> list[dict[str, Any]]:
  """One record per example: is the number in each memory and in the answer?"""
  import jax

  from memagent_jax.agent import session as session_lib
  from memagent_jax.agent.config import ReadingConfig, make_agent
  from memagent_jax.agent.engine import Lockstep
  from memagent_jax.agent.session import Start
  from memagent_jax.agent.turns import texts
  from memagent_jax.structs import Tokens

  size = _BATCH.value
  agent = make_agent(
    model,
    ReadingConfig(
      template=template,
      chunk_tokens=_CHUNK_TOKENS.value,
      memory_tokens=_MEMORY_TOKENS.value,
      answer_tokens=_ANSWER_TOKENS.value,
      question_tokens=64,
    ),
  )
  records = []
  for start in range(0, len(examples), size):
    # A last batch that is not full is filled with its first example.
    batch = examples[start : start + size]
    full = batch + batch[:1] * (size - len(batch))
    questions = [e['question'] for e in full]
    session = Lockstep().open(
      agent,
      model.params,
      Start(
        tokens_lib.pad_rows(
          [model.tokenizer.encode(q) for q in questions],
          agent.question_tokens,
        ),
        questions,
      ),
    )
    turns = session.read(
      session_lib.slots(
        [e['chunks'] for e in full], _CHUNKS.value, agent.chunk_tokens
      )
    )
    response = session.answer()
    answers = texts(
      model.tokenizer, Tokens(response.ids_NxR, response.length_N)
    )
    memories = [
      texts(model.tokenizer, jax.tree.map(lambda x, c=c: x[c], turns.memory))
      for c in range(_CHUNKS.value)
    ]
    for n, example in enumerate(batch):
      records.append(
        {
          'number': example['number'],
          'chunk': example['chunk'],
          'in_memory': [example['number'] in m[n] for m in memories],
          'in_answer': example['number'] in answers[n],
          'last_memory': memories[-1][n],
          'answer': answers[n],
        }
      )
    print(f'  {len(records)} of {len(examples)}', flush=True)
  return records
