"""Masks of objects through time: tube IoU, video-instance AP, Jaccard, and COCO's run-length codec.

Definitions are those of the YouTube-VIS and OVIS servers, which extend COCO's to tubes, and of DAVIS for Jaccard.
Everything is computed on run lengths, so that a hundred predictions of a video fit into memory at its true size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from pyratok.metrics.localization import match_best_free, precision_recall

Mask: TypeAlias = NDArray[np.bool_]
Category: TypeAlias = int | str

IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
MAX_DETECTIONS = 100
"""Predictions of one class that count in one video: those of highest score."""

_RECALLS = np.linspace(0, 1, 101)
_MAX_DIGITS = 7  # of 5 bits: enough for a count of 32


@dataclass(frozen=True, eq=False)
class Tube:
    """Where an object is in every frame of a video.

    ``shape``: frames, rows, columns. ``runs``: int64 ``[R, 2]``, ascending, the first pixel of each run of the object
    and the first one after it. Pixels are counted down the columns, then along the row (COCO's order), then through the
    frames; no run leaves its frame.
    """

    shape: tuple[int, int, int]
    runs: NDArray[np.int64]

    @classmethod
    def from_masks(cls, masks: Mask | Sequence[Mask | None]) -> Tube:
        """From bool ``[T, H, W]``, or one mask ``[H, W]`` per frame with None where the object is not to be seen.

        Raises ValueError for other types, masks of different sizes, or None alone, which has no size.
        """
        present = [mask for mask in masks if mask is not None]
        kinds = {(mask.dtype, mask.shape) for mask in present}
        if len(kinds) != 1 or present[0].dtype != bool or present[0].ndim != 2 or not present[0].size:
            found = ", ".join(f"{dtype} {list(shape)}" for dtype, shape in kinds) or "no mask"
            raise ValueError(f"a tube needs bool masks [H, W] of one size, got {found}; compare soft masks with 0.5")
        nowhere = np.zeros_like(present[0])
        stack = np.stack([nowhere if mask is None else mask for mask in masks])
        pixels = rearrange(stack, "t h w -> t (w h)")
        frame, position = np.nonzero(np.diff(pixels, axis=1, prepend=False, append=False))
        frames, height, width = stack.shape
        return cls((frames, height, width), (frame * height * width + position).reshape(-1, 2))

    @classmethod
    def from_coco(cls, segmentations: Sequence[Mapping[str, Any] | None], height: int, width: int) -> Tube:
        """From the ``segmentations`` of a YouTube-VIS or OVIS annotation or prediction: per frame null or an RLE.

        An RLE is ``{"size": [height, width], "counts": ...}`` with a list of counts or a compressed string. Raises
        ValueError for one that is damaged or of another size, and for polygons.
        """
        runs = [
            _parse_rle(segmentation, height, width) + index * height * width
            for index, segmentation in enumerate(segmentations)
            if segmentation
        ]
        return cls((len(segmentations), height, width), np.concatenate([np.zeros((0, 2), np.int64), *runs]))

    def to_coco(self) -> list[dict[str, Any] | None]:
        """Per frame a compressed RLE, or None where the object is not to be seen; inverse of :meth:`from_coco`."""
        frames, height, width = self.shape
        pixels = height * width
        parts = np.split(self.runs, np.searchsorted(self.runs[:, 0], np.arange(1, frames) * pixels))
        segmentations: list[dict[str, Any] | None] = []
        for index, runs in enumerate(parts):
            counts = np.diff((runs - index * pixels).ravel(), prepend=0, append=pixels).tolist()
            text = compress_counts(counts if counts[-1] else counts[:-1])
            segmentations.append({"size": [height, width], "counts": text} if len(runs) else None)
        return segmentations

    def masks(self) -> Mask:
        """Bool ``[T, H, W]``; inverse of :meth:`from_masks`."""
        frames, height, width = self.shape
        lengths = np.diff(self.runs.ravel(), prepend=0, append=math.prod(self.shape))
        pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        return rearrange(pixels, "(t w h) -> t h w", t=frames, h=height, w=width)


def tube_iou(a: Tube, b: Tube) -> float:
    """Sum of the frames' intersections over the sum of their unions; 0 when both are empty (YouTube-VIS)."""
    intersections, unions = _overlap(a, b)
    return float(intersections.sum() / max(unions.sum(), 1))


def jaccard(prediction: Tube, truth: Tube) -> float:
    """DAVIS' J of one object: IoU of each frame, averaged over all frames.

    A frame where both are empty counts 1: it is right that nothing is there. (DAVIS leaves out the first and last frame
    in its semi-supervised task, where they are given; nothing is given here.)
    """
    intersections, unions = _overlap(prediction, truth)
    return float(np.where(unions > 0, intersections / np.maximum(unions, 1), 1).mean())


def mean_jaccard(pairs: Iterable[tuple[Tube, Tube]]) -> float:
    """Mean :func:`jaccard` of objects, each a pair of prediction and truth; an object counts once, however long."""
    scores = [jaccard(prediction, truth) for prediction, truth in pairs]
    if not scores:
        raise ValueError("the mean Jaccard of no objects is undefined; give at least one pair of tubes")
    return float(np.mean(scores))


class TrueTube(NamedTuple):
    """An object of the ground truth. What matches a ``crowd`` and nothing else is neither right nor wrong.

    A crowd is matched by the same tube IoU, as in YouTube-VIS; COCO's images divide by the prediction's area instead.
    """

    category: Category
    tube: Tube
    crowd: bool = False


class ScoredTube(NamedTuple):
    """A predicted object; higher scores are surer."""

    category: Category
    tube: Tube
    score: float


@dataclass(frozen=True, eq=False)
class TubeMatches:
    """How the predictions of one class fared in one video: all that :func:`video_instance_ap` needs to know of it.

    ``num_truths`` without crowds. ``scores`` float64 ``[D]``, falling, ``D`` at most :data:`MAX_DETECTIONS`.
    ``matched``, ``ignored`` bool ``[10, D]``: who found a truth at each of :data:`IOU_THRESHOLDS`, who only a crowd.
    """

    category: Category
    num_truths: int
    scores: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True)
class VideoInstanceScores:
    """Figures in [0, 1], means over the classes that have truths.

    ``ap``: average precision, mean over IoU 0.50:0.05:0.95; ``ap50``, ``ap75``: at one threshold; ``ar1``, ``ar10``:
    recall of the best one or ten predictions per class and video, mean over the same thresholds. ``per_class``: ``ap``.
    """

    ap: float
    ap50: float
    ap75: float
    ar1: float
    ar10: float
    per_class: dict[Category, float]


def match_tubes(truths: Sequence[TrueTube], predictions: Sequence[ScoredTube]) -> list[TubeMatches]:
    """Match the predictions of one video to its truths, class by class, by falling score as COCO does.

    Each prediction takes the free truth of its class with the largest tube IoU, if that reaches the threshold; failing
    that a crowd, which stays free for others. Of equal scores the earlier goes first. Raises ValueError for tubes of
    different shapes and for scores that are no numbers.
    """
    thresholds = np.array(IOU_THRESHOLDS)[:, None, None]
    found = []
    for category in dict.fromkeys([truth.category for truth in truths] + [claim.category for claim in predictions]):
        own = [truth for truth in truths if truth.category == category]
        claims = [claim for claim in predictions if claim.category == category]
        if not all(math.isfinite(claim.score) for claim in claims):
            raise ValueError(f"scores must be finite, got {[claim.score for claim in claims]} for class {category!r}")
        claims = sorted(claims, key=lambda claim: -claim.score)[:MAX_DETECTIONS]
        overlap = np.array([tube_iou(claim.tube, truth.tube) for claim in claims for truth in own])
        overlap = overlap.reshape(len(claims), len(own))
        crowd = np.array([truth.crowd for truth in own], dtype=bool)
        matched = match_best_free(overlap[:, ~crowd], IOU_THRESHOLDS)
        in_crowd = (overlap[:, crowd] >= thresholds).any(axis=-1)
        scores = np.array([claim.score for claim in claims], dtype=np.float64)
        found.append(TubeMatches(category, int((~crowd).sum()), scores, matched, in_crowd & ~matched))
    return found


def video_instance_ap(matches: Iterable[TubeMatches]) -> VideoInstanceScores:
    """Average precision and recall over the matches of all videos, as the YouTube-VIS and OVIS servers compute them.

    Precision is interpolated and read at 101 recalls, then averaged over recalls, thresholds and classes. Classes
    without truths are left out. Source: Yang et al., Video instance segmentation (2019), section 3.

    Raises ValueError when no class has a truth.
    """
    by_class: dict[Category, list[TubeMatches]] = defaultdict(list)
    for match in matches:
        by_class[match.category].append(match)
    precisions: dict[Category, NDArray[np.float64]] = {}
    recalls: dict[int, list[float]] = {1: [], 10: []}
    for category, parts in by_class.items():
        num_truths = sum(part.num_truths for part in parts)
        if not num_truths:
            continue
        order = np.argsort(-np.concatenate([part.scores for part in parts]), kind="stable")
        matched = np.concatenate([part.matched for part in parts], axis=1)[:, order]
        ignored = np.concatenate([part.ignored for part in parts], axis=1)[:, order]
        precisions[category] = _precision_at_recalls(*precision_recall(matched, num_truths, ignored))
        for limit, values in recalls.items():
            right = sum(part.matched[:, :limit].sum() for part in parts)
            values.append(float(right / num_truths / len(IOU_THRESHOLDS)))
    if not precisions:
        raise ValueError("no class has a true tube, so average precision is undefined")
    per_threshold = np.mean([precision.mean(axis=1) for precision in precisions.values()], axis=0)
    return VideoInstanceScores(
        ap=float(per_threshold.mean()),
        ap50=float(per_threshold[IOU_THRESHOLDS.index(0.5)]),
        ap75=float(per_threshold[IOU_THRESHOLDS.index(0.75)]),
        ar1=float(np.mean(recalls[1])),
        ar10=float(np.mean(recalls[10])),
        per_class={category: float(precision.mean()) for category, precision in precisions.items()},
    )


def compress_counts(counts: Iterable[int]) -> str:
    """COCO's text for the run lengths of a mask: background first, in turns with the object.

    Every count from the fourth on is written as its difference to the one two before it; numbers are cut into digits of
    5 bits, lowest first, the highest one carrying the sign; a sixth bit says that more follow; 48 makes it printable.
    """
    values = list(counts)
    text = []
    for index, count in enumerate(values):
        rest = count - values[index - 2] if index > 2 else count
        more = True
        while more:
            digit, rest = rest & 31, rest >> 5
            more = rest != (-1 if digit & 16 else 0)
            text.append(chr(48 + digit + 32 * more))
    return "".join(text)


def decompress_counts(text: str | bytes) -> NDArray[np.int64]:
    """Inverse of :func:`compress_counts`; raises ValueError for text that it cannot have written."""
    letters = np.frombuffer(text.encode() if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(letters < 32)
    if not letters.size or letters.min() < 0 or letters.max() > 63 or not last.size or last[-1] != letters.size - 1:
        raise ValueError(f"not a compressed COCO mask, or one cut short: {text[:40]!r}")
    sizes = np.diff(last, prepend=-1)
    if sizes.max() > _MAX_DIGITS:
        raise ValueError(f"a compressed COCO mask holds a number of more than 32 bits: {text[:40]!r}")
    first = last - sizes + 1
    places = np.arange(letters.size) - np.repeat(first, sizes)
    counts = np.add.reduceat((letters & 31) << (5 * places), first)
    counts -= np.where(letters[last] & 16, 1 << (5 * sizes), 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    return counts


def _parse_rle(segmentation: Mapping[str, Any], height: int, width: int) -> NDArray[np.int64]:
    """Runs ``[R, 2]`` of one frame."""
    if not isinstance(segmentation, Mapping):
        raise ValueError("polygons are not read; turn them into RLE first, with pycocotools.mask.frPyObjects and merge")
    if list(segmentation.get("size", [])) != [height, width]:
        raise ValueError(f"expected a mask of size {[height, width]}, got {segmentation.get('size')}")
    counts = segmentation.get("counts", ())
    lengths = decompress_counts(counts) if isinstance(counts, str | bytes) else np.array(counts, dtype=np.int64)
    if lengths.sum() != height * width or lengths.min() < 0:
        raise ValueError(f"the run lengths of a mask of {height}x{width} sum to {lengths.sum()}, or some are negative")
    runs: NDArray[np.int64] = lengths.cumsum()[: len(lengths) // 2 * 2].reshape(-1, 2)
    return runs[runs[:, 0] < runs[:, 1]]


def _overlap(a: Tube, b: Tube) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels of each frame that lie in both tubes, and in at least one; int64 ``[T]``."""
    if a.shape != b.shape:
        raise ValueError(f"tubes of one video have one shape (frames, rows, columns), got {a.shape} and {b.shape}")
    frames, height, width = a.shape
    borders = np.unique(np.concatenate([a.runs, b.runs]))
    # between two borders nothing changes, and an odd number of a tube's own borders behind means inside
    starts, lengths = borders[:-1], np.diff(borders)
    in_a, in_b = (np.searchsorted(tube.runs.ravel(), starts, side="right") % 2 == 1 for tube in (a, b))
    both, either = (
        np.bincount(starts // (height * width), weights=lengths * inside, minlength=frames).astype(np.int64)
        for inside in (in_a & in_b, in_a | in_b)
    )
    return both, either


def _precision_at_recalls(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolated precision at the 101 recalls, 0 where a recall is not reached; ``[thresholds, 101]``."""
    rows = [np.append(p, 0)[np.searchsorted(r, _RECALLS)] for r, p in zip(recall, precision, strict=True)]
    return np.stack(rows)
