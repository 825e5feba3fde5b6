"""Records and timings as a grid writes them."""


def record(model, size, index, **changes):
  """A record with a score of 1."""
  return {
    'model': model,
    'method': 'MemAgent',
    'task': 'niah',
    'size': size,
    'seed': 0,
    'index': index,
    'id': f'niah/{size}/0/{index}',
    'tokens': size + index,
    'sampling': 'greedy',
    'answer': 'four',
    'answers': ['4'],
    'score': 1.0,
    'error': '',
    'finish_reason': 'eos',
    'turns': {'eos': 2, 'length': 1},
    'own_tokens': 2 * (size + index),
    'read_tokens': 2 * (size + index),
    'flops': 1e9 * size,
    'depth': index % 10 / 10,
    'health': {
      'saturated': 1 / 3,
      'unchanged': 0.5,
      'length_p10': 18.0,
      'length_p50': 20.0,
      'length_p90': 24.0,
      'empty': 0.0,
      'constant': False,
      'evidence_enters_turn': 0,
      'evidence_leaves_turn': None,
      'evidence_kept': True,
    },
    'trace': '',
  } | changes


def records(model, size, scores, **changes):
  """A record for every score."""
  return [
    record(model, size, i, score=float(score), **changes)
    for i, score in enumerate(scores)
  ]


def timing(model, size, **changes):
  """A finished batch of 4 documents."""
  return {
    'batch': f'{model}_{size}',
    'model': model,
    'method': 'MemAgent',
    'size': size,
    'tokens': size,
    'batch_size': 4,
    'read_tokens': 4 * size,
    'flops': 4e9 * size,
    'seconds': size / 100,
    'chunk_seconds': 0.2,
    'chunked': True,
    'peak_host_bytes': 500 * 2**20,
    'peak_device_bytes': None,
  } | changes
