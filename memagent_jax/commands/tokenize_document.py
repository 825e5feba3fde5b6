"""Tokenises a document once, to be read window by window.

  memagent tokenize-document --document=FILE --out=STORE
  memagent ask --document=STORE --question='Who wears the mask?'

STORE is a folder, gs://bucket/path or s3://bucket/path (TensorStore, zarr3).
Resumes by repeating the command. Hardware: any; about 1 MB of text a second on
one core, in less than 300 MB of memory whatever the document's size, as long as it
has spaces or line breaks.
"""

from collections.abc import Sequence
import sys
import time

from absl import app, flags

_DOCUMENT = flags.DEFINE_string(
  'document',
  None,
  'File to tokenise (text, Markdown, PDF, .gz), or the name of a shipped text.',
  required=True,
)
_OUT = flags.DEFINE_string('out', None, 'Where the store goes.', required=True)
_MODEL = flags.DEFINE_string(
  'model', 'smollm2-135m', 'Model name or directory: whose tokenizer it is.'
)
_ENCODING = flags.DEFINE_string(
  'encoding', 'utf-8', 'Encoding of the document.'
)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  from memagent_jax.data import token_store
  from memagent_jax.io import assets
  from memagent_jax.models.tokenizer import Tokenizer
  from memagent_jax.models.weights import pretrained

  start = time.perf_counter()
  try:
    tokenizer = Tokenizer.from_directory(pretrained.resolve(_MODEL.value))
    store = token_store.tokenize_to_store(
      assets.text(_DOCUMENT.value),
      _OUT.value,
      tokenizer,
      encoding=_ENCODING.value,
    )
  except (ValueError, OSError) as e:
    sys.exit(f'error: {e}')
  print(
    f'{store.location}: {store.num_tokens:,} tokens of {store.num_characters:,} '
    f'characters, {time.perf_counter() - start:.1f} s'
  )
