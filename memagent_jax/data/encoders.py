"""What counts the tokens of a text: any `Encoder`, such as `ByteEncoder`."""

from typing import Protocol


class Encoder(Protocol):
  """What counting tokens needs of a tokenizer."""

  def encode(self, text: str) -> list[int]:
    """Token ids of the text, without control tokens."""


class ByteEncoder:
  """One token per byte of UTF-8: for byte-level models, and without a model."""

  def encode(self, text: str) -> list[int]:
    """The bytes of the text."""
    return list(text.encode())
