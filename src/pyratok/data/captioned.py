"""Captioned clips for training: footage and rendered scenes in one stream, with masks on a token grid."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from einops import reduce
from torch import Tensor
from torch.utils.data import Dataset

from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import Entry
from pyratok.data.scenes import CaptionedClip
from pyratok.data.sources import ClipSource, Footage
from pyratok.types import Stride

MAX_OBJECTS = 3
"""Objects of a clip, at most; a batch has room for as many."""


class CaptionedSource(Protocol):
    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        """One clip ``[frames, size, size, 3]`` with what is known of it, a function of the generator's state."""
        ...


class CaptionedFootage:
    """Crops of real videos with the captions of their manifest, not mirrored where these speak of left or right.

    No objects are known of them. Unreadable videos are left out as :class:`~pyratok.data.sources.Footage` does.
    """

    def __init__(self, videos: Sequence[Entry], store: FrameStore, zoom_range: tuple[float, float] = (1.0, 2.0)):
        self.footage = Footage([entry.path for entry in videos], store, zoom_range)
        self.captions = {entry.path: entry.caption for entry in videos}

    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        path = self.footage.draw(rng)
        caption = self.captions[path]
        clip = self.footage.crop(path, rng, frames, size, mirrored=not names_sides(caption))
        return CaptionedClip(video=clip, caption=caption)


class Uncaptioned:
    """Clips of a source of which nothing is known."""

    def __init__(self, source: ClipSource) -> None:
        self.source = source

    def sample_captioned(self, rng: np.random.Generator, frames: int, size: int) -> CaptionedClip:
        return CaptionedClip(video=self.source.sample(rng, frames, size), caption="")


def names_sides(caption: str) -> bool:
    """Would the caption be wrong of the mirror image?"""
    return re.search(r"\b(left|right)", caption, re.IGNORECASE) is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedItem:
    """A training clip: ``video`` uint8 ``[3, T, S, S]``, caption, :data:`MAX_OBJECTS` nouns (empty where there is no
    object), ``masks`` float32 in [0, 1] ``[MAX_OBJECTS, t, h, w]``: the share of each token's cell that an object is.
    """

    video: Tensor
    caption: str
    nouns: tuple[str, ...]
    masks: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionedBatch:
    """``videos`` uint8 ``[B, 3, T, S, S]``, ``masks`` float32 ``[B, MAX_OBJECTS, t, h, w]``, texts of each clip."""

    videos: Tensor
    captions: tuple[str, ...]
    nouns: tuple[tuple[str, ...], ...]
    masks: Tensor


class CaptionedMix(Dataset[CaptionedItem]):
    """Clips drawn from several captioned sources; item i is a pure function of (seed, i).

    ``stride``: the (t, h, w) stride of the token grid on which the objects' masks are wanted. Raises ValueError where
    it does not divide the clips: T must be 1 + k t, S a multiple of h and w.
    """

    def __init__(
        self,
        sources: Sequence[CaptionedSource],
        weights: Sequence[float],
        *,
        frames: int,
        size: int,
        length: int,
        stride: Stride,
        seed: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("nothing to draw captioned clips from: add captioned videos, or sprites with captions")
        if len(sources) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"{len(sources)} sources need as many non-negative weights, got {list(weights)}")
        if (frames - 1) % stride[0] or size % stride[1] or size % stride[2]:
            raise ValueError(f"clips of {frames}x{size}x{size} do not lie on a grid of stride {stride}")
        self.sources = list(sources)
        self.weights = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.frames, self.size, self.length, self.stride, self.seed = frames, size, length, stride, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> CaptionedItem:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        rng = np.random.default_rng((self.seed, index))
        source = self.sources[rng.choice(len(self.sources), p=self.weights)]
        clip = source.sample_captioned(rng, self.frames, self.size)
        assert len(clip.objects) <= MAX_OBJECTS
        masks = np.zeros((MAX_OBJECTS, *clip.video.shape[:3]), bool)
        for slot, truth in zip(masks, clip.objects, strict=False):
            slot[:] = truth.masks
        nouns = [truth.noun for truth in clip.objects] + [""] * (MAX_OBJECTS - len(clip.objects))
        return CaptionedItem(
            video=torch.from_numpy(clip.video).permute(3, 0, 1, 2),
            caption=clip.caption,
            nouns=tuple(nouns),
            masks=pool_masks(torch.from_numpy(masks), self.stride),
        )

    @property
    def nouns(self) -> tuple[str, ...]:
        """All names of objects that clips may show."""
        return tuple(sorted({noun for source in self.sources for noun in getattr(source, "nouns", ())}))

    def collate(self, items: Sequence[CaptionedItem]) -> CaptionedBatch:
        return collate(items)


def pool_masks(masks: Tensor, stride: Stride) -> Tensor:
    """Share of each token's cell that a mask covers: bool ``[M, T, H, W]`` to float32 ``[M, t, h, w]``.

    Time is causal, as in :class:`~pyratok.types.Geometry`: step 0 is frame 0 alone, the others ``stride[0]`` frames.
    """
    t, h, w = stride
    space = reduce(masks.float(), "m t (h sh) (w sw) -> m t h w", "mean", sh=h, sw=w)
    return torch.cat([space[:, :1], reduce(space[:, 1:], "m (t st) h w -> m t h w", "mean", st=t)], dim=1)


def collate(items: Sequence[CaptionedItem]) -> CaptionedBatch:
    """Items of one dataset as a batch: the ``collate_fn`` of a DataLoader."""
    return CaptionedBatch(
        videos=torch.stack([item.video for item in items]),
        captions=tuple(item.caption for item in items),
        nouns=tuple(item.nouns for item in items),
        masks=torch.stack([item.masks for item in items]),
    )
