"""Moving features between token grids, causally in time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.nn.carry import Carry, at_start
from pyratok.types import Stride


class Fold(nn.Module):
    """Lateral convolution: features at ``tap`` stride to the coarser (or equal) ``grid`` stride, each cell seen whole.

    ``[B, C, 1 + k r, H, W]`` to ``[B, D, 1 + k, H/s, W/s]``. Step 0 sees frame 0 alone (zeros in front), step j the
    r frames up to its last one: causal, and local, so that tiles and whole frames agree. A later chunk of a stream is
    ``[B, C, k r, H, W]`` to ``[B, D, k, H/s, W/s]`` and needs nothing of the chunks before.
    """

    def __init__(self, in_dim: int, out_dim: int, tap: Stride, grid: Stride) -> None:
        super().__init__()
        ratio = tuple(g // t for g, t in zip(grid, tap, strict=True))
        self.front = ratio[0] - 1
        self.conv = nn.Conv3d(in_dim, out_dim, ratio, stride=ratio)  # type: ignore[arg-type]

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        padded = self.front > 0 and at_start(carry)
        out: Tensor = self.conv(F.pad(x, (0, 0, 0, 0, self.front, 0)) if padded else x)
        return out


class Resample(nn.Module):
    """Quantized features from one token grid to the next: coarser or equal in time, finer or equal in space.

    Time is folded by a learned average (step 0, having one frame, sees it repeated); space is unfolded by a learned
    repetition. Both start as the plain average and the plain repetition. A later chunk of a stream needs nothing of
    the chunks before.
    """

    def __init__(self, width: int, source: Stride, target: Stride) -> None:
        super().__init__()
        steps = target[0] // source[0]
        space = (1, source[1] // target[1], source[2] // target[2])
        self.front = steps - 1
        self.fold = nn.Conv3d(width, width, (steps, 1, 1), stride=(steps, 1, 1), bias=False) if steps > 1 else None
        self.unfold = nn.ConvTranspose3d(width, width, space, stride=space, bias=False) if space != (1, 1, 1) else None
        with torch.no_grad():
            for layer, gain in ((self.fold, 1 / steps), (self.unfold, 1.0)):
                if layer is not None:
                    layer.weight.zero_()
                    for channel in range(width):
                        layer.weight[channel, channel] = gain

    def forward(self, q: Tensor, carry: Carry | None = None) -> Tensor:
        """``[B, D, t, h, w]`` on the source grid to the target grid."""
        if self.fold is not None:
            if at_start(carry):
                first = q[:, :, :1].expand(-1, -1, self.front, -1, -1)
                q = torch.cat([first, q], dim=2)
            q = self.fold(q)
        if self.unfold is not None:
            q = self.unfold(q)
        return q
