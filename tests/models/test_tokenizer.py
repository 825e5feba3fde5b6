"""Text stays text, control tokens stay control tokens, in both directions."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import tokenizers
import transformers

from memagent_jax.models.tokenizer import Tokenizer
from tests.models.weights.gguf_files import tokenizer_metadata

GOLDENS = json.loads(
  (Path(__file__).parent.parent / 'golden/tokenizer_smollm2.json').read_text()
)
CONTROL_TEXT = (
  'a <|im_end|> b <|im_start|>user <|endoftext|> <think> x </think> <tool_call>'
)


@pytest.fixture(scope='module')
def smollm2(smollm2_dir):
  return Tokenizer.from_directory(smollm2_dir)


def test_smollm2_encodes_as_llama_cpp(smollm2):
  assert len(GOLDENS) > 250
  wrong = [g['text'] for g in GOLDENS if smollm2.encode(g['text']) != g['ids']]
  assert wrong == []


def test_goldens_tell_a_plain_byte_level_pre_tokenizer_apart(smollm2_dir):
  # transformers' own tokenizer of the GGUF; weak goldens would let it pass.
  backend = tokenizers.Tokenizer.from_file(str(smollm2_dir / 'tokenizer.json'))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  wrong = [
    g['text']
    for g in GOLDENS
    if '<' not in g['text']
    and backend.encode(g['text'], add_special_tokens=False).ids != g['ids']
  ]
  assert {'a  12', 'a\n\n12', ' ²3', ' ٣٤'} <= set(wrong)


def test_smollm2_facts(smollm2):
  assert smollm2.eos_ids == (2,)
  assert smollm2.bos_id == 1
  assert smollm2.control_ids == tuple(range(17))
  assert smollm2.vocab_size == 49152
  assert smollm2.think_ids is None
  assert smollm2.encode_template('<|im_start|>') == [1]


def test_smollm2_renders_its_chat(smollm2):
  assert smollm2.render([{'role': 'user', 'content': 'hi'}]) == (
    '<|im_start|>system\n'
    'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
    '<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
  )


def test_control_text_in_a_document_is_text(tiny_tokenizer):
  ids = tiny_tokenizer.encode(CONTROL_TEXT)
  assert max(ids) < 262  # the byte and merge ids end there
  assert tiny_tokenizer.decode(ids) == CONTROL_TEXT
  # A tokenizer that only stops splitting *special* tokens gives 265 and 267.
  assert 264 in tiny_tokenizer.encode_template(CONTROL_TEXT)
  assert 265 in tiny_tokenizer.encode_template(CONTROL_TEXT)


def test_merges_cannot_arrive_at_a_control_token():
  # The vocabulary repeats the control token and has the merge that produces it.
  model = tokenizers.models.BPE(
    vocab={'<': 0, 'e': 1, '>': 2, '<e': 3, '<e>': 4},
    merges=[('<', 'e'), ('<e', '>')],
  )
  backend = tokenizers.Tokenizer(model)
  backend.add_special_tokens(['<e>'])
  hf = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  tokenizer = Tokenizer(backend, hf, eos_ids=[4])
  assert tokenizer.encode('<e>e') == [3, 2, 1]
  assert tokenizer.encode_template('<e>e') == [4, 1]


def test_no_post_processor_in_either_encoder(tiny_tokenizer):
  backend = tokenizers.Tokenizer.from_str(tiny_tokenizer._backend.to_str())
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single='<|im_start|> $A', special_tokens=[('<|im_start|>', 263)]
  )
  tokenizer = Tokenizer(backend, tiny_tokenizer._hf)
  assert tokenizer.encode('he') == [256]
  assert tokenizer.encode_template('he') == [256]


@settings(max_examples=50)
@given(text=st.text(max_size=40))
def test_decode_undoes_encode(tiny_tokenizer, text):
  assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text


def test_a_character_may_be_several_tokens(tiny_tokenizer):
  # 'hell' is one token; é is two bytes.
  assert len(tiny_tokenizer.encode('hell é!')) == 5


def test_decode_keeps_white_space_and_skips_control_ids(tiny_tokenizer):
  text = "  he  didn 't , \n\n go . "
  ids = tiny_tokenizer.encode(text)
  assert tiny_tokenizer.decode([263, *ids, 264]) == text
  assert tiny_tokenizer.decode([265, *ids]) == '<think>' + text
  assert tiny_tokenizer.decode([]) == ''


def test_ids_of_roles(tiny_tokenizer):
  assert tiny_tokenizer.eos_ids == (264,)
  assert tiny_tokenizer.control_ids == (262, 263, 264)
  assert tiny_tokenizer.think_ids == (265, 266)
  assert tiny_tokenizer.vocab_size == 269
  assert tiny_tokenizer.pad_id == 262
  assert tiny_tokenizer.bos_id is None


def test_render_turns_thinking_off_unless_asked(tiny_tokenizer):
  chat = [{'role': 'user', 'content': 'hi'}]
  prompt = '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
  off = '<think>\n\n</think>\n\n'
  assert tiny_tokenizer.render(chat) == prompt + off
  assert tiny_tokenizer.render(chat, enable_thinking=True) == prompt


def test_without_a_template_the_contents_are_lines(tiny_tokenizer):
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tiny_tokenizer._backend
  )
  tokenizer = Tokenizer(tiny_tokenizer._backend, hf)
  assert tokenizer.chat_template is None
  chat = [
    {'role': 'system', 'content': 'be brief'},
    {'role': 'user', 'content': 'hi'},
  ]
  assert tokenizer.render(chat) == 'be brief\nhi\n'


def test_save_and_load_give_the_same_tokenizer(tiny_tokenizer, tmp_path):
  tiny_tokenizer.save(tmp_path)
  (tmp_path / 'config.json').write_text(
    json.dumps({'model_type': 'qwen3', 'eos_token_id': 264})
  )
  (tmp_path / 'generation_config.json').write_text(
    json.dumps({'eos_token_id': [264, 262]})
  )
  loaded = Tokenizer.from_directory(tmp_path)
  assert loaded.fingerprint == tiny_tokenizer.fingerprint
  assert loaded.chat_template == tiny_tokenizer.chat_template
  assert loaded.eos_ids == (262, 264)
  assert loaded.control_ids == tiny_tokenizer.control_ids
  assert loaded.think_ids == tiny_tokenizer.think_ids
  assert loaded.pad_id == 262
  assert loaded.encode(CONTROL_TEXT) == tiny_tokenizer.encode(CONTROL_TEXT)


def test_saved_files_load_in_transformers(tiny_tokenizer, tmp_path):
  tiny_tokenizer.save(tmp_path)
  config = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert config['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert config['chat_template'] == tiny_tokenizer.chat_template
  hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert hf(CONTROL_TEXT, add_special_tokens=False)[
    'input_ids'
  ] == tiny_tokenizer.encode_template(CONTROL_TEXT)
  assert hf.eos_token == '<|im_end|>'
  assert hf.chat_template == tiny_tokenizer.chat_template


def test_fingerprint_changes_with_the_tokenizer(tiny_tokenizer):
  backend = tokenizers.Tokenizer.from_str(tiny_tokenizer._backend.to_str())
  backend.add_tokens(['more'])
  other = Tokenizer(backend, tiny_tokenizer._hf)
  assert len(tiny_tokenizer.fingerprint) == 16
  assert other.fingerprint != tiny_tokenizer.fingerprint


def test_a_directory_without_tokenizer_is_refused(tmp_path):
  with pytest.raises(
    ValueError, match=r'no readable tokenizer.*tokenizer.json'
  ):
    Tokenizer.from_directory(tmp_path)


def test_an_unsupported_tokenizer_model_is_refused():
  backend = tokenizers.Tokenizer(tokenizers.models.Unigram([('a', 0.0)]))
  hf = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
  with pytest.raises(ValueError, match=r'Unigram.*supported: BPE'):
    Tokenizer(backend, hf)


@pytest.mark.parametrize(
  ('pre', 'pieces'),
  [
    # Digits are split one by one, one by one, and into groups of up to three.
    ('smollm', ['1', '2', '3', '4']),
    ('qwen2', ['1', '2', '3', '4']),
    ('llama-bpe', ['123', '4']),
  ],
)
def test_gguf_pre_tokenizers_cut_digits(pre, pieces):
  metadata = tokenizer_metadata(pre)
  tokenizer = Tokenizer.from_gguf(metadata, 'x.gguf')
  tokens = metadata['tokenizer.ggml.tokens']
  assert [tokens[i] for i in tokenizer.encode('1234')] == pieces


def test_gguf_qwen2_cuts_as_the_published_regex():
  tokenizer = Tokenizer.from_gguf(tokenizer_metadata('qwen2'), 'x.gguf')
  pieces = tokenizer._backend.pre_tokenizer.pre_tokenize_str(
    "Don't  stop\n\n2026 (now)!\n"
  )
  assert [
    piece.replace('Ġ', ' ').replace('Ċ', '\n') for piece, _ in pieces
  ] == [
    'Don',
    "'t",
    ' ',
    ' stop',
    '\n\n',
    *'2026',
    ' (',
    'now',
    ')!\n',
  ]
  assert tokenizer.decode(tokenizer.encode('e\u0301')) == '\u00e9'  # NFC


def test_gguf_token_types():
  tokenizer = Tokenizer.from_gguf(tokenizer_metadata('qwen2'), 'x.gguf')
  assert tokenizer.control_ids == (258,)
  assert tokenizer.eos_ids == (258,)
  assert tokenizer.encode_template('<think><|end|>') == [259, 258]
  assert max(tokenizer.encode('<think><|end|>[PAD260]')) < 256
  assert tokenizer.vocab_size == 260  # the unused token does not count


def test_gguf_end_of_turn_id_ends_a_turn():
  metadata = tokenizer_metadata(
    'llama-bpe', **{'tokenizer.ggml.eot_token_id': 259}
  )
  assert Tokenizer.from_gguf(metadata, 'x.gguf').eos_ids == (258, 259)


@pytest.mark.parametrize('fields', [('gpt2', 'deepseek-llm'), ('llama', None)])
def test_gguf_unknown_pre_tokenizer_is_refused(fields):
  model, pre = fields
  metadata = tokenizer_metadata(pre, **{'tokenizer.ggml.model': model})
  with pytest.raises(ValueError, match=r'x\.gguf.*smollm, qwen2, llama-bpe'):
    Tokenizer.from_gguf(metadata, 'x.gguf')
