"""Local files of the benchmarks: a given path, the cache, or the network.

obtain(name, path) -> local files, their SHA-256 checked -> data/benchmarks
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
from pathlib import Path
import urllib.error
import urllib.request

from absl import logging


@dataclasses.dataclass(frozen=True)
class File:
  """One file of a source, pinned by its SHA-256."""

  name: str
  url: str
  sha256: str


_HUB = 'https://huggingface.co/datasets'
_SQUAD = 'https://rajpurkar.github.io/SQuAD-explorer/dataset'
_HOTPOTQA = (
  f'{_HUB}/hotpotqa/hotpot_qa/resolve/'
  '1908d6afbbead072334abe2965f91bd2709910ab/distractor'
)
# HotpotQA's own host is gone: the dev set is the original file, bit for bit, from
# a mirror; the training set is its authors' conversion to parquet. CC BY-SA 4.0.
SOURCES: Mapping[str, tuple[File, ...]] = {
  'hotpotqa_dev': (
    File(
      'hotpot_dev_distractor_v1.json',
      f'{_HUB}/RAGLAB/data/resolve/c33b09b7fa5099b89830e84f9bdff78329268d9b/'
      'eval_datasets/HotPotQA/hotpot_dev_distractor_v1.json',
      '4e9ecb5c8d3b719f624d66b60f8d56bf227f03914f5f0753d6fa1b359d7104ea',
    ),
  ),
  'hotpotqa_train': (
    File(
      'train-00000-of-00002.parquet',
      f'{_HOTPOTQA}/train-00000-of-00002.parquet',
      '76d3bb3048a7cc73c1958107c0c5872a00d7e7d00c105b81e92f6769e7822e68',
    ),
    File(
      'train-00001-of-00002.parquet',
      f'{_HOTPOTQA}/train-00001-of-00002.parquet',
      '713661628434fbb19fff7392e2e321e4ed107e3c7c7784d0690946e5f722763f',
    ),
  ),
  'squad_dev': (
    File(
      'dev-v1.1.json',
      f'{_SQUAD}/dev-v1.1.json',
      '95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9',
    ),
  ),
  # The set RULER's qa_1 is made from.
  'squad2_dev': (
    File(
      'dev-v2.0.json',
      f'{_SQUAD}/dev-v2.0.json',
      '80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8',
    ),
  ),
}
_TIMEOUT_SECONDS = 30
_PIECE_BYTES = 1 << 20


def obtain(
  name: str, path: str | os.PathLike | None, cache: str | os.PathLike
) -> tuple[Path, ...]:
  """Local files of a source.

  A given path is taken as it is: it may hold a part of the set. Files from the
  cache or the network must have their pinned SHA-256.

  Args:
    name: one of SOURCES.
    path: the user's own file; None: the cache or the network.
    cache: folder for downloads, with a subfolder named after each source.

  Returns:
    paths of the files, in the order of the source.

  Raises:
    ValueError: an unknown source, a missing path, a wrong hash, or no network,
      in which case it says where to put which file.
  """
  if path is not None:
    if not Path(path).is_file():
      raise ValueError(f'{name}: {path}: no such file.')
    return (Path(path),)
  if name not in SOURCES:
    raise ValueError(
      f'source {name!r} is unknown; choose from {", ".join(SOURCES)}.'
    )
  folder = Path(cache) / name
  return tuple(_obtain_file(file, folder) for file in SOURCES[name])


def _obtain_file(file: File, folder: Path) -> Path:
  target = folder / file.name
  if not target.is_file():
    _download(file, target)
  digest = sha256(target)
  if digest != file.sha256:
    raise ValueError(
      f'{target}: SHA-256 is {digest}; expected {file.sha256}. Remove the file '
      f'to fetch it again from {file.url}.'
    )
  return target


def _download(file: File, target: Path) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(f'{target.name}.{os.getpid()}.partial')
  logging.info('downloading %s', file.url)
  try:
    with (
      urllib.request.urlopen(file.url, timeout=_TIMEOUT_SECONDS) as response,
      partial.open('wb') as out,
    ):
      while piece := response.read(_PIECE_BYTES):
        out.write(piece)
    os.replace(partial, target)
  except (urllib.error.URLError, OSError) as e:
    partial.unlink(missing_ok=True)
    raise ValueError(
      f'{file.url} cannot be fetched ({e}). Put the file at {target}, or give '
      'a path to your own copy.'
    ) from None


def sha256(path: Path) -> str:
  """SHA-256 of a file's bytes, in hex."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
