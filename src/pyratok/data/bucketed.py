"""Footage of many shapes for training: every clip is cut to the bucket of its batch, straight from its file.

No frames are kept on disk: at the resolutions that buckets are for they would take terabytes.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyratok.data.buckets import Bucket, BucketConfig, BucketSampler
from pyratok.data.captioned import MAX_OBJECTS, CaptionedItem, collate, names_sides
from pyratok.data.manifests import Entry, gather, report_broken
from pyratok.data.mixes import DataConfig
from pyratok.data.opencv import opencv
from pyratok.data.sources import mirror
from pyratok.data.video_io import VideoError, iter_frames, probe
from pyratok.data.words import split_nouns, without_nouns
from pyratok.types import Stride

TRIES = 8
"""Videos of a bucket that may turn out to be damaged, one after another, before that is an error."""


@dataclass(frozen=True, kw_only=True)
class Footage:
    """A video and what its header says: ``frames`` at ``fps``, ``height`` and ``width`` in pixels."""

    entry: Entry
    frames: int
    fps: float
    height: int
    width: int


class BucketedClips(Dataset[Any]):
    """Clips of videos, each batch of one bucket; item i is a pure function of (seed, i).

    Items ``k batch_size`` to ``(k + 1) batch_size - 1`` are one batch: that which
    :class:`~pyratok.data.buckets.BucketSampler` makes of the videos at step k, so that every epoch shows every video.
    A clip begins at a random frame and is the largest part of the picture, at a random place, that has the shape of
    the bucket; clips are mirrored half of the time, where their captions do not speak of left or right.

    ``stride``: that of the token grid of objects' masks, for :class:`~pyratok.data.captioned.CaptionedItem`s (no
    objects are known of footage); None for plain clips uint8 ``[3, T, H, W]``. A video that turns out to be damaged is
    passed over with a warning, and the next of its bucket shown.
    """

    def __init__(
        self,
        videos: Sequence[Footage],
        config: BucketConfig,
        *,
        batch_size: int,
        length: int,
        stride: Stride | None = None,
        seed: int = 0,
    ) -> None:
        assigned = [config.assign(video.frames, video.height, video.width) for video in videos]
        self.videos, self.batch_size, self.length, self.seed, self.stride = videos, batch_size, length, seed, stride
        self.sampler = BucketSampler(assigned, batch_size=batch_size, seed=seed)
        self.members: defaultdict[Bucket, list[int]] = defaultdict(list)
        for index, bucket in enumerate(assigned):
            self.members[bucket].append(index)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> CaptionedItem | Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        step, place = divmod(index, self.batch_size)
        bucket = self.sampler.bucket(step)
        rng = np.random.default_rng((self.seed, index))
        video, clip = self._readable(self.sampler.batch(step)[place], bucket, rng)
        pixels = torch.from_numpy(clip).permute(3, 0, 1, 2)
        if self.stride is None:
            return pixels
        t, h, w = self.stride
        grid = 1 + (bucket.frames - 1) // t, bucket.height // h, bucket.width // w
        nothing = torch.zeros(MAX_OBJECTS, *grid)
        return CaptionedItem(video=pixels, caption=video.entry.caption, nouns=("",) * MAX_OBJECTS, masks=nothing)

    def collate(self, items: Sequence[Any]) -> Any:
        """A :class:`~pyratok.data.captioned.CaptionedBatch`, or ``[B, 3, T, H, W]`` for plain clips."""
        return torch.stack(list(items)) if self.stride is None else collate(items)

    def _readable(self, first: int, bucket: Bucket, rng: np.random.Generator) -> tuple[Footage, np.ndarray]:
        members = self.members[bucket]
        start = members.index(first)
        for number in range(min(TRIES, len(members))):
            video = self.videos[members[(start + number) % len(members)]]
            try:
                return video, cut(video, bucket, rng)
            except VideoError as error:
                warnings.warn(f"passed over: {error}", stacklevel=2)
        raise ValueError(f"videos of the bucket {bucket} cannot be read, the last of them {video.entry.path}")


def cut(video: Footage, bucket: Bucket, rng: np.random.Generator) -> np.ndarray:
    """A random clip of a video, uint8 ``[T, H, W, 3]``, in the shape of a bucket.

    Only where the video is smaller or shorter than that it is enlarged, or its last frame repeated.
    """
    cv2 = opencv()

    first = int(rng.integers(max(1, video.frames - bucket.frames + 1)))
    # One by one: a hundred frames of 4K, as they are, would take gigabytes in every loader process.
    frames = (frame for _, frame in islice(iter_frames(video.entry.path, start=first / video.fps), bucket.frames))
    if (frame := next(frames, None)) is None:
        raise VideoError(f"{video.entry.path}: no frames where its header promises {video.frames}")
    scale = min(frame.shape[0] / bucket.height, frame.shape[1] / bucket.width)
    height, width = (max(1, math.floor(side * scale)) for side in (bucket.height, bucket.width))
    top, left = (int(rng.integers(n - side + 1)) for n, side in zip(frame.shape, (height, width), strict=False))
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    clip = np.empty((bucket.frames, bucket.height, bucket.width, 3), np.uint8)
    count = 0
    for count, shown in enumerate(chain([frame], frames), start=1):
        window = shown[top : top + height, left : left + width]
        clip[count - 1] = cv2.resize(window, (bucket.width, bucket.height), interpolation=method)
    clip[count:] = clip[count - 1]
    return clip if names_sides(video.entry.caption) else mirror(clip, rng)


def survey(videos: Sequence[Entry]) -> list[Footage]:
    """Read the headers; videos that cannot be read are left out with a warning, ValueError when more than half are."""
    found: list[Footage] = []
    broken: dict[Path, str] = {}
    for entry in videos:
        try:
            info = probe(entry.path)
        except VideoError as error:
            broken[entry.path] = str(error).removeprefix(f"{entry.path}: ")
            continue
        fps = info.fps or 1.0
        frames = info.frames or max(1, round((info.duration or 0) * fps))
        found.append(Footage(entry=entry, frames=frames, fps=fps, height=info.height, width=info.width))
    report_broken("videos", len(videos), broken)
    return found


def bucketed_clips(
    data: DataConfig,
    roots: Sequence[str | Path],
    config: BucketConfig,
    *,
    batch_size: int,
    length: int,
    seed: int,
    stride: Stride | None,
) -> BucketedClips:
    """``length`` clips of the videos under ``roots``; captions that name an unseen noun are emptied."""
    media = gather(roots, exclude=data.exclude)
    _, unseen = split_nouns(media.sprites)
    videos = without_nouns(media.videos, unseen)
    if not videos:
        raise ValueError(f"buckets are cut from videos, and there are none in {', '.join(map(str, roots))}")
    footage = survey(videos)
    return BucketedClips(footage, config, batch_size=batch_size, length=length, stride=stride, seed=seed)
