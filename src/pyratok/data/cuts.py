"""Many different clips of one file: random cuts of a video, camera paths over a photograph."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pyratok.data.captioned import names_sides
from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import Entry, kind_of
from pyratok.data.sources import Footage, PhotoPaths, photo_pyramid
from pyratok.data.video_io import FALLBACK_FPS, VideoError, probe

SCRATCH = ".frames-"
"""How folders of decoded frames begin, which a process that is killed leaves behind."""


@dataclass(frozen=True, kw_only=True)
class CutConfig:
    """``videos`` cuts of every video, ``photos`` camera paths over every photograph; 0 of both: none are made.

    A cut of a video begins anywhere, shows anything from the whole height down to half of it, and is mirrored half of
    the time, if its caption names no side (:class:`pyratok.data.sources.Footage`); over a photograph a camera pans,
    zooms and turns (:class:`pyratok.data.sources.PhotoPaths`).
    """

    videos: int = 0
    photos: int = 0

    def __post_init__(self) -> None:
        for name in ("videos", "photos"):
            if getattr(self, name) < 0:
                raise ValueError(f"cuts.{name} must be 0 or more, got {getattr(self, name)}")

    def __bool__(self) -> bool:
        return bool(self.videos or self.photos)


def random_cuts(
    entry: Entry, name: str, config: CutConfig, *, frames: int, size: int, scratch: Path
) -> Iterator[tuple[np.ndarray, float]]:
    """Clips of a file, uint8 ``[frames, size, size, 3]``, and their frames per second.

    Clip i is a pure function of ``name``, i and the file. Frames of a video lie in ``scratch`` meanwhile, at twice
    the size of the clips. Raises VideoError for a file that cannot be read, and a video that is too short.
    """

    def seed(number: int) -> np.random.Generator:
        digest = hashlib.sha256(os.fsencode(name)).digest()
        return np.random.default_rng((int.from_bytes(digest[:8], "big"), number))

    if kind_of(entry.path) == "photos":
        try:
            photo_pyramid(entry.path)
        except ValueError as error:
            raise VideoError(str(error)) from None
        camera = PhotoPaths([entry.path])
        for number in range(config.photos):
            yield camera.sample(seed(number), frames, size), FALLBACK_FPS
        return
    fps = probe(entry.path).fps or FALLBACK_FPS
    with TemporaryDirectory(prefix=SCRATCH, dir=scratch) as folder:
        store = FrameStore(folder, max_side=2 * size)
        if (count := len(store.frames(entry.path))) < frames:
            raise VideoError(f"{entry.path}: has {count} frames, a clip needs {frames}")
        footage, mirrored = Footage([entry.path], store), not names_sides(entry.caption)
        for number in range(config.videos):
            yield footage.crop(entry.path, seed(number), frames, size, mirrored=mirrored), fps
