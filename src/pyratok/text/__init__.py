"""Text encoders: words in, :class:`pyratok.types.TextEmbedding` out."""

from pyratok.text.base import TextEncoder
from pyratok.text.minilm import MiniLM

__all__ = ["MiniLM", "TextEncoder"]
