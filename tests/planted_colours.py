"""A tokenizer whose language is colours: what its tokens say is known in advance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import FakeTokenizer
from pyratok.types import TextEmbedding, Video

COLOURS = {
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.0, 0.0, 0.0),
}
"""In [-1, 1]; grey says nothing."""


class ColourWords:
    """A text is the colour that it names, or white."""

    name, dim, max_tokens = "colours", 3, 8

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        def colour(text: str) -> tuple[float, ...]:
            return next((COLOURS[word] for word in text.lower().split() if word in COLOURS), COLOURS["white"])

        pooled = F.normalize(torch.tensor([colour(text) for text in texts]), dim=-1)
        return TextEmbedding(tokens=pooled[:, None], mask=torch.ones(len(texts), 1, dtype=torch.bool), pooled=pooled)


class ColourTokenizer(FakeTokenizer):
    """Reads off its tokens the colour of their cells; a head of its own weights turns it into features."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.text_encoder = ColourWords()
        self.text_head = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.text_head.weight, gain)
        self.eval()

    def read(self, signs: Sequence[Tensor]) -> Tensor:
        t, h, w = self.strides[len(signs) - 1]
        video = self.reconstruct(signs)
        frames = torch.cat([video[:, :, :1], video[:, :, 1:].unflatten(2, (-1, t)).mean(3)], dim=2)
        features: Tensor = F.avg_pool3d(frames, (1, h, w)) * self.text_head.weight.item()
        return features


def coloured(*runs: tuple[str, int], size: int = 32, fps: float | None = 10.0) -> Video:
    """Frames filled with one colour after another: ``[1, 3, T, size, size]``."""
    frames = [torch.tensor(COLOURS[name]).expand(count, 3) for name, count in runs]
    return Video(torch.cat(frames).T[None, :, :, None, None].repeat(1, 1, 1, size, size).contiguous(), fps=fps)
