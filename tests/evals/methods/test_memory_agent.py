"""The agent as a method: the same readings as the Reader's, and resuming."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from memagent_jax import tokens as tokens_lib
from memagent_jax.agent.config import make_agent
from memagent_jax.agent.reader import Reader
from memagent_jax.agent.session import Session
from memagent_jax.agent.turns import Turn
from memagent_jax.evals.methods.chunked import DocumentReading, ReadingState
from memagent_jax.evals.methods.memory_agent import MemAgent
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.models import flops
from tests import tiny_runs

METHOD = MemAgent(
  dataclasses.replace(tiny_runs.READING, temperature=0.0, chunk_cut='sentence'),
  window_chunks=2,
)
CHUNKS = (5, 1, 8, 0)


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def examples():
  made = [tiny_runs.document(i, chunks or 1) for i, chunks in enumerate(CHUNKS)]
  made[3] = dataclasses.replace(made[3], document='')
  return made


@pytest.mark.slow
def test_documents_side_by_side_are_read_as_one_alone(model):
  answered = METHOD.answer(model, examples(), Progress())
  for example, result in zip(examples(), answered.results, strict=True):
    reader = Reader(model, example.question, METHOD.reading)
    turns = reader.feed(example.document) + reader.finish()
    (answer,) = reader.answer()
    assert (result.answer, result.finish_reason) == (
      answer.answer,
      answer.finish_reason,
    )
    assert result.own_tokens == result.read_tokens == reader.tokens_read
    for reason in ('eos', 'length'):
      mine = [t for t in turns if t.finish_reason == reason]
      assert result.turns[reason] == len(mine)
    memories = ['none', *(t.memory for t in turns)]
    changed = [
      (t.chunk_index, t.chunk, t.memory)
      for t, before in zip(turns, memories, strict=False)
      if t.memory != before
    ]
    assert [
      (line['chunk_index'], line['chunk'], line['memory'])
      for line in result.trace
    ] == changed


@pytest.mark.slow
def test_flops_are_those_of_the_turns(model):
  (result,) = METHOD.answer(model, examples()[1:2], Progress()).results
  reader = Reader(model, 'Who 1?', METHOD.reading)
  (turn,) = reader.feed(examples()[1].document) + reader.finish()
  (answer,) = reader.answer()
  agent = make_agent(model, METHOD.reading)
  encode = model.tokenizer.encode
  shared = agent.prompts.memory_turn_tokens + len(encode('Who 1?'))
  first = shared + len(encode('none')) + turn.chunk_tokens
  last = (
    agent.prompts.answer_turn_tokens
    + len(encode('Who 1?'))
    + len(turn.memory_ids)
  )
  sampled = len(answer.answer_ids) + (answer.finish_reason == 'eos')
  assert result.flops == flops.turn_flops(
    model.config, first, turn.response_tokens
  ) + flops.turn_flops(model.config, last, sampled)


@pytest.mark.slow
def test_a_killed_reading_goes_on_where_it_was_saved(model, tmp_path):
  expected = METHOD.answer(model, examples(), Progress()).results
  path, calls = tmp_path / 'progress.json', []

  def killed(turn):
    calls.append(turn)
    if len(calls) == 3:
      raise KeyboardInterrupt

  method = dataclasses.replace(METHOD, engine=tiny_runs.Hooked(killed))
  with pytest.raises(KeyboardInterrupt):
    method.answer(model, examples(), Progress(path, every_seconds=0.0))
  progress = Progress(path)
  assert progress.state['session']['turns_read'] == 4
  assert method.answer(model, examples(), progress).results == expected
  # Chunks 0 to 3 were not read again.
  assert calls[:3] == [0, 2, 4] and calls[3] == 4


class WatchedSession(Session):
  """Records the memories before and after every window."""

  def __init__(self, *args, windows, **kwargs):
    super().__init__(*args, **kwargs)
    self._windows_seen = windows

  def read(self, chunks):
    found = tokens_lib.lists(self.memory)
    turns = super().read(chunks)
    self._windows_seen.append((found, tokens_lib.lists(self.memory)))
    return turns


@dataclasses.dataclass(frozen=True)
class WatchedWindows:
  """An engine whose sessions record their memories."""

  windows: list = dataclasses.field(default_factory=list, compare=False)

  def open(self, *args, **kwargs):
    return WatchedSession(*args, windows=self.windows, **kwargs)


def test_memories_go_from_window_to_window_as_ids(model, tmp_path):
  """The model writes `h`, `e`, `l`, `l`, which the tokenizer would merge.

  Memories from saved progress stay ids, too.
  """
  encode, decode = model.tokenizer.encode, model.tokenizer.decode
  letters = [encode(c)[0] for c in 'hel']
  embedding = np.array(model.params['embedding'])
  embedding[np.setdiff1d(np.arange(len(embedding)), letters)] *= 0.1
  embedding[letters] *= 3.0
  writer = dataclasses.replace(
    model, params={**model.params, 'embedding': jnp.asarray(embedding)}
  )
  engine = WatchedWindows()
  method = dataclasses.replace(
    METHOD,
    reading=dataclasses.replace(METHOD.reading, temperature=1.0),
    engine=engine,
    window_chunks=1,
  )
  path = tmp_path / 'progress.json'
  method.answer(writer, examples()[:3], Progress(path, every_seconds=0.0))
  windows = engine.windows
  assert len(windows) >= max(CHUNKS)
  for (_, left), (found, _) in itertools.pairwise(windows):
    assert found == left
  written = [ids for _, left in windows for ids in left]
  assert sum(encode(decode(ids)) != ids for ids in written) > 4
  assert Progress(path).state['session']['memory_ids'] == windows[-1][1]


def test_health_says_what_the_memories_did(model):
  """Hand-made turns: the answer comes, goes, and comes again."""
  encode = model.tokenizer.encode
  example = dataclasses.replace(tiny_runs.document(0, 6), answers=('Z', 'Q'))
  document = DocumentReading(
    model.tokenizer, METHOD.reading, example, ReadingState(encode('none'))
  )
  texts = ['none', 'a Q', 'a Q', 'abcd', 'Z', '']
  finish = ['eos', 'eos', 'eos', 'length', 'eos', 'eos']
  for c, (text, reason) in enumerate(zip(texts, finish, strict=True)):
    document.add(
      memory_ids=encode(text),
      chunk_tokens=5,
      finish=reason,
      outcome='written',
      flops=1.0,
      record=lambda c=c, text=text, reason=reason: Turn(
        0, c, 'abc', 5, text, encode(text), 3, 0, reason, 'written'
      ),
    )
  result = document.result('', 'eos', 2.0)
  lengths = [len(encode(text)) for text in texts]
  assert result.health == {
    'saturated': 1 / 6,
    'empty': 1 / 6,
    'unchanged': 2 / 6,
    'constant': False,
    **{f'length_p{q}': float(np.percentile(lengths, q)) for q in (10, 50, 90)},
    'evidence_enters_turn': 1,
    'evidence_leaves_turn': 3,
    'evidence_kept': False,
  }
  assert [line['chunk_index'] for line in result.trace] == [1, 3, 4, 5]
  assert result.turns == {'eos': 5, 'length': 1}
  assert result.own_tokens == 30
  assert result.flops == 8.0


@pytest.mark.slow
def test_chunks_of_short_documents_are_timed_but_for_the_first_call(model):
  reading = dataclasses.replace(METHOD.reading, seed=77)
  method = dataclasses.replace(METHOD, reading=reading, window_chunks=4)
  document = [tiny_runs.document(0, 2)]
  assert list(method.answer(model, document, Progress()).chunk_seconds) == []
  (seconds,) = method.answer(model, document, Progress()).chunk_seconds
  assert 0 < seconds < 5


def test_a_question_over_its_cap_names_the_example(model):
  example = dataclasses.replace(tiny_runs.document(0, 1), question='Who? ' * 9)
  with pytest.raises(ValueError, match=r'^example Who 0\?: .* is 12'):
    METHOD.answer(model, [example], Progress())
