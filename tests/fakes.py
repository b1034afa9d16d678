"""A tokenizer without weights: it stores the mean colour of every cell, and what the levels before it missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from pyratok.types import Geometry, ModelId, TokenPyramid, Video

BITS_PER_CHANNEL = 5


@dataclass(frozen=True)
class FakeConfig:
    name: str = "fake"


class FakeTokenizer:
    """Speaks the interface of ``PyraTok``: colours as 3 x 5 bits of a 16-bit word, coarse cells to fine ones.

    Level l quantizes the residual to the range ``ranges[l]`` on its cells, so every prefix decodes and each level
    brings the video closer.
    """

    strides = ((1, 32, 32), (4, 16, 16), (4, 8, 8))
    ranges = (1.0, 0.7, 0.5)
    config = FakeConfig()
    model_id = ModelId(name="fake", fingerprint="0123456789abcdef")

    def encode(self, video: Tensor, caption: str | list[str] | None = None) -> TokenPyramid:
        if not bool(torch.isfinite(video).all()):
            raise ValueError("the video holds values that are not finite")
        _, _, frames, height, width = video.shape
        fps = getattr(video, "fps", None)
        geometry = Geometry(frames=frames, height=height, width=width, strides=self.strides, fps=fps)
        rest = self._pad(torch.as_tensor(video).as_subclass(Tensor), geometry)
        levels = []
        for stride, scale in zip(self.strides, self.ranges, strict=True):
            ids = self._to_ids(self._pool(rest, stride), scale)
            rest = rest - self._expand(self._to_colour(ids, scale), stride, geometry.padded[0])
            levels.append(ids)
        return TokenPyramid(tuple(levels), geometry, self.model_id)

    def decode(self, tokens: TokenPyramid, levels: int | None = None) -> Video:
        if tokens.model != self.model_id:
            raise ValueError(f"these tokens were made by {tokens.model}, this model is {self.model_id}")
        held = tokens if levels is None else tokens.prefix(levels)
        g = held.geometry
        video = torch.zeros(held.batch_size, 3, *g.padded)
        for ids, stride, scale in zip(held.levels, self.strides, self.ranges, strict=False):
            video = video + self._expand(self._to_colour(ids, scale), stride, g.padded[0])
        return Video(video.clamp(-1, 1)[:, :, : g.frames, : g.height, : g.width].contiguous(), fps=g.fps)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.model_id.name,
            "fingerprint": self.model_id.fingerprint,
            "parameters": 0,
            "levels": len(self.strides),
            "strides": [list(s) for s in self.strides],
            "bits": 16,
        }

    @staticmethod
    def _pad(video: Tensor, geometry: Geometry) -> Tensor:
        index = [torch.arange(n).clamp(max=m - 1) for n, m in zip(geometry.padded, video.shape[2:], strict=True)]
        return video[:, :, index[0]][:, :, :, index[1]][..., index[2]]

    @staticmethod
    def _pool(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
        """Means over cells; in time the first frame stands alone."""
        t, h, w = stride
        space = reduce(x, "b c t (h sh) (w sw) -> b c t h w", "mean", sh=h, sw=w)
        rest = reduce(space[:, :, 1:], "b c (t st) h w -> b c t h w", "mean", st=t)
        return torch.cat([space[:, :, :1], rest], dim=2)

    @staticmethod
    def _expand(x: Tensor, stride: tuple[int, int, int], frames: int) -> Tensor:
        t, h, w = stride
        rest = repeat(x[:, :, 1:], "b c t h w -> b c (t st) h w", st=t)
        whole = torch.cat([x[:, :, :1], rest], dim=2)[:, :, :frames]
        return repeat(whole, "b c t h w -> b c t (h sh) (w sw)", sh=h, sw=w)

    @staticmethod
    def _to_ids(x: Tensor, scale: float) -> Tensor:
        steps = (1 << BITS_PER_CHANNEL) - 1
        codes = ((x / scale).clamp(-1, 1).add(1).mul(steps / 2)).round().to(torch.int32)
        red, green, blue = codes.unbind(1)
        return red | green << BITS_PER_CHANNEL | blue << 2 * BITS_PER_CHANNEL

    @staticmethod
    def _to_colour(ids: Tensor, scale: float) -> Tensor:
        steps = (1 << BITS_PER_CHANNEL) - 1
        codes = torch.stack([ids >> i * BITS_PER_CHANNEL & steps for i in range(3)], dim=1)
        return (codes * (2 / steps) - 1) * scale


def moving_video(frames: int = 9, height: int = 48, width: int = 64, fps: float | None = 12.0) -> Video:
    """A smooth pattern that drifts, in [-1, 1]: ``[1, 3, T, H, W]``."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    waves = [torch.sin((x + (2 + c) * t) / (6 + 2 * c) + y / 9 * (c - 1)) for c in range(3)]
    return Video(rearrange(torch.stack(waves), "c t h w -> 1 c t h w").mul(0.8).contiguous(), fps=fps)


def blurred(video: Tensor) -> Tensor:
    """The same clip, less sharp: something to measure against."""
    flat = rearrange(video.as_subclass(Tensor), "b c t h w -> (b t) c h w")
    return rearrange(F.avg_pool2d(flat, 5, 1, 2, count_include_pad=False), "(b t) c h w -> b c t h w", b=len(video))
