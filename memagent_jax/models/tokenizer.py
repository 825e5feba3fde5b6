"""Text to token ids and back: the one `Tokenizer` that everything uses.

Two encoders share one vocabulary. `encode` is for text that somebody wrote
(documents, questions): it knows no added token, so `<|im_end|>` in a document
is ten characters of text and never ends a turn. `encode_template` is for our
own prompt pieces, where control tokens take effect.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import tokenizers
  import transformers

# Contractions, words with one leading mark, digits, punctuation, white space.
# Qwen2 and Llama 3 differ in how many digits make one piece.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|"
  r'\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
GGUF_PRE_TOKENIZERS = ('smollm', 'qwen2', 'llama-bpe')
# Values of `tokenizer.ggml.token_type`.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


class Tokenizer:
  """Encodes, decodes and renders chats; from `from_directory` or `from_gguf`.

  Attributes:
    chat_template: the Jinja source of the model's chat format, or None.
    eos_ids: ids that end a turn according to the model's own configs, sorted.
    control_ids: `eos_ids` and every special added token, sorted.
    think_ids: ids of `<think>` and `</think>`; None unless both are added.
    bos_id, pad_id: int, or None where the model has none.
    vocab_size: largest id + 1; the model's embedding may have more rows.
  """

  def __init__(
    self,
    backend: 'tokenizers.Tokenizer',
    hf: 'transformers.PreTrainedTokenizerFast',
    eos_ids: Sequence[int] = (),
  ):
    """Wraps a tokenizer.

    Args:
      backend: the encoder that knows the added tokens.
      hf: knows the names of the special tokens and renders the chat template.
      eos_ids: ids that end a turn, in addition to the tokenizer's own.
    """
    self._backend = backend
    self._hf = hf
    self._plain = _without_added_tokens(backend)
    added = backend.get_added_tokens_decoder()
    own_eos = () if hf.eos_token_id is None else (hf.eos_token_id,)
    self.eos_ids = tuple(sorted({*eos_ids, *own_eos}))
    special = {i for i, token in added.items() if token.special}
    self.control_ids = tuple(sorted(special | set(self.eos_ids)))
    self._control = frozenset(self.control_ids)
    by_text = {token.content: i for i, token in added.items()}
    self.think_ids = None
    if '<think>' in by_text and '</think>' in by_text:
      self.think_ids = (by_text['<think>'], by_text['</think>'])
    self.bos_id = hf.bos_token_id
    self.pad_id = hf.pad_token_id
    self.vocab_size = 1 + max(backend.get_vocab().values())
    template = hf.chat_template
    if isinstance(template, dict):
      template = template.get('default')
    self.chat_template = template

  @classmethod
  def from_directory(cls, directory: str | os.PathLike) -> 'Tokenizer':
    """The tokenizer of a Hugging Face model directory.

    Raises:
      ValueError: the directory has no tokenizer that transformers can read.
    """
    import tokenizers

    transformers = _import_transformers()
    directory = Path(directory)
    try:
      hf = transformers.AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True
      )
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise ValueError(
        f'{directory}: no readable tokenizer; expected tokenizer.json and '
        f'tokenizer_config.json. transformers says: {e}'
      ) from e
    # transformers may rebuild the pre-tokenizer from the class's name, but the
    # file is what the model was trained with.
    file = directory / 'tokenizer.json'
    if file.is_file():
      backend = tokenizers.Tokenizer.from_file(str(file))
    else:
      backend = hf.backend_tokenizer
    return cls(backend, hf, _eos_of_configs(directory))

  @classmethod
  def from_gguf(cls, metadata: Mapping[str, Any], source: str) -> 'Tokenizer':
    """The tokenizer that a GGUF file's metadata describe.

    Args:
      metadata: `gguf.GGUFModel.metadata`.
      source: where it came from, for error messages.

    Raises:
      ValueError: not a byte-level BPE with one of GGUF_PRE_TOKENIZERS.
    """
    transformers = _import_transformers()
    backend = _backend_of_gguf(metadata, source)
    names = {}
    tokens = metadata['tokenizer.ggml.tokens']
    for role, key in (
      ('bos_token', 'bos'),
      ('eos_token', 'eos'),
      ('unk_token', 'unknown'),
      ('pad_token', 'padding'),
    ):
      token_id = metadata.get(f'tokenizer.ggml.{key}_token_id')
      if token_id is not None:
        names[role] = tokens[token_id]
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    hf.chat_template = metadata.get('tokenizer.chat_template')
    end_of_turn = metadata.get('tokenizer.ggml.eot_token_id')
    return cls(backend, hf, () if end_of_turn is None else (end_of_turn,))

  def encode(self, text: str) -> list[int]:
    """Ids of plain text: never a control or other added token, no BOS.

    Characters whose bytes the vocabulary lacks (SmolLM2: a few control
    characters and unassigned planes) have no ids, as in llama.cpp.
    """
    return self._plain.encode(text, add_special_tokens=False).ids

  def encode_template(self, text: str) -> list[int]:
    """Ids of a prompt piece: control tokens are recognised, no BOS is added."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of the ids, white space unchanged; control ids are skipped."""
    ids = [int(i) for i in ids if int(i) not in self._control]
    return self._backend.decode(ids, skip_special_tokens=False)

  def token_text(self, token_id: int) -> str:
    """The text of one token, its leading white space included.

    Bytes that make no whole character come out as replacement characters. A
    control token comes out as its name.
    """
    token = self._backend.id_to_token(int(token_id))
    if token is None:
      return ''
    # Sentencepiece vocabularies write a space as this mark; their decoder
    # drops a leading one.
    if token.startswith('\u2581'):
      return token.replace('\u2581', ' ')
    return self._backend.decode([int(token_id)], skip_special_tokens=False)

  def render(self, messages: Sequence[Mapping[str, str]], **kwargs: Any) -> str:
    """The chat as a prompt for the model's answer, with thinking off.

    Without a chat template it is the contents, one per line.

    Args:
      messages: dicts with `role` and `content`.
      **kwargs: variables of the template; they override the defaults
        add_generation_prompt=True and enable_thinking=False.
    """
    if self.chat_template is None:
      return ''.join(message['content'] + '\n' for message in messages)
    options = {'add_generation_prompt': True, 'enable_thinking': False} | kwargs
    text: Any = self._hf.apply_chat_template(
      [dict(message) for message in messages],
      chat_template=self.chat_template,
      tokenize=False,
      **options,
    )
    return text

  @functools.cached_property
  def fingerprint(self) -> str:
    """The first 16 digits of the SHA-256 of the tokenizer's JSON."""
    return hashlib.sha256(self._backend.to_str().encode()).hexdigest()[:16]

  def save(self, directory: str | os.PathLike) -> None:
    """Writes tokenizer.json, tokenizer_config.json and the chat template.

    The config is written in the form that transformers 4, transformers 5 and
    other engines read alike; the template is in it and in chat_template.jinja.
    """
    directory = Path(directory)
    added = self._backend.get_added_tokens_decoder()
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'clean_up_tokenization_spaces': False,
      'add_bos_token': False,
    }
    for role in ('bos_token', 'eos_token', 'unk_token', 'pad_token'):
      config[role] = getattr(self._hf, role)
    config['added_tokens_decoder'] = {
      str(i): {
        'content': token.content,
        'lstrip': token.lstrip,
        'normalized': token.normalized,
        'rstrip': token.rstrip,
        'single_word': token.single_word,
        'special': token.special,
      }
      for i, token in sorted(added.items())
    }
    if self.chat_template is not None:
      config['chat_template'] = self.chat_template
      (directory / 'chat_template.jinja').write_text(
        self.chat_template, encoding='utf-8'
      )
    (directory / 'tokenizer.json').write_text(
      self._backend.to_str(pretty=True), encoding='utf-8'
    )
    (directory / 'tokenizer_config.json').write_text(
      json.dumps(config, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
    )


def _import_transformers() -> ModuleType:
  """The transformers module, imported without its advice to install torch."""
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  import transformers

  return transformers


def _eos_of_configs(directory: Path) -> list[int]:
  """The eos ids in generation_config.json and config.json, if there are any."""
  ids = []
  for name in ('generation_config.json', 'config.json'):
    path = directory / name
    if path.is_file():
      eos = json.loads(path.read_text(encoding='utf-8')).get('eos_token_id')
      ids += [] if eos is None else eos if isinstance(eos, list) else [eos]
  return ids


def _without_added_tokens(
  backend: 'tokenizers.Tokenizer',
) -> 'tokenizers.Tokenizer':
  """A copy that knows no added token and adds nothing around a text.

  Added tokens that the vocabulary repeats are dropped from it, so that no
  sequence of merges can produce one; only the unknown token stays.
  """
  import tokenizers

  spec = json.loads(backend.to_str())
  model = spec['model']
  if not isinstance(model.get('vocab'), dict):
    raise ValueError(
      f'tokenizer model {model.get("type")} is unsupported; supported: BPE, '
      'WordLevel, WordPiece.'
    )
  gone = {token['content'] for token in spec['added_tokens']}
  gone.discard(model.get('unk_token'))
  spec |= {
    'added_tokens': [],
    'post_processor': None,
    'truncation': None,
    'padding': None,
  }
  model['vocab'] = {t: i for t, i in model['vocab'].items() if t not in gone}
  if 'merges' in model:
    model['merges'] = [m for m in model['merges'] if _product(m) not in gone]
  return tokenizers.Tokenizer.from_str(json.dumps(spec))


def _product(merge: str | list[str]) -> str:
  """The token that a merge makes; files write merges as pairs or as 'a b'."""
  return ''.join(merge.split(' ', 1) if isinstance(merge, str) else merge)


def _backend_of_gguf(
  metadata: Mapping[str, Any], source: str
) -> 'tokenizers.Tokenizer':
  """The `tokenizers` object that GGUF metadata describe."""
  import tokenizers
  from tokenizers import decoders, models, normalizers

  kind = metadata.get('tokenizer.ggml.model')
  pre = metadata.get('tokenizer.ggml.pre')
  if kind != 'gpt2' or pre not in GGUF_PRE_TOKENIZERS:
    raise ValueError(
      f'{source}: tokenizer model {kind!r} with pre-tokenizer {pre!r}; '
      f"supported: 'gpt2' with {', '.join(GGUF_PRE_TOKENIZERS)}. Use the "
      "model's Hugging Face directory instead."
    )
  tokens = metadata['tokenizer.ggml.tokens']
  types = metadata['tokenizer.ggml.token_type']
  vocab = {
    token: i
    for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
    if type_ != _UNUSED
  }
  merges = [tuple(m.split(' ')) for m in metadata['tokenizer.ggml.merges']]
  backend = tokenizers.Tokenizer(
    # Llama 3 keeps a word that is itself a token, whatever the merges say.
    models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == 'llama-bpe')
  )
  if pre == 'qwen2':
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = _pre_tokenizer(pre)
  backend.decoder = decoders.ByteLevel()
  for special, role in ((True, _CONTROL), (False, _USER_DEFINED)):
    added = [
      tokenizers.AddedToken(token, special=special, normalized=False)
      for token, type_ in zip(tokens, types, strict=True)
      if type_ == role
    ]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
  return backend


def _pre_tokenizer(pre: str) -> 'tokenizers.pre_tokenizers.PreTokenizer':
  """The split into words before BPE, by its name in llama.cpp."""
  from tokenizers import Regex, pre_tokenizers

  if pre == 'smollm':
    return pre_tokenizers.Sequence(
      [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
      ]
    )
  words = _WORDS.format(digits='' if pre == 'qwen2' else '{1,3}')
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(words), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
