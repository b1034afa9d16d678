"""What pyratok asks of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pyratok.types import TextEmbedding


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen model that turns captions and class names into vectors.

    ``name`` identifies the weights, ``dim`` is the width ``D`` of the text space, ``max_tokens`` the largest ``N``;
    longer texts are cut.
    """

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        """Embed ``B`` texts; a text may be empty. The result of a text does not depend on the rest of the batch.

        Raises ValueError for a bare string or an empty sequence.
        """
        ...
