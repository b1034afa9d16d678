"""Buckets: videos of many shapes in batches of one shape each.

A bucket is a number of frames, a height and a width. :class:`BucketSampler` makes batches of one bucket, the same
bucket on every rank at the same step, as a pure function of (seed, step).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

ASPECT_RATIOS = (1 / 1, 4 / 3, 3 / 2, 16 / 9, 2 / 1, 3 / 4, 2 / 3, 9 / 16, 1 / 2)
"""Width by height: those of PyraTok (arXiv 2601.16210), App. D, and their upright mirror images."""


@dataclass(frozen=True, kw_only=True, order=True)
class Bucket:
    """The shape that clips of a bucket are cut to."""

    frames: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """All combinations of ``sides`` x ``aspect_ratios`` x ``frames``.

    A resolution is given by the side of the square of its area: at 512 a 16:9 bucket has about 512 x 512 pixels too.
    Sides are rounded to multiples of ``multiple``, the stride of the model; frames are 1 + 4k.
    """

    sides: tuple[int, ...]
    frames: tuple[int, ...]
    multiple: int
    aspect_ratios: tuple[float, ...] = ASPECT_RATIOS

    def __post_init__(self) -> None:
        if not (self.sides and self.frames and self.aspect_ratios):
            raise ValueError("buckets need at least one side, one aspect ratio and one number of frames")
        if wrong := [count for count in self.frames if count < 1 or count % 4 != 1]:
            raise ValueError(f"buckets have 1 + 4k frames, got {wrong}")
        if self.multiple < 1 or min(self.sides) < self.multiple:
            raise ValueError(f"sides of buckets are multiples of {self.multiple} pixels, got {min(self.sides)}")
        if min(self.aspect_ratios) <= 0:
            raise ValueError(f"an aspect ratio is width / height, a positive number, got {min(self.aspect_ratios)}")

    def buckets(self) -> tuple[Bucket, ...]:
        """Every bucket, smallest clips first."""
        shapes = {self._shape(side, ratio) for side in self.sides for ratio in self.aspect_ratios}
        return tuple(sorted(Bucket(frames=t, height=h, width=w) for t in self.frames for h, w in shapes))

    def assign(self, frames: int, height: int, width: int) -> Bucket:
        """The bucket of a video: the nearest aspect ratio, then the largest resolution and the most frames it has.

        Nothing is enlarged if it can be helped: only a video below every resolution, or shorter than every bucket, goes
        to the smallest one and has to be enlarged, or its last frame repeated.
        """
        if min(frames, height, width) < 1:
            raise ValueError(f"a video needs at least one frame and pixel, got {frames}x{height}x{width}")
        ratio = min(self.aspect_ratios, key=lambda ratio: abs(math.log(ratio * height / width)))
        shapes = sorted(self._shape(side, ratio) for side in self.sides)
        fitting = [(h, w) for h, w in shapes if h <= height and w <= width]
        h, w = (fitting or shapes[:1])[-1]
        count = max((count for count in self.frames if count <= frames), default=min(self.frames))
        return Bucket(frames=count, height=h, width=w)

    def _shape(self, side: int, ratio: float) -> tuple[int, int]:
        def rounded(length: float) -> int:
            return max(1, round(length / self.multiple)) * self.multiple

        return rounded(side / math.sqrt(ratio)), rounded(side * math.sqrt(ratio))


class BucketSampler(Sampler[list[int]]):
    """Batches of indices, each from one bucket: a batch sampler for one rank.

    ``assigned[i]`` is the bucket of entry i. A batch has ``batch_size`` clips or, with ``max_pixels`` instead, as many
    as fit (at least one). Every epoch holds every entry; the last batches of a bucket are filled up with entries that
    the epoch has had already, so that small buckets are not lost. At any step all ranks get the same bucket and
    disjoint parts of one global batch (disjoint entries too, unless a bucket has fewer than a global batch).

    :meth:`batch` gives any step at once; iterating begins at ``start`` and does not end.
    """

    def __init__(
        self,
        assigned: Sequence[Bucket],
        *,
        batch_size: int | None = None,
        max_pixels: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if not assigned:
            raise ValueError("no entries to make batches of")
        if (batch_size is None) == (max_pixels is None):
            raise ValueError(f"give either batch_size or max_pixels, got {batch_size} and {max_pixels}")
        if (batch_size or max_pixels or 0) < 1:
            raise ValueError(f"a batch has at least one clip, got batch_size {batch_size}, max_pixels {max_pixels}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start
        self._batch_size, self._max_pixels = batch_size, max_pixels
        members: defaultdict[Bucket, list[int]] = defaultdict(list)
        for index, bucket in enumerate(assigned):
            members[bucket].append(index)
        self._members = {bucket: np.array(members[bucket]) for bucket in sorted(members)}
        counts = [math.ceil(len(own) / self._global_size(bucket)) for bucket, own in self._members.items()]
        # Which bucket, and which of its batches, for all batches of an epoch before they are shuffled.
        self._plan = [(bucket, k) for bucket, count in zip(self._members, counts, strict=True) for k in range(count)]
        self._epoch = -1

    @property
    def batches_per_epoch(self) -> int:
        return len(self._plan)

    def batch_size(self, bucket: Bucket) -> int:
        """Clips of one rank's batch."""
        return self._batch_size or max(1, (self._max_pixels or 0) // bucket.pixels)

    def bucket(self, step: int) -> Bucket:
        """The bucket of a step, the same on every rank."""
        return self._locate(step)[0]

    def batch(self, step: int) -> list[int]:
        """This rank's entries at a step, counted from 0 over all epochs."""
        bucket, position = self._locate(step)
        size = self.batch_size(bucket)
        first = position * self._global_size(bucket) + self.rank * size
        order = self._orders[bucket]
        return [int(order[i % len(order)]) for i in range(first, first + size)]

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while True:
            yield self.batch(step)
            step += 1

    def _locate(self, step: int) -> tuple[Bucket, int]:
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        epoch, position = divmod(step, len(self._plan))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._sequence = rng.permutation(len(self._plan))
            self._orders = {bucket: rng.permutation(own) for bucket, own in self._members.items()}
            self._epoch = epoch
        return self._plan[self._sequence[position]]

    def _global_size(self, bucket: Bucket) -> int:
        return self.world_size * self.batch_size(bucket)
