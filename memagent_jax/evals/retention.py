"""How often a right memory survives a chunk: the error that short documents hide.

    keys -> one turn each over a needle -> right memories
      -> each with many needle-free chunks: does the turn write the value again?

A turn is checked by teacher forcing: if every token of the memory has more than
half of the probability, greedy decoding writes the same memory again. The few
turns without that certainty are gathered and decoded.

The support of the new memory (`memory_rules.support`) is recorded for turns
that take up a needle and for turns that lose it: a value in between is a useful
ratio for `memory_rules.Guarded`.

Turns of one key are correlated: a memory that is hard to copy is lost again and
again. So lost keys are counted as well as lost turns, and the bound of the error
counts only as many independent turns as the clustering of losses leaves.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import math
import os
from pathlib import Path
import random
from typing import NamedTuple

import jax
import numpy as np

from memagent_jax import sharding
from memagent_jax import tokens as tokens_lib
from memagent_jax.agent import memory_rules
from memagent_jax.agent import prompts as prompts_lib
from memagent_jax.agent import session as session_lib
from memagent_jax.agent.config import AgentConfig, ReadingConfig, make_agent
from memagent_jax.agent.engine import Engine, Lockstep
from memagent_jax.agent.memory_rules import WrittenTurn
from memagent_jax.agent.session import Start
from memagent_jax.agent.turns import texts
from memagent_jax.data.benchmarks import haystack, ruler, words
from memagent_jax.data.chunks import ChunkCutter
from memagent_jax.data.examples import seeded
from memagent_jax.evals.statistics import upper_bound
from memagent_jax.io import jsonl, workdirs
from memagent_jax.models.model import Model
from memagent_jax.sharding import MeshConfig
from memagent_jax.structs import Params, Tokens

TURNS = 'turns.jsonl'
# lost_squared: sum over keys of the squared number of lost turns.
_COUNTS = ('turns', 'lost', 'changed', 'keys', 'lost_keys', 'lost_squared')


@dataclasses.dataclass(frozen=True)
class RetentionConfig:
  """Numbers and kinds of right memories, and of chunks to test them on."""

  # Least turns to check; text that runs out repeats, with other keys.
  turns: int = 200_000
  # Keys per batch.
  batch_size: int = 128
  # Chunks that each memory is tested on.
  chunks_per_key: int = 16
  # Share of values that are UUIDs; the others have seven digits.
  uuid_share: float = 0.25
  # Share of chunks with a needle whose key has one word of the key asked for.
  near_miss_share: float = 0.0
  # Probability of a memory's least likely token above which a turn is certain to
  # write the memory again; the other turns are decoded.
  certain_probability: float = 0.5
  # Seed of keys, values and near misses.
  seed: int = 0


@sharding.under_mesh
def measure(
  *,
  workdir: str | os.PathLike,
  model: Model,
  reading: ReadingConfig,
  essays: Sequence[str],
  config: RetentionConfig,
  engine: Engine | None = None,
  mesh: MeshConfig | None = None,
  config_text: str = '',
) -> dict[str, float]:
  """Counts turns that lose a right memory; appends `turns.jsonl`, resumable.

  Args:
    workdir: workdir of this measurement.
    model: the model that reads, greedily.
    reading: caps, wording and memory rule; its temperature is not used.
    essays: files or folders of text, cut into chunks as documents are.
    config: numbers of keys, chunks and turns.
    engine: engine that takes the turns; None: `Lockstep()`.
    mesh: devices that share the rows; None: the default device alone.
    config_text: the measurement's config; a workdir of another one is refused.

  Returns:
    `turns`, `lost` (the value is gone), `changed` (kept in other words), `keys`,
    `lost_keys` (lost in at least one turn), and `bound`, the upper end of the
    one-sided 95 % interval of a turn's error; the same for each kind of value,
    as `KIND/turns` and so on.

  Raises:
    ValueError: a workdir of another measurement, or a model that takes up no
      needle.
  """
  workdirs.claim(workdir, config_text)
  path = Path(workdir) / TURNS
  batches = list(jsonl.read(path)) if path.exists() else []
  measurement = _Measurement(
    model, reading, essays, config, engine or Lockstep()
  )
  while True:
    total = _totals(batches)
    if batches:
      print(
        '{turns:,} turns  {lost} lost  {changed} in other words  {lost_keys} of '
        '{keys:,} keys lost  error at most {bound:.1e} (95 %)'.format(**total),
        flush=True,
      )
      if total['turns'] >= config.turns:
        return total
    batches.append(measurement.batch(len(batches)))
    jsonl.append(path, batches[-1:])


def _totals(batches: Sequence[Mapping]) -> dict[str, float]:
  """Counts of all batches and their bounds, over all kinds and by kind."""
  kinds = sorted({kind for batch in batches for kind in batch['counts']})
  total: dict[str, float] = {}
  for prefix, mine in [('', kinds), *((f'{k}/', [k]) for k in kinds)]:
    for name in _COUNTS:
      total[prefix + name] = sum(
        batch['counts'][kind][name]
        for batch in batches
        for kind in mine
        if kind in batch['counts']
      )
    turns, lost = total[prefix + 'turns'], total[prefix + 'lost']
    if turns:
      # The design effect of keys as clusters, for rare losses; without any loss
      # a key counts as one turn.
      together = turns / total[prefix + 'keys']
      if lost:
        together = total[prefix + 'lost_squared'] / lost
      total[prefix + 'bound'] = upper_bound(lost / together, turns / together)
  return total


class _Measurement:
  """Tests batches of right memories on chunks without their needle."""

  def __init__(
    self,
    model: Model,
    reading: ReadingConfig,
    essays: Sequence[str],
    config: RetentionConfig,
    engine: Engine,
  ):
    greedy = dataclasses.replace(reading, temperature=0.0)
    self._agent = make_agent(model, greedy)
    self._params = sharding.replicate(model.params)
    self._tokenizer = model.tokenizer
    cutter = ChunkCutter(
      model.tokenizer, reading.chunk_tokens, reading.chunk_cut
    )
    text = haystack.essays(*essays).text
    self._chunks = cutter.split(model.tokenizer.encode(text))
    self._config, self._engine = config, engine

  def batch(self, number: int) -> dict:
    """One batch of keys, each tested on `chunks_per_key` chunks.

    Returns `counts` by kind of value; `taken` by kind, the log ratio of each
    right memory to the empty one before it; and `losses`, for each lost key: the
    number of losses, the memory and one that replaced it, and the support of the
    losing turns: log ratios, and whether an empty memory becomes the same.

    Raises:
      ValueError: a model that takes up no needle.
    """
    config, agent = self._config, self._agent
    rng = seeded('retention', config.seed, number)
    keys = [_Key.draw(rng, config.uuid_share) for _ in range(config.batch_size)]
    encode = self._tokenizer.encode
    question = jax.device_get(
      tokens_lib.pad_rows(
        [encode(ruler.needle_question(key.kind, key.name)) for key in keys],
        agent.question_tokens,
      )
    )
    hidden = [self._hide(key, rng.choice(self._chunks), rng) for key in keys]
    first_memory = jax.device_get(
      memory_rules.empty_memory(agent, config.batch_size)
    )
    memory, (taken_N, _) = self._turn(question, first_memory, hidden)
    memory_texts = texts(self._tokenizer, memory)
    right_N = np.asarray(
      [key.value in text for key, text in zip(keys, memory_texts, strict=True)]
    )
    if not right_N.any():
      raise ValueError(
        f'none of {config.batch_size} memories has the value of the needle that '
        'was just read: this model has nothing to lose.'
      )
    lost_N, changed_N = np.zeros((2, config.batch_size), int)
    lost_turns: dict[int, list[tuple[str, float, bool]]] = {}
    unsure = self._unsure_turns(number, keys, question, memory, right_N, rng)
    for n, text, log_ratio, given in self._after(question, memory, unsure):
      if text == memory_texts[n]:
        continue
      if keys[n].value in text:
        changed_N[n] += 1
      else:
        lost_N[n] += 1
        lost_turns.setdefault(n, []).append((text, log_ratio, given))
    turns_N = right_N * config.chunks_per_key
    per_key = (turns_N, lost_N, changed_N, right_N, lost_N > 0, lost_N**2)
    kinds = np.asarray([key.kind for key in keys])
    by_kind = {kind: kinds == kind for kind in dict.fromkeys(kinds.tolist())}
    return {
      'counts': {
        kind: {
          name: int(values_N[kind_N].sum())
          for name, values_N in zip(_COUNTS, per_key, strict=True)
        }
        for kind, kind_N in by_kind.items()
      },
      'taken': {
        kind: [round(ratio, 2) for ratio in taken_N[right_N & kind_N].tolist()]
        for kind, kind_N in by_kind.items()
      },
      'losses': [
        {
          'lost': int(lost_N[n]),
          'memory': memory_texts[n],
          'became': turns[0][0],
          'log_ratios': [round(log_ratio, 2) for _, log_ratio, _ in turns],
          'given': [given for _, _, given in turns],
        }
        for n, turns in sorted(lost_turns.items())
      ],
    }

  def _unsure_turns(
    self,
    number: int,
    keys: Sequence['_Key'],
    question: Tokens,
    memory: Tokens,
    right_N: np.ndarray,
    rng: random.Random,
  ) -> list[tuple[int, list[int]]]:
    """The key's number and the chunk of every turn that may lose a right memory."""
    config, agent = self._config, self._agent
    unsure = []
    first = number * config.batch_size * config.chunks_per_key
    for step in range(config.chunks_per_key):
      chunks = []
      for n, key in enumerate(keys):
        position = first + n * config.chunks_per_key + step
        chunk = self._chunks[position % len(self._chunks)]
        if rng.random() < config.near_miss_share:
          other = words.other_near_miss(key.name, rng)
          value = words.draw(key.kind, rng)
          chunk = self._hide(_Key(key.kind, other, value), chunk, rng)
        chunks.append(chunk)
      slot = tokens_lib.pad_rows(chunks, agent.chunk_tokens)
      rows = sharding.shard_rows((question, memory, slot))
      least_N = _least_log_prob(agent, self._params, *rows)
      unsure_N = right_N & (
        np.asarray(least_N) <= math.log(config.certain_probability)
      )
      unsure += [(int(n), chunks[n]) for n in np.flatnonzero(unsure_N)]
    return unsure

  def _hide(
    self, key: '_Key', chunk: Sequence[int], rng: random.Random
  ) -> list[int]:
    """The chunk with a needle in it, cut to the chunk's cap."""
    needle = self._tokenizer.encode(' ' + ruler.needle(*key))
    around = chunk[: self._agent.chunk_tokens - len(needle)]
    at = rng.randrange(len(around) + 1)
    return [*around[:at], *needle, *around[at:]]

  def _after(
    self,
    question: Tokens,
    memory: Tokens,
    pairs: list[tuple[int, list[int]]],
  ) -> Iterator[tuple[int, str, float, bool]]:
    """Yields the key's number, the memory after the chunk, and its support."""
    size = self._config.batch_size
    for start in range(0, len(pairs), size):
      part = pairs[start : start + size]
      # The last batch is filled with its first pair.
      full = part + part[:1] * (size - len(part))
      numbers = np.asarray([n for n, _ in full])
      asked, before = jax.tree.map(
        lambda x, n=numbers: x[n], (question, memory)
      )
      after, (log_ratio_N, given_N) = self._turn(
        asked, before, [chunk for _, chunk in full]
      )
      after_texts = texts(self._tokenizer, after)
      yield from zip(
        (n for n, _ in part),
        after_texts,
        log_ratio_N.tolist(),
        given_N.tolist(),
        strict=False,
      )

  def _turn(
    self, question: Tokens, memory: Tokens, chunks: Sequence[Sequence[int]]
  ) -> tuple[Tokens, tuple[np.ndarray, np.ndarray]]:
    """The memories after one chunk, and their support; on the host."""
    session = self._engine.open(
      self._agent,
      self._params,
      # Greedy decoding makes no use of the names.
      Start(question, ['retention'] * len(chunks), memory=memory),
    )
    before = session.carried
    width = self._agent.chunk_tokens
    slot = session_lib.slots([[chunk] for chunk in chunks], 1, width)
    session.read(slot)
    after = session.memory
    turn = WrittenTurn(
      question, jax.tree.map(lambda x: x[0], slot), before, after
    )
    support = _support(self._agent, self._params, sharding.shard_rows(turn))
    return after, jax.device_get(support)


class _Key(NamedTuple):
  """A key to ask for, and its value."""

  kind: str
  name: str
  value: str

  @classmethod
  def draw(cls, rng: random.Random, uuid_share: float) -> '_Key':
    kind = 'uuid' if rng.random() < uuid_share else 'number'
    return cls(kind, words.word_key(rng), words.draw(kind, rng))


@functools.partial(jax.jit, static_argnums=0)
def _least_log_prob(
  agent: AgentConfig,
  params: Params,
  question: Tokens,
  memory: Tokens,
  chunk: Tokens,
) -> jax.Array:
  """Log-prob of the least likely token of writing the memory again, [N]."""
  prompt = prompts_lib.memory_prompt(agent.prompts, question, memory, chunk)
  # Slots beyond the end hold 0, which is larger than any log-prob.
  return memory_rules.memory_log_probs(agent, params, prompt, memory).min(
    axis=1
  )


_support = jax.jit(memory_rules.support, static_argnums=0)
