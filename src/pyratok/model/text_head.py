"""From quantized features to the text encoder's space: the one head that every use of language goes through.

```
q^(l) ─┬─ stem ───────────────────────────────── + ── block ── norm ── out
       └─ down (2x2) ── block ── ... ── block ── up
```

Source: PyraTok (arXiv 2601.16210), sec. 3.2.2 (text-conditioned and text-codebook alignment), sec. 4 (zero-shot uses).
A word of 16 bits covers a few pixels and cannot name an object by itself, so the head looks around in space, mostly on
cells of half the resolution, where a block sees twice as far for a quarter of the work. In time it does not: a step of
tokens reads the same in a clip, a chunk or a stream.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from einops import repeat
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
        narrow = max(1, config.width // 2)
        self.level = nn.Parameter(torch.zeros(num_levels, width))
        self.stem = nn.Conv2d(width, narrow, 1)
        self.down = nn.Conv2d(width, config.width, 2, stride=2)
        self.blocks = nn.ModuleList(HeadBlock(config.width, config.kernel) for _ in range(config.num_blocks))
        self.up = nn.Conv2d(config.width, narrow, 1)
        self.last = HeadBlock(narrow, config.kernel)
        self.norm = RMSNorm(narrow, spatial_dims=2)
        self.out = nn.Conv2d(narrow, text_dim, 1)

    def forward(self, features: Tensor, level: int | Tensor) -> Tensor:
        """``level`` from 0, one for all clips or int64 ``[B]``; the result is not normalised."""
        batch, width, _, height, columns = features.shape
        x = fold_time(features + self.level[level].view(-1, width, 1, 1, 1).to(features.dtype))
        x = x.contiguous(memory_format=torch.channels_last)
        coarse = self.down(F.pad(x, (0, columns % 2, 0, height % 2)))
        for block in self.blocks:
            coarse = block(coarse)
        # Not F.interpolate, whose gradient for a single cell torch.compile cannot lower.
        fine = repeat(self.up(coarse), "n c h w -> n c (h 2) (w 2)")[..., :height, :columns]
        found = self.out(self.norm(self.last(self.stem(x) + fine)))
        return unfold_time(cast(Tensor, found), batch)


class HeadBlock(nn.Module):
    """Look around, then think; residual, and the identity at first."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, spatial_dims=2)
        self.space = nn.Conv2d(width, width, kernel, padding=kernel // 2)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, h, w]`` to the same shape."""
        return x + cast(Tensor, self.out(F.gelu(self.space(self.norm(x)))))
