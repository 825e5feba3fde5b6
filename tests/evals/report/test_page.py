"""The page of a grid, or of a part: complete, escaped, self-contained."""

import csv
import html.parser
import shutil
import subprocess

import pytest

from memagent_jax.evals import records
from memagent_jax.evals.report import page
from memagent_jax.io import jsonl
from tests.evals.report.fake_records import record, timing
from tests.evals.report.fake_records import records as fake_records


@pytest.fixture
def workdir(tmp_path):
  """Two models and a baseline that lacks a size; one model is sampled."""
  given = [
    *fake_records('before <1>', 1000, [1, 0, 1, 0]),
    *fake_records('before <1>', 4000, [0, 0, 0, 1]),
    *fake_records('after', 1000, [1, 1, 1, 1]),
    *fake_records('after', 4000, [1, 1, 1, 0], trace='traces/x.jsonl'),
    *fake_records('after', 1000, [1, 1], method='full', health={}, turns={}),
    record('after', 1000, 9, sampling='temperature 0.7, top-p 0.95', score=0.5),
  ]
  jsonl.append(tmp_path / records.RECORDS, given)
  change = {'chunk_index': 3, 'chunk': 'It is <4>.', 'chunk_tokens': 5}
  change |= {'memory': 'is 4', 'memory_ids': [1, 2], 'finish_reason': 'eos'}
  caps = {'chunk_tokens': 8, 'memory_tokens': 4}
  (tmp_path / 'traces').mkdir()
  jsonl.append(
    tmp_path / 'traces' / 'x.jsonl',
    [{'question': 'What?', 'answer': 'four', 'caps': caps}, change],
  )
  jsonl.append(
    tmp_path / 'timings.jsonl',
    [timing(m, s) for m in ('before <1>', 'after') for s in (1000, 4000)],
  )
  not_run = {'model': 'after', 'method': 'full', 'task': 'niah', 'size': 4000}
  not_run |= {'seed': 0, 'tokens': 4000, 'flops': 5e12}
  jsonl.append(tmp_path / records.NOT_RUN, [not_run])
  return tmp_path


def written(workdir, **changes):
  path = page.write(workdir, title='a & b', **changes)
  return path, path.read_text(encoding='utf-8')


def test_the_page_has_it_all_inside(workdir):
  path, text = written(workdir, trained_tokens=2000)
  for expected in (
    *('<h1>a &amp; b</h1>', 'before &lt;1&gt;', 'Greedy', 'Memory health'),
    *('Temperature 0.7, top-p 0.95', 'Wrong answers', 'From short to long'),
    'Linear attention and recurrent models',
  ):
    assert expected in text
  assert 'before <1>' not in text
  assert 'src=' not in text and 'url(http' not in text
  folder = path.parent
  assert '<a href="memories_0.html">' in text
  memories = (folder / 'memories_0.html').read_text(encoding='utf-8')
  assert 'Chunk 4' in memories and 'It is &lt;<mark>4</mark>&gt;.' in memories
  assert 'What?' in memories and 'memory of 4 tokens' in memories
  for name in ('accuracy', 'cost', 'chunk_cost', 'depth_0'):
    assert (folder / f'{name}.png').read_bytes().startswith(b'\x89PNG')
    assert (folder / f'{name}.svg').exists()
  # Ids of several pictures on one page are all different.
  ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
  assert len(ids) == len(set(ids)) > 50


@pytest.mark.slow
def test_every_tag_is_closed(workdir):
  _, text = written(workdir)
  open_tags = []

  class Parser(html.parser.HTMLParser):
    def handle_starttag(self, tag, attributes):
      if tag not in ('meta', 'br'):
        open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
      pass

    def handle_endtag(self, tag):
      assert open_tags.pop() == tag

  Parser().feed(text)
  assert open_tags == []


def test_tables_and_points_are_files(workdir):
  path, _ = written(workdir, axis='bytes')
  tables = (path.parent / 'tables.md').read_text(encoding='utf-8')
  assert '| bytes | own tokens | chunks | n |' in tables
  assert '75.0 [30.1, 95.4]' in tables
  with (path.parent / 'points.csv').open(encoding='utf-8') as file:
    points = list(csv.DictReader(file))
  (point,) = (
    p
    for p in points
    if (p['model'], p['method'], p['size'], p['task'])
    == ('after', 'MemAgent', '4000', 'niah')
  )
  assert (point['count'], point['score']) == ('4', '0.75')


def test_a_series_that_was_not_run_to_the_end_says_so(workdir):
  path, _ = written(workdir)
  svg = (path.parent / 'accuracy.svg').read_text(encoding='utf-8')
  # Text is drawn as glyphs; a comment holds the text.
  assert 'not run' in svg
  assert 'hollow' in (path.parent / 'cost.svg').read_text(encoding='utf-8')
  tables = (path.parent / 'tables.md').read_text(encoding='utf-8')
  assert '| after, full | 4,000 |  | 5 | not run |' in tables


def test_one_record_is_a_report(tmp_path):
  jsonl.append(tmp_path / records.RECORDS, [record('a', 100, 0, depth=None)])
  _, text = written(tmp_path)
  assert '100.0 [20.7, 100.0]' in text and '0 of 1 records' in text


@pytest.mark.slow
def test_a_likelihood_is_a_table(workdir):
  line = {'model': 'after', 'chunks': 90, 'with_memory': -2.5}
  line |= {'without_memory': -2.75, 'difference': [0.25, 0.2, 0.3]}
  jsonl.append(workdir / records.LIKELIHOOD, [line])
  _, text = written(workdir)
  assert '-2.5000' in text and '+0.2500 [+0.2000, +0.3000]' in text


@pytest.mark.slow
def test_two_runs_are_compared_on_their_common_examples(
  workdir, tmp_path_factory
):
  other = tmp_path_factory.mktemp('other')
  jsonl.append(
    other / records.RECORDS, fake_records('after', 4000, [1, 0, 0, 0])
  )
  _, text = written(workdir, compared=other)
  # 1 1 1 0 against 1 0 0 0.
  assert 'other - this' in text and '-50.0 [' in text


@pytest.mark.slow
def test_runs_without_a_common_example_are_not_compared(
  workdir, tmp_path_factory
):
  other = tmp_path_factory.mktemp('other')
  with pytest.raises(ValueError, match='no records; expected what'):
    written(workdir, compared=other)
  sampled = fake_records(
    'after', 4000, [1, 1], sampling='temperature 1, top-p 1'
  )
  jsonl.append(other / records.RECORDS, sampled)
  with pytest.raises(ValueError, match='no example in common'):
    written(workdir, compared=other)


def test_lengths_of_fewer_tasks_are_named(tmp_path):
  given = [*fake_records('a', 100, [1, 1]), *fake_records('a', 900, [1, 1])]
  given += fake_records('a', 100, [0, 0], task='vt')
  jsonl.append(tmp_path / records.RECORDS, given)
  _, text = written(tmp_path)
  assert 'At 900 only niah.' in text


def test_many_wrong_answers_of_a_series_do_not_hide_those_of_another(tmp_path):
  many = fake_records('poor', 4000, [0] * 200)
  jsonl.append(
    tmp_path / records.RECORDS, many + fake_records('good', 1000, [0, 1, 0])
  )
  _, text = written(tmp_path)
  _, text = text.split('<h2>Wrong answers</h2>')
  assert '202 of 203 records' in text
  assert text.count('<td>good</td>') == 2
  assert text.count('<td>poor</td>') == 10
  # The longest first.
  assert '<td>4,199</td>' in text and '<td>4,189</td>' not in text


def test_memories_that_are_cut_or_never_change_set_off_an_alarm(tmp_path):
  cut = fake_records('cut', 100, [1, 1])
  still = fake_records('still', 100, [1, 1])
  for cut_record, still_record in zip(cut, still, strict=True):
    cut_record['health'] |= {'saturated': 0.9}
    still_record['health'] |= {'constant': True}
  jsonl.append(
    tmp_path / records.RECORDS, [*cut, *still, *fake_records('a', 9, [1])]
  )
  _, text = written(tmp_path)
  assert 'cut at 101: 90% of the memories were cut at their cap' in text
  assert 'still at 101: 100% of the trajectories never change' in text
  assert 'a at 9:' not in text


@pytest.mark.slow
def test_answers_are_scored_anew(workdir, tmp_path_factory):
  other = tmp_path_factory.mktemp('other')
  answers = ('\\boxed{4}', 'four', '4, or so', '\\boxed{4}')
  given = [record('after', 4000, i, answer=a) for i, a in enumerate(answers)]
  given[3]['error'] = 'it ended'
  jsonl.append(other / records.RECORDS, given)
  path, text = written(other, scorer='boxed_em')
  assert path.parent.name == 'report_boxed_em'
  assert 'Scored by boxed_em.' in text and '25.0 [' in text
  # The answers of `workdir` have no box: all four are wrong.
  _, text = written(other, scorer='boxed_em', compared=workdir)
  assert '-25.0 [' in text
  with pytest.raises(ValueError, match='is unknown; expected one of boxed_em'):
    written(other, scorer='x')


def test_no_records_are_an_error(tmp_path):
  with pytest.raises(ValueError, match='no records; expected what'):
    written(tmp_path)


@pytest.mark.skipif(
  not shutil.which('chromium'), reason='Chromium is not installed'
)
@pytest.mark.slow
def test_a_browser_shows_it_without_complaints(workdir, tmp_path):
  path, _ = written(workdir)
  picture = tmp_path / 'page.png'
  done = subprocess.run(
    [
      *('chromium', '--headless', '--no-sandbox', '--disable-gpu'),
      *('--enable-logging=stderr', '--window-size=1100,4000'),
      *(f'--screenshot={picture}', path.as_uri()),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  assert picture.stat().st_size > 20_000
  assert 'CONSOLE' not in done.stderr
