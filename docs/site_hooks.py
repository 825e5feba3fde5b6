"""What the site needs that GitHub does not: pages from outside docs/, and links.

README.md is the site's front page; a few more pages of the repository are pages of the
site. Links between all of them are written as GitHub resolves them.
"""

import posixpath
import re

from mkdocs.structure.files import File

# Pages of the repository by their place in the site.
PAGES = {
  'README.md': 'index.md',
  'experiments/RUNS.md': 'runs.md',
  'experiments/launch/README.md': 'launch.md',
  'gin_configs/README.md': 'gin-configs.md',
  'memagent_jax/assets/texts/SOURCE.md': 'texts.md',
}
_SOURCES = {page: source for source, page in PAGES.items()}
# An interval stays on one line: `100 [97.1, 100]`.
_INTERVAL = re.compile(r'(\d) (\[[-+]?[\d.]+), ([-+]?[\d.]+\])')
_LINK = re.compile(r'(!?\[[^\]]*\]\()([^)\s]+)(\))')


def on_files(files, config):
  """Adds the pages that lie outside of docs/."""
  for source, page in PAGES.items():
    with open(source, encoding='utf-8') as file:
      files.append(File.generated(config, page, content=file.read()))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links between files of the repository into links of the site."""
  del config, files
  here = page.file.src_uri
  folder = posixpath.dirname(_SOURCES.get(here, f'docs/{here}'))

  def moved(match):
    before, link, after = match.groups()
    path, anchor, fragment = link.partition('#')
    if '://' in link or not path:
      return match[0]
    target = posixpath.normpath(posixpath.join(folder, path))
    target = PAGES.get(target, target.removeprefix('docs/'))
    relative = posixpath.relpath(target, posixpath.dirname(here) or '.')
    return f'{before}{relative}{anchor}{fragment}{after}'

  return _LINK.sub(moved, _INTERVAL.sub('\\1\u00a0\\2,\u00a0\\3', markdown))
