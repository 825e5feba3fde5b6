"""The agent over HTTP, against servers that work, fail, hang and babble."""

import contextlib
import dataclasses
import http.server
import json
import re
import threading
import time

import pytest

from memagent_jax.agent.config import ReadingConfig
from memagent_jax.agent.memory_rules import Guarded
from memagent_jax.agent.prompts import Template
from memagent_jax.evals.methods.progress import Progress
from memagent_jax.evals.methods.remote import Remote
from tests import tiny_runs

TEMPLATE = Template(
  '{question}|{memory}|{chunk}', '{question}|{memory}', 'none'
)
READING = ReadingConfig(
  chunk_tokens=16,
  memory_tokens=6,
  answer_tokens=5,
  chunk_cut='token',
  template=TEMPLATE,
  seed=3,
)


@pytest.fixture(scope='module')
def model(tiny_tokenizer):
  return tiny_runs.model(tiny_tokenizer)


def completion(text, finish='stop'):
  return {
    'id': 'x',
    'object': 'chat.completion',
    'created': 1,
    'model': 'm',
    'choices': [
      {
        'index': 0,
        'finish_reason': finish,
        'message': {'role': 'assistant', 'content': text},
      }
    ],
    'usage': {'prompt_tokens': 30, 'completion_tokens': 4, 'total_tokens': 34},
  }


@contextlib.contextmanager
def server(reply):
  """Answers request bodies with (status, body); gives the method and requests."""
  seen = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      size = int(self.headers['Content-Length'])
      request = json.loads(self.rfile.read(size))
      seen.append(request)
      status, body = reply(request, len(seen))
      if not isinstance(body, (str, bytes)):
        body = json.dumps(body)
      self.send_response(status)
      self.send_header('Content-Type', 'application/json')
      self.end_headers()
      with contextlib.suppress(BrokenPipeError):
        self.wfile.write(body if isinstance(body, bytes) else body.encode())

    def log_message(self, *args):
      pass

  web = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=web.serve_forever, daemon=True).start()
  method = Remote(
    base_url=f'http://127.0.0.1:{web.server_port}/v1',
    served_model='m',
    reading=READING,
    max_retries=1,
    timeout_seconds=5.0,
  )
  try:
    yield method, seen
  finally:
    web.shutdown()
    web.server_close()


def prompt_of(request):
  return request['messages'][0]['content']


def reader(request, number):
  """Appends the last letter of the chunk to the memory."""
  del number
  parts = prompt_of(request).split('|')
  if len(parts) == 2:
    return 200, completion(f'I have {parts[1]}')
  memory = parts[1].removeprefix('none')
  finish = 'length' if len(memory) > 1 else 'stop'
  return 200, completion(f'<think>hm</think>{memory}{parts[2][-1]}', finish)


def example(number, text):
  return dataclasses.replace(tiny_runs.document(number, 1), document=text)


def test_documents_are_read_turn_by_turn(model):
  texts = ['a' * 15 + 'b' + 'c' * 15 + 'd' + 'e' * 4, 'x' * 3]
  with server(reader) as (method, seen):
    answered = method.answer(
      model, [example(i, text) for i, text in enumerate(texts)], Progress()
    )
  first, second = answered.results
  assert (first.answer, second.answer) == ('I have bde', 'I have x')
  assert first.turns == {'eos': 2, 'length': 1}
  assert first.own_tokens == 36 and first.flops > 0
  assert [change['memory'] for change in first.trace] == ['b', 'bd', 'bde']
  assert len(answered.chunk_seconds) == 4
  chunk = next(r for r in seen if prompt_of(r) == 'Who 0?|b|' + texts[0][16:32])
  assert (chunk['max_tokens'], chunk['temperature'], chunk['seed']) == (
    6,
    0.0,
    3,
  )
  (last,) = (r for r in seen if prompt_of(r) == 'Who 0?|bde')
  assert last['max_tokens'] == 5 and last['model'] == 'm'


def test_fields_in_a_text_are_text(model):
  with server(reader) as (method, seen):
    method.answer(model, [example(0, '{memory}{chunk}')], Progress())
  assert prompt_of(seen[0]) == 'Who 0?|none|{memory}{chunk}'


def test_a_busy_server_is_asked_again(model):
  def busy(request, number):
    if number == 1:
      return 500, {'error': {'message': 'busy'}}
    return reader(request, number)

  with server(busy) as (method, seen):
    (result,) = method.answer(model, [example(0, 'abc')], Progress()).results
  assert (result.answer, result.error, len(seen)) == ('I have c', '', 3)


@pytest.mark.parametrize(
  ('body', 'error'),
  [
    ((500, {'error': {'message': 'broken'}}), 'InternalServerError: .*broken'),
    ((200, 'not { JSON'), 'JSONDecodeError|APIResponseValidation|_NoAnswer'),
    ((200, {'choices': []}), '_NoAnswerError: .*in the reply'),
    ((200, {'id': 'x'}), '_NoAnswerError: .*in the reply'),
    ((200, completion([{'text': 'a'}])), '_NoAnswerError: .*in the reply'),
    ((200, completion(4)), '_NoAnswerError: .*in the reply'),
    ((200, completion('a') | {'usage': {}}), '_NoAnswerError: .*in the reply'),
    ((200, completion('a') | {'usage': [1]}), '_NoAnswerError: .*in the reply'),
    ((200, b'{"id": "\xff"}'), 'UnicodeDecodeError'),
    (
      (404, {'error': {'message': 'no model m'}}),
      'NotFoundError: .*no model m',
    ),
  ],
)
def test_a_reply_that_is_none_fails_its_row_alone(model, body, error):
  def half(request, number):
    if prompt_of(request).startswith('Who 1?'):
      return body
    return reader(request, number)

  with server(half) as (method, _):
    good, bad = method.answer(
      model, [example(0, 'abc'), example(1, 'abc')], Progress()
    ).results
  assert (good.answer, good.error) == ('I have c', '')
  assert (bad.answer, bad.finish_reason) == ('', 'error')
  assert re.search(error, bad.error), bad.error


def test_a_server_that_hangs_is_given_up(model):
  def hang(request, number):
    time.sleep(1.0)
    return reader(request, number)

  with server(hang) as (method, seen):
    method = dataclasses.replace(method, timeout_seconds=0.2)
    (result,) = method.answer(model, [example(0, 'abc')], Progress()).results
  assert 'APITimeoutError' in result.error and len(seen) == 2


def test_no_server_is_a_failed_row(model):
  method = Remote(
    base_url='http://127.0.0.1:9',
    served_model='m',
    reading=READING,
    max_retries=0,
  )
  (result,) = method.answer(model, [example(0, 'abc')], Progress()).results
  assert 'APIConnectionError' in result.error


def test_no_more_documents_at_a_time_than_asked_for(model):
  now, most = [0], [0]
  lock = threading.Lock()

  def slow(request, number):
    with lock:
      now[0] += 1
      most[0] = max(most[0], now[0])
    time.sleep(0.05)
    with lock:
      now[0] -= 1
    return reader(request, number)

  with server(slow) as (method, _):
    method = dataclasses.replace(method, concurrency=2)
    method.answer(model, [example(i, 'abc') for i in range(6)], Progress())
  assert most[0] == 2


def test_a_killed_reading_goes_on(model, tmp_path):
  path = tmp_path / 'progress.json'
  text = 'a' * 15 + 'b' + 'c' * 15 + 'd' + 'e' * 4

  def dying(request, number):
    # The third chunk never gets a reply.
    if number >= 3:
      return 404, {'error': {'message': 'gone'}}
    return reader(request, number)

  with server(dying) as (method, _):
    progress = Progress(path, every_seconds=0.0)
    (result,) = method.answer(model, [example(0, text)], progress).results
  assert 'gone' in result.error
  with server(reader) as (method, seen):
    progress = Progress(path)
    (result,) = method.answer(model, [example(0, text)], progress).results
  assert result.answer == 'I have bde'
  assert [prompt_of(r) for r in seen] == ['Who 0?|bd|eeee', 'Who 0?|bde']


def test_settings_that_make_no_sense_are_refused():
  with pytest.raises(ValueError, match='concurrency is 0'):
    Remote(base_url='http://x', served_model='m', concurrency=0)
  gated = ReadingConfig(rule=Guarded(1e5))
  with pytest.raises(ValueError, match='no probabilities'):
    Remote(base_url='http://x', served_model='m', reading=gated)
