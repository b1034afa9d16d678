"""A tokenizer without training: it stores the mean colour of every cell, and what the levels before it missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from pyratok.model.base import VideoTokenizer
from pyratok.nn.carry import Carry, at_start
from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.types import Stride, TextEmbedding, Video

BITS_PER_CHANNEL = 5
STEPS = (1 << BITS_PER_CHANNEL) - 1


class FakeTokenizer(VideoTokenizer):
    """Colours as 3 x 5 bits of a 16-bit word, coarse cells to fine ones.

    Level l quantizes the residual to the range ``ranges[l]`` on its cells, so every prefix decodes and each level
    brings a smooth video closer.
    """

    name = "fake"
    num_bits = 16
    strides = ((1, 32, 32), (4, 16, 16), (4, 8, 8))
    ranges = (1.0, 0.7, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def config_dict(self) -> dict[str, Any]:
        return {"name": self.name, "strides": self.strides}

    def signs(self, video: Tensor, text: TextEmbedding | None, carry: Carry | None = None) -> Sequence[Tensor]:
        rest, levels, lead = video, [], at_start(carry)
        for stride, scale in zip(self.strides, self.ranges, strict=True):
            ids = to_ids(pool(rest, stride, lead), scale)
            rest = rest - expand(to_colour(ids, scale), stride, lead)
            levels.append(ids_to_signs(ids, self.num_bits))
        return levels

    def reconstruct(self, signs: Sequence[Tensor], carry: Carry | None = None) -> Tensor:
        parts = [
            expand(to_colour(signs_to_ids(level), scale), stride, at_start(carry))
            for level, stride, scale in zip(signs, self.strides, self.ranges, strict=False)
        ]
        return torch.stack(parts).sum(0)


def pool(x: Tensor, stride: Stride, lead: bool) -> Tensor:
    """Means over cells; in time the first frame of a video, which ``lead`` says is there, stands alone."""
    t, h, w = stride
    space = reduce(x, "b c t (h sh) (w sw) -> b c t h w", "mean", sh=h, sw=w)
    first, later = space[:, :, :lead], space[:, :, lead:]
    return torch.cat([first, reduce(later, "b c (t st) h w -> b c t h w", "mean", st=t)], dim=2)


def expand(x: Tensor, stride: Stride, lead: bool) -> Tensor:
    """Every cell filled with its value: the inverse of :func:`pool` up to detail."""
    t, h, w = stride
    whole = torch.cat([x[:, :, :lead], repeat(x[:, :, lead:], "b c t h w -> b c (t st) h w", st=t)], dim=2)
    return repeat(whole, "b c t h w -> b c t (h sh) (w sw)", sh=h, sw=w)


def to_ids(colour: Tensor, scale: float) -> Tensor:
    codes = (colour / scale).clamp(-1, 1).add(1).mul(STEPS / 2).round().to(torch.int32)
    red, green, blue = codes.unbind(1)
    return red | green << BITS_PER_CHANNEL | blue << 2 * BITS_PER_CHANNEL


def to_colour(ids: Tensor, scale: float) -> Tensor:
    codes = torch.stack([ids >> i * BITS_PER_CHANNEL & STEPS for i in range(3)], dim=1)
    return (codes * (2 / STEPS) - 1) * scale


def moving_video(frames: int = 9, height: int = 48, width: int = 64, fps: float | None = 12.0) -> Video:
    """A smooth pattern that drifts, in [-1, 1]: ``[1, 3, T, H, W]``."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin((x + (2 + c) * t) / (6 + 2 * c) + y / 9 * (c - 1)) for c in range(3)]
    return Video(rearrange(torch.stack(waves), "c t h w -> 1 c t h w").mul(0.8).contiguous(), fps=fps)
