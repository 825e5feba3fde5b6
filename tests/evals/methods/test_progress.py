"""The progress of a batch: what is saved, when, and the total time it took."""

import time

from memagent_jax.evals.methods.progress import Progress


def test_a_killed_batch_resumes_with_its_state_and_its_seconds(tmp_path):
  path = tmp_path / 'batch.json'
  killed = Progress(path, every_seconds=0.0)
  assert killed.state is None and not path.exists()
  time.sleep(0.3)
  killed.update(0.5, lambda: {'chunk': 3})
  # Lost in the kill, and done again.
  time.sleep(0.3)
  progress = Progress(path)
  assert progress.state == {'chunk': 3}
  assert 0.3 <= progress.seconds < 0.6
  time.sleep(0.1)
  assert 0.4 <= progress.seconds < 0.7
  progress.finish()
  assert not path.exists()
  assert Progress(path).state is None


def test_nothing_is_saved_or_reported_too_often(tmp_path):
  reported, saved = [], []
  progress = Progress(
    tmp_path / 'x.json', lambda share, _: reported.append(share), 0.2
  )
  state = lambda: saved.append(0)  # noqa: E731
  progress.update(0.1, state)
  assert not saved and not reported
  time.sleep(0.25)
  progress.update(0.2, state)
  progress.update(0.3, state)
  assert reported == [0.2] and len(saved) == 1
