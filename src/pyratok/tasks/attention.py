"""Where in a clip each word is seen: attention of words to tokens, level by level.

Source: text attention maps, PyraTok (arXiv 2601.16210), fig. 2. The paper draws the attention inside its quantizer,
which needs the encoder's features; these maps need tokens alone: a softmax over the places of a level of the cosines
between a word and the level's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.model.base import VideoTokenizer
from pyratok.tasks.cells import cell_vectors
from pyratok.tasks.classification import check_texts, embed_texts
from pyratok.tasks.segmentation import upsample
from pyratok.types import Geometry, TokenPyramid

TEMPERATURE = 0.05
"""Cosines that differ by this much differ by a factor e in attention."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """What words attend to, level by level, float32 ``[W, t, h, w]`` each, shallow to deep.

    ``cosines`` in [-1, 1]; ``weights`` in [0, 1], whose sum over the places of a level is 1 for each word. Tokens of
    padding alone are not there. ``geometry``: that of the tokens.
    """

    words: tuple[str, ...]
    cosines: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    geometry: Geometry

    def frames(self, level: int = -1) -> Tensor:
        """The weights of a level over the frames of the true video ``[W, T, H, W]``, 1 where a word attends most."""
        held = len(self.weights)
        if not -held <= level < held:
            raise ValueError(f"there are maps of levels 0 to {held - 1}, asked for level {level}")
        level %= held
        large = upsample(self.weights[level], self.geometry, level)
        return large / large.amax(dim=(1, 2, 3), keepdim=True)


@torch.no_grad()
def attention(
    model: VideoTokenizer, tokens: TokenPyramid, words: Sequence[str], *, temperature: float = TEMPERATURE
) -> Attention:
    """Attention of each word, a noun or any other text, to the tokens of every level held, of one clip.

    Raises ValueError for words as :func:`~pyratok.tasks.classification.check_texts`, a temperature that is not above
    0, a batch of clips, tokens of another model, and a model without text head.
    """
    names = check_texts(words, "word")
    if not temperature > 0:
        raise ValueError(f"the temperature of a softmax is above 0, got {temperature}")
    if tokens.batch_size != 1:
        raise ValueError(f"attention is of one clip, got {tokens.batch_size}; take one by tokens.select(index)")
    vectors = [F.normalize(cell_vectors(model, tokens, level), dim=-1) for level in range(len(tokens.levels))]
    texts = embed_texts(model, names)
    cosines = tuple((cells @ texts.T).movedim(-1, 0).float().cpu() for cells in vectors)
    weights = tuple((maps.flatten(1) / temperature).softmax(1).view_as(maps) for maps in cosines)
    return Attention(words=tuple(names), cosines=cosines, weights=weights, geometry=tokens.geometry)
