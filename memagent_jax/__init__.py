"""A language model that reads documents of any length with a bounded memory.

`load_model` and `Reader` are the Python API; they are loaded on first use, so
that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from memagent_jax.agent.config import ReadingConfig
  from memagent_jax.agent.reader import Answer, Reader
  from memagent_jax.agent.turns import Turn
  from memagent_jax.models.weights.pretrained import load_model

# Defined only here: setup.py and `memagent --version` read it.
__version__ = '0.1.0'

_EXPORTS = {
  'Answer': 'agent.reader',
  'Reader': 'agent.reader',
  'ReadingConfig': 'agent.config',
  'Turn': 'agent.turns',
  'load_model': 'models.weights.pretrained',
}
__all__ = ['Answer', 'Reader', 'ReadingConfig', 'Turn', 'load_model']


def __getattr__(name: str) -> Any:
  if name not in _EXPORTS:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_EXPORTS[name]}')
  return getattr(module, name)
