"""Temporal action localization: tIoU, average precision per class, mAP; and the matching that mask tubes share with it.

The rules are ActivityNet's own evaluation, THUMOS14's too: predictions of a class are taken by falling score; each
takes, among the true spans of its video that are still free, the one it overlaps most, if that reaches the threshold,
and is a false alarm otherwise. AP is the area under the precision-recall curve with interpolated precision, all points
(VOC 2010 and later).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

THUMOS14_TIOUS = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET_TIOUS = tuple(percent / 100 for percent in range(50, 100, 5))


class TrueSpan(NamedTuple):
    """An action that happens: from ``start`` to ``end``, in seconds."""

    video: str
    label: str
    start: float
    end: float


class ScoredSpan(NamedTuple):
    """An action that is claimed to happen; higher scores are surer."""

    video: str
    label: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class LocalizationScores:
    """Mean AP of the classes, in [0, 1]: at every threshold, and averaged over the thresholds.

    ``per_class`` holds the AP of each class at every threshold.
    """

    thresholds: tuple[float, ...]
    mean_ap: tuple[float, ...]
    average: float
    per_class: dict[str, tuple[float, ...]]


def temporal_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of every span ``[start, end]`` of ``a`` (``[N, 2]``) with every one of ``b``; ``[N, M]``.

    Two spans of no length have 0 in common. Raises ValueError for a span that ends before it starts, or is not finite.
    """
    starts_a, ends_a = (column[:, None] for column in _spans(a).T)
    starts_b, ends_b = _spans(b).T
    shared = (np.minimum(ends_a, ends_b) - np.maximum(starts_a, starts_b)).clip(min=0)
    covered = (ends_a - starts_a) + (ends_b - starts_b) - shared
    return np.divide(shared, covered, out=np.zeros_like(covered), where=covered > 0)


def localization_ap(
    truths: Iterable[TrueSpan], predictions: Iterable[ScoredSpan], thresholds: Sequence[float] = THUMOS14_TIOUS
) -> LocalizationScores:
    """Average precision of every class that occurs in ``truths``, and its means.

    A class that nobody predicts counts 0. Predictions of a class without truths count nowhere: it has no AP. For a
    split into seen and unseen classes give the truths of one side. Of equal scores the earlier prediction goes first.
    Raises ValueError without truths, for thresholds outside (0, 1], scores that are not finite, spans as in
    :func:`temporal_iou`.
    """
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"tIoU thresholds lie in (0, 1], got {thresholds}")
    true_spans: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for truth in truths:
        true_spans[truth.label][truth.video].append((truth.start, truth.end))
    _spans([span for videos in true_spans.values() for spans in videos.values() for span in spans])
    if not true_spans:
        raise ValueError("there is no true span, so no class has an average precision")
    claims: dict[str, dict[str, list[ScoredSpan]]] = defaultdict(lambda: defaultdict(list))
    for claim in predictions:
        if not math.isfinite(claim.score):
            raise ValueError(f"scores must be finite, got {claim}")
        claims[claim.label][claim.video].append(claim)

    per_class = {}
    for label, videos in true_spans.items():
        scores, correct = [np.zeros(0)], [np.zeros((len(thresholds), 0), dtype=bool)]
        for video, spans in claims[label].items():
            spans.sort(key=lambda span: -span.score)
            overlap = temporal_iou([(span.start, span.end) for span in spans], videos.get(video, []))
            scores.append(np.array([span.score for span in spans]))
            correct.append(match_best_free(overlap, thresholds))
        order = np.argsort(-np.concatenate(scores), kind="stable")
        recall, precision = precision_recall(np.concatenate(correct, axis=1)[:, order], sum(map(len, videos.values())))
        area = (np.diff(recall, axis=1, prepend=0) * precision).sum(axis=1)
        per_class[label] = tuple(area.tolist())
    mean_ap = np.mean(list(per_class.values()), axis=0)
    return LocalizationScores(tuple(thresholds), tuple(mean_ap.tolist()), float(mean_ap.mean()), per_class)


def match_best_free(overlap: NDArray[np.float64], thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """Which predictions find a truth of their own: ``[thresholds, D]`` from overlaps ``[D, G]``, rows by falling score.

    Every row takes the free truth of largest overlap, if that reaches the threshold; of equal ones the last, as in the
    reference evaluations of COCO and ActivityNet.
    """
    num_predictions, num_truths = overlap.shape
    matched = np.zeros((len(thresholds), num_predictions), dtype=bool)
    if not num_truths:
        return matched
    enough = np.array(thresholds)[:, None]
    each = np.arange(len(thresholds))
    taken = np.zeros((len(thresholds), num_truths), dtype=bool)
    for index, row in enumerate(overlap):
        possible = (row >= enough) & ~taken
        best = num_truths - 1 - np.where(possible, row, -1)[:, ::-1].argmax(axis=1)
        matched[:, index] = possible[each, best]
        taken[each, best] |= matched[:, index]
    return matched


def precision_recall(
    matched: NDArray[np.bool_], num_truths: int, ignored: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and interpolated precision after each prediction, both like ``matched``: ``[..., D]`` by falling score.

    Interpolated: the best precision at this recall or a higher one. ``ignored`` predictions are not counted, unless
    they matched.
    """
    right = matched.cumsum(axis=-1)
    counted = np.ones_like(matched) if ignored is None else matched | ~ignored
    precision = right / np.maximum(counted.cumsum(axis=-1), 1)
    return right / num_truths, np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _spans(values: ArrayLike) -> NDArray[np.float64]:
    spans = np.asarray(values, dtype=np.float64)
    spans = spans if spans.size else spans.reshape(0, 2)
    if spans.shape[1:] != (2,):
        raise ValueError(f"expected spans [N, 2] of start and end, got {list(spans.shape)}")
    wrong = ~(np.isfinite(spans).all(axis=1) & (spans[:, 0] <= spans[:, 1]))
    if wrong.any():
        raise ValueError(f"a span is two finite times, start before end; got {spans[wrong][0].tolist()}")
    return spans
