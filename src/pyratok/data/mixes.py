"""The training mix: which kinds of clips, in which shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyratok.data.captioned import CaptionedMix, CaptionedSource, Uncaptioned
from pyratok.data.datasets import MixedClips
from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import Media, gather
from pyratok.data.sources import ClipSource, Footage, PhotoPaths, Sprites
from pyratok.data.synthetic import SceneConfig, captioned_sources
from pyratok.data.words import NounIndex, is_unseen, split_nouns
from pyratok.types import Stride


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Mix of training clips: the weight of each kind (kinds that are not there are left out) and crop scales.

    ``sprites`` are clips without captions; stages with language show ``scenes`` in their place, whose objects are
    named, made as ``scene`` says. Sprites of unseen words (:mod:`pyratok.data.words`) are in neither.

    A zoom is source pixels per pixel of the clip. Files whose stem is in ``exclude`` are held out.
    """

    footage: float = 0.55
    photos: float = 0.3
    sprites: float = 0.15
    scenes: float = 0.85
    scene: SceneConfig = field(default_factory=SceneConfig)
    footage_zoom: tuple[float, float] = (1.0, 2.0)
    photo_zoom: tuple[float, float] = (1.0, 5.0)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("footage", "photos", "sprites", "scenes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a weight of 0 or more, got {getattr(self, name)}")
        zooms = {
            "footage_zoom": self.footage_zoom,
            "photo_zoom": self.photo_zoom,
            "scene.photo_zoom": self.scene.photo_zoom,
        }
        for name, (low, high) in zooms.items():
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be two positive numbers, the smaller one first, got {low}, {high}")


def mixed_clips(
    data: DataConfig, roots: Sequence[str | Path], cache: Path, *, frames: int, size: int, length: int, seed: int
) -> MixedClips:
    """``length`` clips of ``frames x size x size`` from the media under ``roots``; decoded frames go to ``cache``."""
    media = to_show(gather(roots, exclude=data.exclude))
    weights = kinds_there(data, media, captioned=False)
    sources: list[ClipSource] = []
    if "footage" in weights:
        sources.append(Footage([e.path for e in media.videos], FrameStore(cache), data.footage_zoom))
    if "photos" in weights:
        photos = PhotoPaths([e.path for e in media.photos], data.photo_zoom)
        sources.append(photos)
        if "sprites" in weights:
            sources.append(Sprites([e.path for e in media.sprites], photos))
    return MixedClips(sources, list(weights.values()), frames=frames, size=size, length=length, seed=seed)


def kinds_there(data: DataConfig, media: Media, *, captioned: bool) -> dict[str, float]:
    """The kinds of clips that can be made of media, with their weights; those of weight 0 are left out.

    Raises ValueError where that leaves none, saying what to add.
    """
    shown = to_show(media)
    if captioned:
        there = {"scenes": split_nouns(media.sprites)[0], "footage": media.videos, "photos": shown.photos}
    else:
        over = shown.photos if data.photos else ()  # what sprites move over
        there = {"footage": media.videos, "photos": shown.photos, "sprites": over and shown.sprites}
    weights = {kind: weight for kind, found in there.items() if found and (weight := getattr(data, kind))}
    if not weights:
        made_of = {"scenes": "sprites with captions", "footage": "videos", "photos": "photographs"}
        wanted = " or ".join(what for kind, what in made_of.items() if kind in there and getattr(data, kind))
        raise ValueError(f"nothing to make clips of: add {wanted or 'a weight to one of the kinds of data'}")
    return weights


def to_show(media: Media) -> Media:
    """Media without drawings of unseen nouns, nor photographs whose caption names one; videos stay as they are."""
    _, unseen = split_nouns(media.sprites)
    kept_back, hidden = {path for paths in unseen.values() for path in paths}, NounIndex(unseen)
    sprites = [e for e in media.sprites if e.path not in kept_back and not (e.caption and is_unseen(e.caption))]
    photos = [e for e in media.photos if not hidden.named_in(e.caption)]
    return replace(media, sprites=tuple(sprites), photos=tuple(photos))


def captioned_clips(
    data: DataConfig,
    roots: Sequence[str | Path],
    cache: Path,
    *,
    frames: int,
    size: int,
    length: int,
    seed: int,
    stride: Stride,
) -> CaptionedMix:
    """As :func:`mixed_clips`, with captions where they are known, and masks on a token grid of ``stride``."""
    media = gather(roots, exclude=data.exclude)
    weights = kinds_there(data, media, captioned=True)
    scenes, footage = captioned_sources(media, FrameStore(cache), data.scene, data.footage_zoom)
    kinds: dict[str, CaptionedSource | None] = {"scenes": scenes, "footage": footage}
    if "photos" in weights:
        kinds["photos"] = Uncaptioned(PhotoPaths([e.path for e in to_show(media).photos], data.photo_zoom))
    return CaptionedMix(
        [source for kind, source in kinds.items() if kind in weights and source is not None],
        list(weights.values()),
        frames=frames,
        size=size,
        length=length,
        stride=stride,
        seed=seed,
    )
