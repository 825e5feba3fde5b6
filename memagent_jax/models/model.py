"""`Model`: a network together with all that reading with it needs."""

import dataclasses

from memagent_jax.models.configs import ModelConfig
from memagent_jax.models.tokenizer import Tokenizer
from memagent_jax.structs import Params


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that is ready to read: what every command starts from."""

  name: str  # as the user gave it
  config: ModelConfig
  params: Params  # unboxed tree of jax arrays
  tokenizer: Tokenizer
