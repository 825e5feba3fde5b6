"""SHA-256 of every file in a directory, written last and checked before use.

`sha256sum -c SHA256SUMS` checks the same by hand. Directories are local or gs://.
"""

from collections.abc import Mapping
import concurrent.futures
import hashlib

from etils import epath

NAME = 'SHA256SUMS'
_HASH_THREADS = 4
_READ_BYTES = 1 << 20


def write(directory: epath.Path) -> None:
  """Writes the manifest of all files in the directory, all at once."""
  sums = _digests(_files(directory))
  text = ''.join(f'{digest}  {name}\n' for name, digest in sums.items())
  partial = directory / f'{NAME}.partial'
  partial.write_text(text)
  partial.replace(directory / NAME)


def first_difference(directory: epath.Path) -> str | None:
  """How a directory first differs from its manifest; None if it does not."""
  manifest = directory / NAME
  if not manifest.exists():
    return f'{NAME} is missing'
  # A damaged manifest need not be text and may have lost lines: names are
  # compared before any file is opened.
  text = manifest.read_bytes().decode(errors='replace')
  listed = {}
  for line in text.splitlines():
    digest, _, name = line.partition('  ')
    listed[name] = digest
  files = _files(directory)
  for name in sorted(listed.keys() | files.keys()):
    if name not in files:
      return f'{name} is missing'
    if name not in listed:
      return f'{name} is not listed in {NAME}'
  for name, digest in _digests(files).items():
    if digest != listed[name]:
      return f'{name} has other bytes than were written'
  return None


def _files(directory: epath.Path) -> dict[str, epath.Path]:
  """The files of a directory by relative name, without the manifest."""
  files = {}
  for root, _, names in directory.walk(on_error=_raise):
    for name in names:
      path = root / name
      files[path.relative_to(directory).as_posix()] = path
  files.pop(NAME, None)
  return dict(sorted(files.items()))


def _raise(error: OSError) -> None:
  raise error


def _digests(files: Mapping[str, epath.Path]) -> dict[str, str]:
  with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def _digest(path: epath.Path) -> str:
  digest = hashlib.sha256()
  with path.open('rb') as stream:
    while block := stream.read(_READ_BYTES):
      digest.update(block)
  return digest.hexdigest()
