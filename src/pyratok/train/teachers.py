"""Holding the adapted encoder to what a frozen image encoder, such as DINOv3, sees in the same frames.

    video ──► reference, one frame per latent step ──► patches [B,t,N,R] ── pool ──┐
                                                   └─► class tokens [B,t,R] ───────┤
    deepest tap [B,C,t,h,w] ── pool ──► linear ──► drift: KL per cell of the grid ─┤
                           └─ mean  ──► linear ──► retention: 1 - cosine per step ─┘

Source: PyraTok (arXiv 2601.16210), sec. 3.2.3 (L_drift) and App. D (frame retention of stage 3), which leave open how
features of different widths and grids are compared. Our reading: the deepest tap, because what an image encoder knows
is not to be forced upon shallow features; the last frame of every latent step, because a causal encoder that makes the
step has just seen it; learned linear maps to the reference's width; and the coarser of the two grids. Features are
normalised over channels, so that neither side's scale decides how sharp its distribution is.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.losses.retention import feature_kl, frame_retention
from pyratok.text.references import FrameFeatures


class FeatureProjector(nn.Module):
    """Linear maps from the ``channels`` of the deepest tap to the ``dim`` of a reference: for cells, and for frames."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.cells = nn.Linear(channels, dim)
        self.frames = nn.Linear(channels, dim)

    def drift(self, tap: Tensor, seen: FrameFeatures) -> Tensor:
        """``KL(projected tap || sg(patches))``, nats per cell, scalar; ``tap`` ``[B, C, t, h, w]``."""
        patches = seen.patches.movedim(-1, 1).unflatten(-1, seen.grid)
        rows, columns = seen.grid
        grid = tap.shape[2], min(tap.shape[3], rows), min(tap.shape[4], columns)
        cells = self.cells(_channels_normed(_pool(tap, grid)).movedim(1, -1)).movedim(-1, 1)
        return feature_kl(_channels_normed(cells), _channels_normed(_pool(patches, grid)))

    def retention(self, tap: Tensor, seen: FrameFeatures) -> Tensor:
        """``1 - cos(projected mean of a step, sg(class token))``, scalar."""
        steps = self.frames(_channels_normed(tap.float().mean(dim=(3, 4))).mT)
        return frame_retention(steps, seen.pooled)


def _pool(features: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Means ``[B, C, *grid]``, float32."""
    return F.adaptive_avg_pool3d(features.float(), grid)


def _channels_normed(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over axis 1, float32."""
    return F.layer_norm(features.float().movedim(1, -1), features.shape[1:2]).movedim(-1, 1)
