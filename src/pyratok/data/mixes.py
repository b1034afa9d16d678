"""The training mix: which kinds of clips, in which shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyratok.data.datasets import MixedClips
from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import gather
from pyratok.data.sources import ClipSource, Footage, PhotoPaths, Sprites
from pyratok.data.words import is_unseen


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Mix of training clips: the weight of each kind (kinds that are not there are left out) and crop scales.

    Sprites of unseen words (:mod:`pyratok.data.words`) are never shown.

    A zoom is source pixels per pixel of the clip. Files whose stem is in ``exclude`` are held out.
    """

    footage: float = 0.55
    photos: float = 0.3
    sprites: float = 0.15
    footage_zoom: tuple[float, float] = (1.0, 2.0)
    photo_zoom: tuple[float, float] = (1.0, 5.0)
    exclude: tuple[str, ...] = ()


def mixed_clips(
    data: DataConfig, roots: Sequence[str | Path], cache: Path, *, frames: int, size: int, length: int, seed: int
) -> MixedClips:
    """``length`` clips of ``frames x size x size`` from the media under ``roots``; decoded frames go to ``cache``."""
    media = gather(roots, exclude=data.exclude)
    sources: list[ClipSource] = []
    weights: list[float] = []
    if media.videos and data.footage:
        sources.append(Footage([e.path for e in media.videos], FrameStore(cache), data.footage_zoom))
        weights.append(data.footage)
    if media.photos and data.photos:
        photos = PhotoPaths([e.path for e in media.photos], data.photo_zoom)
        sources.append(photos)
        weights.append(data.photos)
        sprites = [e.path for e in media.sprites if not (e.caption and is_unseen(e.caption))]
        if sprites and data.sprites:
            sources.append(Sprites(sprites, photos))
            weights.append(data.sprites)
    return MixedClips(sources, weights, frames=frames, size=size, length=length, seed=seed)
