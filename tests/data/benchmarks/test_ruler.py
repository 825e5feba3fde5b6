"""RULER's tasks: small samples, exact lengths, uniform depths, no surprises."""

import collections
import json
import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from memagent_jax.data.benchmarks import haystack, question_sets, ruler, words
from memagent_jax.data.encoders import ByteEncoder
from memagent_jax.data.examples import from_json, seeded
from tests.data.files import hotpotqa_files

ESSAY = haystack.Filler(
  ' '.join(
    f'On day {i} the ship went on. Nobody spoke of it.' for i in range(300)
  ),
  'log book',
)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sets')
  hotpotqa = hotpotqa_files.write(folder / 'hotpotqa.json', 12)
  squad = folder / 'squad.jsonl'
  squad.write_text(
    '\n'.join(
      json.dumps(
        {
          'id': f's{i}',
          'context': f'The river number {i} is {i} miles long and quite cold.',
          'question': f'How long is river {i}?',
          'answers': [{'text': f'{i} miles', 'answer_start': 20}],
        }
      )
      for i in range(12)
    ),
    encoding='utf-8',
  )
  return ruler.Corpus(
    ESSAY,
    question_sets.read_squad(squad),
    question_sets.read_hotpotqa(hotpotqa),
  )


def make(task, index, corpus, tokens=2048, encoder=None, **kwargs):
  return ruler.example(
    task,
    index,
    tokens=tokens,
    encoder=ByteEncoder() if encoder is None else encoder,
    encoder_name='bytes',
    corpus=corpus,
    **kwargs,
  )


class WordEncoder:
  """One token per word: the coarsest encoder possible."""

  def encode(self, text):
    return text.split()


@pytest.mark.parametrize('task', ruler.TASKS)
def test_every_answer_is_in_the_document_and_the_length_is_met(task, corpus):
  for index in range(4):
    for tokens in (2048, 8192):
      example = make(task, index, corpus, tokens, template_tokens=40)
      assert 0.98 * tokens <= example.tokens <= tokens
      assert all(answer in example.document for answer in example.answers)
      for start, end in example.gold_spans:
        assert 0 <= start < end <= len(example.document)
      assert from_json(example.to_json()) == example


@pytest.mark.parametrize('task', ruler.TASKS)
def test_the_length_is_that_of_document_question_template_and_answer(
  task, corpus
):
  """With a given budget for the answer, and with the published one."""
  published = {'vt': 30, 'cwe': 120, 'fwe': 50, 'qa_1': 32, 'qa_2': 32}
  for answer_tokens in (77, None):
    example = make(
      task, 0, corpus, template_tokens=300, answer_tokens=answer_tokens
    )
    texts = len(example.document.encode()) + len(example.question.encode())
    answer = answer_tokens or published.get(task, 128)
    assert example.tokens == texts + 300 + answer
    assert 0.98 * 2048 <= texts + 300 + answer <= 2048


@pytest.mark.parametrize('task', ruler.TASKS)
def test_samples_are_pure_functions_of_seed_and_index(task, corpus):
  first, again = make(task, 3, corpus), make(task, 3, corpus)
  assert first == again
  assert make(task, 4, corpus).document != first.document
  assert make(task, 3, corpus, seed=1).document != first.document


def test_a_needle_is_one_sentence_of_its_own(corpus):
  example = make('niah_single_1', 0, corpus, 600)
  ((start, end),) = example.gold_spans
  needle = example.document[start:end]
  key, value = re.fullmatch(
    r'One of the special magic numbers for ([a-z]+-[a-z]+) is: (\d{7})\.',
    needle,
  ).groups()
  assert example.answers == (value,)
  assert example.question == (
    f'What is the special magic number for {key} mentioned in the text?'
  )
  assert example.document[:start].endswith('. ')
  filler = example.document.replace(needle, '').replace('  ', ' ').split()
  assert set(filler) <= set(haystack.NOISE.split())
  assert (example.reward, example.metric) == ('boxed_em', 'ruler_all')


def test_needle_kinds(corpus):
  uuid = r'[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}'
  three = make('niah_single_3', 0, corpus)
  assert re.fullmatch(uuid, three.answers[0])
  key_three = make('niah_multikey_3', 0, corpus)
  assert re.search(f'uuid for {uuid} ', key_three.question)

  def needles(example):
    return re.findall(r'One of the special [^:]*: [^.]*\.', example.document)

  assert len(needles(three)) == 1
  assert len(needles(make('niah_multikey_1', 0, corpus))) == 4
  many = make('niah_multikey_2', 0, corpus)
  assert len(needles(many)) > 20
  # Between needles there are only a few words of noise, too few for a needle.
  rest = many.document
  for needle in needles(many):
    rest = rest.replace(needle, '')
  assert len(rest.split()) < 40
  keys = [re.search(r'for (\S+) is', n).group(1) for n in needles(many)]
  assert len(set(keys)) == len(keys)


def test_several_values_and_several_queries(corpus):
  values = make('niah_multivalue', 0, corpus)
  assert len(set(values.answers)) == 4 and len(values.gold_spans) == 4
  key = re.search('numbers for (.*) mentioned', values.question).group(1)
  assert values.document.count(f'for {key} is: ') == 4
  queries = make('niah_multiquery', 0, corpus)
  names = re.search('numbers for (.*) mentioned', queries.question).group(1)
  keys = names.replace(', and ', ', ').split(', ')
  found = [
    re.search(f'for {key} is: ([0-9]+)', queries.document).group(1)
    for key in keys
  ]
  assert tuple(found) == queries.answers
  assert queries.reward == 'boxed_all'


def test_variable_tracking_is_one_chain_in_order(corpus):
  example = make('vt', 0, corpus)
  statements = [example.document[a:b] for a, b in example.gold_spans]
  value = re.search(r'value (\d{5}) ', example.question).group(1)
  names = example.answers
  assert len(names) == 5
  assert statements[0] == f'VAR {names[0]} = {value}.'
  assert statements[1:] == [
    f'VAR {names[i]} = VAR {names[i - 1]}.' for i in range(1, 5)
  ]


@pytest.mark.parametrize(
  ('tokens', 'repeats'), [(2048, (10, 1)), (16384, (30, 3))]
)
def test_common_words_are_the_ten_most_common(corpus, tokens, repeats):
  example = make('cwe', 0, corpus, tokens)
  entries = re.findall(r'(\d+)\. ([a-z]+)', example.document)
  assert [int(number) for number, _ in entries] == [*range(1, len(entries) + 1)]
  counts = collections.Counter(word for _, word in entries)
  assert {w for w, n in counts.items() if n == repeats[0]} == set(
    example.answers
  )
  assert {n for w, n in counts.items() if w not in example.answers} == {
    repeats[1]
  }


def test_pseudo_words_come_where_the_dictionary_ends():
  chosen, source = words.plain_words(seeded('a'), 100)
  assert len(set(chosen)) == 100 and source == 'wonderwords'
  chosen, source = words.plain_words(seeded('a'), 12_000)
  known = {
    w for kind in ('noun', 'adjective', 'verb') for w in words.dictionary(kind)
  }
  made = 12_000 - len(known)
  assert len(set(chosen)) == 12_000
  assert source == f'wonderwords and {made} pseudo-words'
  assert len(set(chosen) - known) == made


def test_frequent_words_follow_zipf(corpus):
  example = make('fwe', 0, corpus, 16384)
  counts = collections.Counter(example.document.split())
  ranked = [word for word, _ in counts.most_common(5)]
  assert ranked[0] == '...'
  assert tuple(ranked[1:4]) == example.answers
  # The exponent is 2: rank 1 is four times as frequent as rank 2.
  assert counts[ranked[0]] == pytest.approx(4 * counts[ranked[1]], rel=0.02)
  assert counts[ranked[3]] > counts[ranked[4]]


def test_question_tasks_keep_the_gold_whole(corpus):
  one = make('qa_1', 0, corpus)
  ((start, end),) = one.gold_spans
  assert re.fullmatch(
    r'Document \d+:\nThe river number \d+ is \d+ miles long and quite cold\.',
    one.document[start:end],
  )
  assert 'each up to' in one.source
  two = make('qa_2', 0, corpus, 600)
  ((start, end),) = two.gold_spans
  assert two.document[start:end].endswith('It rained.')
  numbers = [int(n) for n in re.findall(r'Document (\d+):', two.document)]
  assert numbers == [*range(1, len(numbers) + 1)]
  assert (two.reward, two.metric) == ('boxed_em', 'ruler_part')


@pytest.mark.parametrize('task', ['niah_single_1', 'niah_single_2'])
def test_depths_are_uniform(task, corpus):
  # 1,000 samples, ten bins: chi-square below the 0.999 quantile (9 degrees).
  bins = [0] * 10
  for index in range(1000):
    example = make(task, index, corpus, 4096, encoder=ByteEncoder())
    ((start, end),) = example.gold_spans
    room = len(example.document) - (end - start)
    bins[min(9, int(10 * start / room))] += 1
  chi_square = sum((n - 100) ** 2 / 100 for n in bins)
  assert chi_square < 27.88


def test_a_target_without_room_is_an_error(corpus):
  with pytest.raises(ValueError, match='leave no room'):
    make('niah_single_1', 0, corpus, 200)


def test_what_is_missing_or_unknown_is_named(corpus):
  with pytest.raises(ValueError, match='choose from niah_single_1'):
    make('niah', 0, corpus)
  with pytest.raises(ValueError, match='niah_single_2 needs essay'):
    make('niah_single_2', 0, ruler.Corpus())
  with pytest.raises(ValueError, match='is empty'):
    haystack.Filler(' ', 'nothing')


def test_essays_of_a_folder_are_joined_by_name(tmp_path):
  (tmp_path / 'b.md').write_text('last  words\n', encoding='utf-8')
  (tmp_path / 'a.txt').write_text('First\n\nwords.', encoding='utf-8')
  (tmp_path / 'c.jpg').touch()
  filler = haystack.essays(tmp_path)
  assert filler == haystack.Filler('First words. last words', tmp_path.name)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'no \.txt'):
    haystack.essays(tmp_path / 'empty')
  with pytest.raises(ValueError, match='no such file'):
    haystack.essays(tmp_path / 'absent')


@given(st.integers(0, 40_000), st.integers(0, 99))
def test_filler_of_any_size_is_whole_words(size, seed):
  text, source = ESSAY.cut(size, seeded(seed))
  assert size - 20 <= len(text) <= size
  assert set(text.split()) <= set(ESSAY.text.split())
  assert ('times' in source) == (size > len(ESSAY.text))


@pytest.mark.slow
@pytest.mark.parametrize('task', ruler.TASKS)
def test_long_samples_of_coarse_tokens(task, corpus):
  example = make(task, 0, corpus, 131_072, encoder=WordEncoder())
  assert 0.98 * 131_072 <= example.tokens <= 131_072
