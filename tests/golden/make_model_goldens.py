"""Writes models.npz and smollm2.npz: what transformers computes, in float32.

    python tests/golden/make_model_goldens.py          # needs the extra [parity]

models.npz has tiny random decoders: every architecture and feature we support,
each kind of rotary scaling on at least two of them. smollm2.npz has logits and
greedy continuations of the default model. `tests/models/test_parity.py` reads
both. Every row runs alone, so padding plays no part in a golden.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
# Lengths of a case's rows: one within the window of `dynamic`, two beyond it.
ROW_TOKENS = (3, 9, 14)

SHAPE = {
  'vocab_size': 64,
  'hidden_size': 32,
  'intermediate_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
}
# Weights -> model type and its fields; cases with the same weights share them.
WEIGHTS = {
  'llama_mha_tied': (
    'llama',
    {'num_key_value_heads': 4, 'tie_word_embeddings': True},
  ),
  'llama_gqa_wide_heads': ('llama', {'head_dim': 16}),
  'llama_mqa_bias': (
    'llama',
    {
      'num_key_value_heads': 1,
      'attention_bias': True,
      'tie_word_embeddings': True,
    },
  ),
  'qwen2_gqa_tied': ('qwen2', {'tie_word_embeddings': True}),
  'qwen2_mha': ('qwen2', {'num_key_value_heads': 4}),
  'qwen3_gqa_tied': ('qwen3', {'head_dim': 16, 'tie_word_embeddings': True}),
  'qwen3_mha_bias': (
    'qwen3',
    {'num_key_value_heads': 4, 'head_dim': 12, 'attention_bias': True},
  ),
}
# Rotary settings -> max_position_embeddings and rope_parameters. With a base of
# 100 all dimensions turn visibly within 14 tokens.
ROPES = {
  'default': (64, {'rope_type': 'default'}),
  'linear': (64, {'rope_type': 'linear', 'factor': 4.0}),
  'dynamic': (8, {'rope_type': 'dynamic', 'factor': 4.0}),
  'llama3': (
    256,
    {
      'rope_type': 'llama3',
      'factor': 8.0,
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 32,
    },
  ),
  'yarn': (
    256,
    {
      'rope_type': 'yarn',
      'factor': 4.0,
      'original_max_position_embeddings': 64,
    },
  ),
  'yarn_factor': (
    64,
    {
      'rope_type': 'yarn',
      'factor': 4.0,
      'original_max_position_embeddings': 16,
      'attention_factor': 1.3,
      'beta_fast': 2.0,
      'beta_slow': 0.1,
    },
  ),
  'yarn_untruncated': (
    64,
    {
      'rope_type': 'yarn',
      'factor': 4.0,
      'original_max_position_embeddings': 16,
      'beta_fast': 2.0,
      'beta_slow': 0.1,
      'truncate': False,
    },
  ),
  'yarn_mscale': (
    64,
    {
      'rope_type': 'yarn',
      'factor': 4.0,
      'original_max_position_embeddings': 16,
      'mscale': 0.7,
      'mscale_all_dim': 0.3,
    },
  ),
}
CASES = (
  ('llama_mha_tied', 'default'),
  ('llama_gqa_wide_heads', 'default'),
  ('llama_gqa_wide_heads', 'linear'),
  ('llama_gqa_wide_heads', 'dynamic'),
  ('llama_gqa_wide_heads', 'llama3'),
  ('llama_gqa_wide_heads', 'yarn'),
  ('llama_mqa_bias', 'default'),
  ('qwen2_gqa_tied', 'default'),
  ('qwen2_gqa_tied', 'yarn_factor'),
  ('qwen2_mha', 'dynamic'),
  ('qwen3_gqa_tied', 'default'),
  ('qwen3_gqa_tied', 'llama3'),
  ('qwen3_gqa_tied', 'yarn_untruncated'),
  ('qwen3_mha_bias', 'linear'),
  ('qwen3_mha_bias', 'yarn_mscale'),
)


def tiny_model(weights, rope):
  """A transformers model of a case, whose random weights get replaced."""
  kind, fields = WEIGHTS[weights]
  max_positions, rope_parameters = ROPES[rope]
  config = transformers.AutoConfig.for_model(
    kind,
    **SHAPE
    | {'tie_word_embeddings': False}
    | fields
    | {
      'max_position_embeddings': max_positions,
      'rope_parameters': {'rope_theta': 100.0} | rope_parameters,
      'bos_token_id': None,
      'eos_token_id': None,
    },
  )
  return transformers.AutoModelForCausalLM.from_config(
    config, dtype=torch.float32, attn_implementation='eager'
  ).eval()


def random_state(model, rng):
  """Name -> float16 tensor; no bias is zero, and no norm weight is one.

  Float16 halves the file; its values are exact in float32, used for the run.
  """
  state = {}
  for name, tensor in model.state_dict().items():
    x = rng.normal(size=tuple(tensor.shape))
    if name.endswith('norm.weight'):
      x = 1.0 + 0.3 * x
    elif name.endswith('.bias'):
      x = 0.5 * x
    elif name.endswith('proj.weight'):
      x = 1.5 * x / np.sqrt(tensor.shape[1])
    state[name] = x.astype(np.float16)
  if model.config.tie_word_embeddings:
    del state['lm_head.weight']
  return state


def forward(model, ids):
  """A row's (hidden after every layer [L,T,E], after the final norm, logits)."""
  after = []
  # output_hidden_states would give the last layer's output after the norm only.
  hooks = [
    layer.register_forward_hook(lambda _m, _x, y: after.append(y))
    for layer in model.model.layers
  ]
  with torch.no_grad():
    final = model.model(torch.tensor(ids)[None]).last_hidden_state
    logits = model.lm_head(final)
  for hook in hooks:
    hook.remove()
  hidden = torch.stack([y[0] if isinstance(y, tuple) else y for y in after])
  return hidden[:, 0].numpy(), final[0].numpy(), logits[0].numpy()


def make_models():
  rng = np.random.default_rng(20)
  out, states = {}, {}
  for weights, rope in CASES:
    case = f'{weights}/{rope}'
    if weights not in states:
      states[weights] = random_state(tiny_model(weights, rope), rng)
      for name, tensor in states[weights].items():
        out[f'weights/{weights}/{name}'] = tensor
    for row, tokens in enumerate(ROW_TOKENS):
      # A new model for every row: dynamic NTK remembers its longest row.
      model = tiny_model(weights, rope)
      state = {
        k: torch.tensor(v.astype(np.float32))
        for k, v in states[weights].items()
      }
      left = model.load_state_dict(state, strict=False)
      assert not left.unexpected_keys, left
      assert set(left.missing_keys) <= {'lm_head.weight'}, left
      ids = rng.integers(0, SHAPE['vocab_size'], tokens)
      hidden, final, logits = forward(model, ids)
      out[f'{case}/{row}/ids'] = ids.astype(np.int32)
      out[f'{case}/{row}/hidden_LxTxE'] = hidden
      out[f'{case}/{row}/final_TxE'] = final
      out[f'{case}/{row}/logits_TxV'] = logits
    out[f'{case}/config'] = np.array(
      json.dumps(model.config.to_dict(), sort_keys=True)
    )
    out[f'{case}/weights'] = np.array(weights)
  return out


PROMPTS = (
  'The lighthouse keeper climbed the long stairs every evening, and on the '
  'last evening of the year he found',
  # Ends its turn after a few tokens; the golden continues after <|im_end|>.
  '<|im_start|>user\nAnswer in one word: what is the capital city of the '
  'country of France?<|im_end|>\n<|im_start|>assistant\n',
  'To bake a plain loaf of bread you need four things: flour, water, salt and '
  'yeast. First mix the flour and the salt in a large bowl. Then stir the '
  'yeast into warm water and wait until it foams. After that',
  'A short history of the bicycle. In 1817 a German inventor built a wooden '
  'machine with two wheels in line and no pedals; the rider pushed it along '
  'with his feet. Half a century later French makers fixed cranks to the front '
  'wheel. Since one turn of the cranks was one turn of the wheel, the only way '
  'to go faster was',
  '<|im_start|>system\nYou answer in one paragraph.<|im_end|>\n'
  '<|im_start|>user\nA farmer has 17 sheep. She buys 8 more at the market, '
  'sells 5 to a neighbour, and three lambs are born in spring. At the end '
  'of the spring, how many sheep does she have?<|im_end|>\n'
  '<|im_start|>assistant\n',
  'Dear Anna,\n\nThank you for your letter of the third of May. We arrived in '
  'the village on a wet Tuesday, and for a week we saw nothing of the '
  'mountains at all. The house is small but dry. There is a stove in the '
  'kitchen, a table with four chairs that do not match, and a window from '
  'which, the landlord swears, one can see the glacier. On the eighth day the '
  'clouds lifted. I was carrying water from the well, and when I turned round '
  'there it was, white and enormous, filling the whole of the valley. I put '
  'the bucket down and',
  'Rivers carry more than water. Every second a large river moves tonnes of '
  'sand, silt and clay towards the sea, and where the current slows the load '
  'is dropped. A delta is the sum of all these drops. It grows outward in '
  'lobes; when one lobe has become so long that its channel is nearly flat, '
  'the river breaks through its bank somewhere upstream and takes a steeper '
  'way, and a new lobe begins. People who live on deltas have always built '
  'walls to keep the channel where it is. The walls work for a while. But the '
  'mud that used to spread over the plain in every flood is now carried past '
  'it and lost in deep water, so that behind the walls the land slowly sinks, '
  'while the sea, for reasons of its own, rises. Engineers have begun to cut '
  'openings on purpose, and to let the river',
  'import math\n\n\ndef mean(values):\n  """The arithmetic mean of a list of numbers."""\n',
)

PASSAGE = (
  'The town had two clocks, and they had never agreed. The one on the church '
  'was old and lost a minute every week; the one on the town hall was new, '
  'electric, and right. On Mondays the sexton went up the tower with a lantern '
  'and a pocket watch, and moved the hands of his clock forward until they '
  'matched. For the rest of the week the two drifted apart again, first by '
  'seconds, which nobody noticed, and by Sunday so far that a person in the '
  'square could hear the hour strike, cross to the bakery, and hear it strike '
  'once more. Children learned to count with it. Lovers used the minute '
  'between the bells as if it belonged to no day at all. When the council '
  'voted to give the church an electric movement as well, it was thought a '
  'small matter, and the vote was taken after eleven at night with four '
  'members present. Within a month there had been a petition, then another '
  'against it, and a schoolteacher named Henrik Vold had written to the '
  'newspaper of the county. He did not defend the old clock as a clock, he '
  'wrote; a clock that is wrong is a poor clock. He defended the minute. '
  'Everything else in the town, he said, had been measured, sold or insured, '
  'and here was one thing that came every week, a little larger every day, '
  'for which nobody had ever been asked to pay. The editor printed the letter '
  'on the front page beside a photograph of the tower, and by the end of the '
  'summer people were coming by bus to stand between the two bells and to '
  'listen, with their hats in their hands, to nothing.'
)
PASSAGE_TOKENS = 300
PASSAGE_EVERY = 20
NEW_TOKENS = 64
SUBSET = 512
# Two programs whose logits agree to 1e-3 could continue a row differently if its
# two best logits are closer than twice that.
LEAST_MARGIN = 2e-3


def make_smollm2(directory):
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  # Nothing ends a row and nothing is suppressed: plain greedy decoding.
  model.generation_config = transformers.GenerationConfig(
    do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0
  )
  rng = np.random.default_rng(21)
  subset = np.sort(rng.choice(model.config.vocab_size, SUBSET, replace=False))
  out = {'subset': subset.astype(np.int32)}

  def encode(text):
    return tokenizer(text, add_special_tokens=False)['input_ids']

  for row, text in enumerate(PROMPTS):
    ids = torch.tensor(encode(text))[None]
    with torch.no_grad():
      last = model(ids).logits[0, -1]
      run = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_logits=True,
      )
    best = torch.stack([x[0] for x in run.logits]).topk(2).values
    margin = (best[:, 0] - best[:, 1]).numpy()
    continuation = run.sequences[0, ids.shape[1] :].numpy()
    assert len(continuation) == NEW_TOKENS, len(continuation)
    print(
      f'prompt {row}: {ids.shape[1]} tokens, least margin {margin.min():.4f}: '
      f'{tokenizer.decode(continuation[:16])!r}'
    )
    assert margin.min() > LEAST_MARGIN, f'replace prompt {row}'
    out[f'prompt/{row}/ids'] = ids[0].numpy().astype(np.int32)
    out[f'prompt/{row}/last_logits'] = last.numpy()[subset]
    out[f'prompt/{row}/continuation'] = continuation.astype(np.int32)
    out[f'prompt/{row}/margin'] = margin.astype(np.float32)

  ids = encode(PASSAGE)[:PASSAGE_TOKENS]
  assert len(ids) == PASSAGE_TOKENS, len(ids)
  at = np.arange(PASSAGE_EVERY - 1, PASSAGE_TOKENS, PASSAGE_EVERY)
  with torch.no_grad():
    logits = model(torch.tensor(ids)[None]).logits[0].numpy()
  out['passage/ids'] = np.array(ids, np.int32)
  out['passage/positions'] = at.astype(np.int32)
  out['passage/logits'] = logits[at][:, subset]
  return out


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--smollm2_dir', help='default: the cached default model', default=None
  )
  directory = parser.parse_args().smollm2_dir
  if directory is None:
    from memagent_jax.models.weights import pretrained

    directory = pretrained.default_model_dir()
  _save('models.npz', make_models())
  _save('smollm2.npz', make_smollm2(directory))


def _save(name, arrays):
  np.savez_compressed(HERE / name, **arrays)
  print(f'{name}: {(HERE / name).stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
