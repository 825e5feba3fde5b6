"""HotpotQA files with a few records."""

import json
from pathlib import Path


def write(path: Path, count: int) -> Path:
  """A file of questions q0, q1, ... with answers Town0, Town1, ...

  Each has two paragraphs; the first contains the answer.
  """
  records = [
    {
      '_id': f'q{i}',
      'question': f'Where was number {i} born?',
      'answer': f'Town{i}',
      'supporting_facts': [[f'Person {i}', 0]],
      'context': [
        [f'Person {i}', [f'Number {i} was born in Town{i}.', ' It rained.']],
        [f'Near {i}', [f'Another {i} lived elsewhere.']],
      ],
    }
    for i in range(count)
  ]
  path.write_text(json.dumps(records), encoding='utf-8')
  return path
