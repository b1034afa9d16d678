"""A tokenizer that reads colours, and words that are colours: what zero-shot tasks find is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import FakeTokenizer
from pyratok.types import TextEmbedding, Video

COLOURS = {
    "red": (0.9, -0.8, -0.8),
    "green": (-0.8, 0.9, -0.8),
    "blue": (-0.8, -0.8, 0.9),
    "yellow": (0.9, 0.8, -0.8),
    "pink": (0.9, -0.4, 0.7),
    "grey": (0.6, 0.6, 0.6),
}
THINGS = {
    thing: ("red", "green", "blue", "yellow", "pink")[index % 5]
    for index, thing in enumerate(
        "kite flag rug card disc bell drum boat square tile brick plate star ring lamp shoe".split()
    )
}
"""Names of things and the colour that each of them has; the first eight are unseen ones."""


class ColourWords:
    """A text is the direction of the first colour or thing that it names; of none, white."""

    name, dim, max_tokens = "colours", 3, 8

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        def colour(text: str) -> tuple[float, ...]:
            named = (THINGS.get(word, word) for word in text.lower().split())
            return next((COLOURS[word] for word in named if word in COLOURS), (1.0, 1.0, 1.0))

        pooled = F.normalize(torch.tensor([colour(text) for text in texts]), dim=-1)
        return TextEmbedding(tokens=pooled[:, None], mask=torch.ones(len(texts), 1, dtype=torch.bool), pooled=pooled)


class ColourReader(FakeTokenizer):
    """Its text space is the colour of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = ColourWords()
        self.eval()

    def read(self, signs: Sequence[Tensor]) -> Tensor:
        t, h, w = self.strides[len(signs) - 1]
        video = self.reconstruct(signs)
        first, later = video[:, :, :1], video[:, :, 1:]
        frames = torch.cat([first, later.unflatten(2, (-1, t)).mean(3)], dim=2) if later.shape[2] else first
        return F.avg_pool3d(frames, (1, h, w))


def painted(colours: Sequence[str], height: int = 64, width: int = 64, fps: float = 12.0) -> Video:
    """A frame per colour, plain: ``[1, 3, T, H, W]``."""
    values = torch.tensor([COLOURS[colour] for colour in colours])
    return Video(values.T[None, :, :, None, None].expand(1, 3, len(colours), height, width).contiguous(), fps)
