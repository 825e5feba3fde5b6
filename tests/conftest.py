"""Fixtures that several test files share."""

import os
from pathlib import Path
import subprocess
import sys

import hypothesis
import pytest

from memagent_jax.models.weights import pretrained

# Example time depends on the machine; tests that must be quick say so themselves.
hypothesis.settings.register_profile('tests', deadline=None)
hypothesis.settings.load_profile('tests')

# A slow test starts processes that may take minutes each.
_SLOW_TIMEOUT_SECONDS = 1200


def pytest_collection_modifyitems(items):
  """Gives every slow test its own timeout; pyproject has that of the others."""
  for item in items:
    if item.get_closest_marker('slow'):
      item.add_marker(pytest.mark.timeout(_SLOW_TIMEOUT_SECONDS))


# A chat format with everything ours must handle: control tokens, a system
# message, and a thinking switch like Qwen3's.
CHAT_TEMPLATE = (
  "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content"
  " + '<|im_end|>\\n' }}{% endfor %}"
  "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  "{%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}"
  '{%- endif %}{% endif %}'
)


@pytest.fixture(scope='session')
def smollm2_dir():
  """Directory of the default model; skips if it cannot be obtained."""
  try:
    return pretrained.default_model_dir()
  except ValueError as e:
    pytest.skip(f'the default model cannot be obtained: {e}')


@pytest.fixture(scope='session')
def tiny_tokenizer():
  """A byte-level tokenizer of 269 ids: 256 bytes, 6 merges, 7 added tokens.

  Added: 262 <|endoftext|> (pad), 263 <|im_start|>, 264 <|im_end|> (eos); not
  special: 265 <think>, 266 </think>, 267 <tool_call>, 268 </tool_call>.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers
  import transformers

  from memagent_jax.models.tokenizer import Tokenizer

  merges = [('h', 'e'), ('l', 'l'), ('Ġ', 't'), ('he', 'll'), ('<', '|')]
  merges.append(('|', '>'))
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {
    token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])
  }
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
  backend.add_tokens(
    [
      tokenizers.AddedToken(text, special=False, normalized=False)
      for text in ('<think>', '</think>', '<tool_call>', '</tool_call>')
    ]
  )
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    eos_token='<|im_end|>',
    pad_token='<|endoftext|>',
  )
  hf.chat_template = CHAT_TEMPLATE
  return Tokenizer(backend, hf)


@pytest.fixture(scope='session')
def tiny_model_dir(tiny_tokenizer, tmp_path_factory):
  """A Hugging Face directory of a random one-layer Qwen3 with that tokenizer."""
  import jax

  from memagent_jax.models import transformer
  from memagent_jax.models.configs import ModelConfig, RopeConfig
  from memagent_jax.models.weights import huggingface

  config = ModelConfig(
    'qwen3', 269, 16, 1, 2, 1, 8, 24, 2048, 1e-5, RopeConfig(), qk_norm=True
  )
  params = transformer.init_params(config, jax.random.key(0))
  directory = tmp_path_factory.mktemp('model') / 'tiny'
  huggingface.save_model(directory, config, params, tiny_tokenizer)
  return directory


@pytest.fixture(scope='session')
def run_on_eight_devices():
  """Runs Python code in its own process, which has eight CPU devices."""

  def run(code: str) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
      [sys.executable, '-c', code],
      cwd=root,
      env=os.environ
      | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8 '
        '--xla_cpu_collective_call_terminate_timeout_seconds=600',
        'PYTHONPATH': str(root),
      },
      capture_output=True,
      text=True,
      timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]

  return run
