"""Masking of the input while training: whole frames, patches of frames, the order of frames.

PyraTok (arXiv 2601.16210), App. D: 30 % of the frames are dropped and patches of every frame are masked "cosine
scheduled, MAE style"; the figure also says shuffled. The target stays the unmasked video. Read so here:

- a dropped frame keeps its place in time and is filled, since a causal encoder has no other way to skip it; frame 0
  may be dropped too;
- the share of masked patches is drawn anew for every frame, ``spatial * cos(pi u / 2)`` with u uniform in [0, 1], as
  MaskGIT (arXiv 2202.04200, sec. 3.2) draws it: mostly near the highest share, at times nearly none. It does not
  depend on the progress of training, so that a resumed or longer run sees the same masks;
- shuffled clips are shuffled in input *and* target: a causal decoder cannot give a frame before it was shown.

Masks are drawn with :func:`draw_mask` outside of the compiled step; applying one is plain tensor arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Each part is off at 0. ``temporal``: share of frames dropped. ``spatial``: highest share of patches masked in a
    frame, patches being squares of ``patch`` pixels. ``shuffle``: share of clips whose frames are shuffled. ``fill``:
    the value in masked places, 0 being grey in [-1, 1].
    """

    temporal: float = 0.0
    spatial: float = 0.0
    shuffle: float = 0.0
    patch: int = 16
    fill: float = 0.0

    def __post_init__(self) -> None:
        for name in ("temporal", "spatial", "shuffle"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"masking.{name} is a share in [0, 1], got {getattr(self, name)}")
        if self.patch < 1:
            raise ValueError(f"masking.patch is a side in pixels, got {self.patch}")
        if not -1 <= self.fill <= 1:
            raise ValueError(f"masking.fill is a value of a video in [-1, 1], got {self.fill}")

    @property
    def active(self) -> bool:
        return max(self.temporal, self.spatial, self.shuffle) > 0


PAPER_MASKING = MaskingConfig(temporal=0.3, spatial=0.75)
"""30 % of frames as in App. D; the paper gives no share of patches, 75 % is that of MAE (arXiv 2111.06377)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InputMask:
    """``order`` int64 ``[B, T]``: which frame stands at each place. ``keep`` bool ``[B, T, h, w]``: patches of the
    reordered clip that stay; at least one frame of a clip is not dropped. ``patch`` and ``fill`` as configured.
    """

    order: Tensor
    keep: Tensor
    patch: int
    fill: float

    def target(self, video: Tensor) -> Tensor:
        """What is to be reconstructed: ``[B, C, T, H, W]``, unmasked, in the order of the input."""
        index = self.order[:, None, :, None, None].expand_as(video)
        return video.gather(2, index)

    def apply(self, video: Tensor) -> Tensor:
        """What the encoder is shown: :meth:`target` with ``fill`` in place of what is masked."""
        height, width = video.shape[-2:]
        pixels = self.keep.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        return torch.where(pixels[:, None, :, :height, :width], self.target(video), self.fill)

    def to(self, device: torch.device | str) -> InputMask:
        return InputMask(order=self.order.to(device), keep=self.keep.to(device), patch=self.patch, fill=self.fill)


def draw_mask(config: MaskingConfig, shape: tuple[int, ...], generator: torch.Generator) -> InputMask:
    """A mask for clips of ``shape`` (B, C, T, H, W), on the device of ``generator``."""
    batch, _, frames, height, width = shape
    grid = math.ceil(height / config.patch), math.ceil(width / config.patch)
    device = generator.device

    def uniform(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator, device=device)

    in_order = torch.arange(frames, device=device).expand(batch, frames)
    shuffled = uniform(batch, frames).argsort(dim=1)
    order = torch.where(uniform(batch, 1) < config.shuffle, shuffled, in_order)

    dropped = min(round(config.temporal * frames), frames - 1)
    kept_frames = _ranks(uniform(batch, frames)) >= dropped

    shares = config.spatial * torch.cos(uniform(batch, frames, 1) * (math.pi / 2))
    patches = math.prod(grid)
    kept_patches = _ranks(uniform(batch, frames, patches)) >= (shares * patches).round()
    keep = (kept_patches & kept_frames[..., None]).unflatten(-1, grid)
    return InputMask(order=order, keep=keep, patch=config.patch, fill=config.fill)


def _ranks(values: Tensor) -> Tensor:
    """Rank of every value along the last axis, from 0."""
    return values.argsort(dim=-1).argsort(dim=-1)
