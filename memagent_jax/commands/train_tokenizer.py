"""Trains the byte-level BPE tokenizer of a tiny model.

  memagent train-tokenizer --out=DIR

Merges are learned from the texts and from the words of RULER's needles; digits
stay single, so that a number is its digits one by one. Hardware: any, some
seconds.
"""

from collections.abc import Sequence
from pathlib import Path
import sys

from absl import app, flags

_TEXTS = flags.DEFINE_multi_string(
  'texts',
  ['adventures_of_sherlock_holmes', 'pride_and_prejudice'],
  'Files, folders or names of texts to learn merges from.',
)
_VOCAB_SIZE = flags.DEFINE_integer('vocab_size', 2048, 'Ids, all together.')
_NUM_KEYS = flags.DEFINE_integer(
  'num_keys', 20_000, 'Needle keys to learn from.'
)
_OUT = flags.DEFINE_string('out', None, 'Directory to write.', required=True)

# A turn is one message and its answer; without role names prompts stay short.
_CHAT_TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m.content }}{% endfor %}"
)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers
  import transformers

  from memagent_jax.data.benchmarks import haystack, ruler, words
  from memagent_jax.data.examples import seeded
  from memagent_jax.models.tokenizer import Tokenizer

  try:
    text = haystack.essays(*_TEXTS.value).text
  except ValueError as e:
    sys.exit(f'error: {e}')
  rng = seeded('tokenizer')
  keys = [words.word_key(rng) for _ in range(_NUM_KEYS.value)]
  needles = []
  for key in keys:
    kind = rng.choice(('number', 'uuid'))
    needles.append(ruler.needle(kind, key, words.number(rng)))
    needles.append(ruler.needle_question(kind, key))
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=_VOCAB_SIZE.value,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    special_tokens=['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
    show_progress=False,
  )
  backend.train_from_iterator([text, *needles], trainer)
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='<|im_end|>', pad_token='<|endoftext|>'
  )
  hf.chat_template = _CHAT_TEMPLATE
  tokenizer = Tokenizer(backend, hf)
  out = Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  tokenizer.save(out)
  characters = len(text) / len(tokenizer.encode(text))
  key_tokens = sum(len(tokenizer.encode(' ' + k)) for k in keys) / len(keys)
  print(
    f'{out}: {tokenizer.vocab_size} ids, {characters:.2f} characters a token of '
    f'text, {key_tokens:.1f} tokens a key'
  )
