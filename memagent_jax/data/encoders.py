"""`Encoder`: anything that counts a text's tokens, such as `ByteEncoder`."""

from typing import Protocol


class Encoder(Protocol):
  """The part of a tokenizer that counting tokens needs."""

  def encode(self, text: str) -> list[int]:
    """Token ids of the text, without control tokens."""


class ByteEncoder:
  """One token per UTF-8 byte: for byte-level models, or without a model."""

  def encode(self, text: str) -> list[int]:
    """The bytes of the text."""
    return list(text.encode())
