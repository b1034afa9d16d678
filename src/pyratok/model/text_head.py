"""From quantized features to the text encoder's space: the one head that every use of language goes through.

Source: PyraTok (arXiv 2601.16210), sec. 3.2.2 (text-conditioned and text-codebook alignment), sec. 4 (zero-shot uses).
A word of 16 bits covers a few pixels and cannot name an object by itself, so the head looks around: blocks of
depthwise convolution and perceptron, in space both ways, in time backwards alone, so that a stream can use it too.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.config import TextHeadConfig
from pyratok.vae.wan_blocks import RMSNorm, fold_time, unfold_time


class TextHead(nn.Module):
    """Features q^(l) ``[B, D, t, h, w]`` of any level to the text space ``[B, D_text, t, h, w]``.

    The direction of a vector says what is there, its length how much it says: the mean over cells is then led by
    the cells that show something. Shared by all levels but for a vector that tells it which level it looks at.
    """

    def __init__(self, config: TextHeadConfig, width: int, num_levels: int, text_dim: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(width, config.width, 1)
        self.level = nn.Parameter(torch.zeros(num_levels, config.width))
        self.blocks = nn.ModuleList(HeadBlock(config.width, config.kernel) for _ in range(config.num_blocks))
        self.norm = RMSNorm(config.width)
        self.out = nn.Conv3d(config.width, text_dim, 1)

    def forward(self, features: Tensor, level: int | Tensor) -> Tensor:
        """``level`` from 0, one for all clips or int64 ``[B]``; the result is not normalised."""
        x = self.stem(features) + self.level[level].view(-1, self.level.shape[1], 1, 1, 1)
        for block in self.blocks:
            x = block(x)
        return cast(Tensor, self.out(self.norm(x)))


class HeadBlock(nn.Module):
    """Look around (depthwise, three steps back in time), then think (a perceptron per cell); residual."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.space = nn.Conv3d(width, width, (1, kernel, kernel), padding=(0, kernel // 2, kernel // 2), groups=width)
        self.time = nn.Conv3d(width, width, (3, 1, 1), groups=width)
        self.norm = RMSNorm(width)
        self.expand = nn.Conv3d(width, 4 * width, 1)
        self.contract = nn.Conv3d(4 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.contract(F.gelu(self.expand(self.norm(self._around(x))))))

    def _around(self, x: Tensor) -> Tensor:
        """``time(pad(space(x)))``; frame by frame its convolution takes half the time in the backward pass on a CPU."""
        weight = self.space.weight.squeeze(2)
        frames = F.conv2d(fold_time(x), weight, self.space.bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])
        padded = F.pad(unfold_time(frames, x.shape[0]), (0, 0, 0, 0, 2, 0))
        steps = padded.unfold(2, 3, 1) * self.time.weight.view(1, -1, 1, 1, 1, 3).to(padded.dtype)
        return steps.sum(-1) + cast(Tensor, self.time.bias).view(1, -1, 1, 1, 1).to(padded.dtype)
