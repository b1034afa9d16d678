"""Zero-shot temporal localization: when does something happen?

```
q^(1) ── text features, mean over space ── cosine with the query ── a score per step
      ── a score per frame ── mean over a sliding window ── threshold ── connected runs ── spans in seconds
```

Source: PyraTok (arXiv 2601.16210), sec. 4: windows of 25 frames at stride 1, then the longest connected run with the
best mean, again and again for more actions. The paper names no threshold; ours is relative to the clip, since cosines
differ from query to query by more than they do within a clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pyratok.model.base import VideoTokenizer
from pyratok.tasks.classification import check_texts, embed_texts
from pyratok.tasks.steps import Tokens, step_edges, step_vectors
from pyratok.types import Geometry

WINDOW = 25
"""Frames."""
THRESHOLD = 0.5
"""Half the way up: with it, an action longer than the window ends where it does, however the window blurs its ends."""
GROUND = 0.5
"""The median: an action takes less than half of its clip."""
DIGITS = 6
ROUNDING = 10**-DIGITS
"""Cosines that differ by less than this are the same."""


class Span(NamedTuple):
    """``query`` is what happens from ``start`` to ``end``, in seconds of the video; ``score`` is a mean cosine."""

    query: str
    start: float
    end: float
    score: float


class Run(NamedTuple):
    """Frames ``first .. end - 1`` and the mean of their smoothed scores, to six digits."""

    first: int
    end: int
    score: float


def localize(
    model: VideoTokenizer,
    tokens: Tokens,
    queries: Sequence[str],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    ground: float = GROUND,
    absolute: bool = False,
    most: int = 5,
) -> tuple[Span, ...]:
    """When each query happens in a clip: at most ``most`` spans per query, those of all queries together, best first.

    The spans of a query are the runs that :func:`find_runs` finds in its frame scores, so they are disjoint and lie
    within the clip. In a part of a longer video times count from the start of that video.

    Raises ValueError for more than one clip, an unknown frame rate, queries as
    :func:`~pyratok.tasks.classification.check_texts` and settings as :func:`find_runs`.
    """
    _rate(tokens.geometry)
    return spans_of(
        frame_scores(model, tokens, queries),
        tokens.geometry,
        queries,
        window=window,
        threshold=threshold,
        ground=ground,
        absolute=absolute,
        most=most,
    )


def spans_of(
    scores: Tensor,
    geometry: Geometry,
    queries: Sequence[str],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    ground: float = GROUND,
    absolute: bool = False,
    most: int = 5,
) -> tuple[Span, ...]:
    """:func:`localize` from the ``scores`` ``[Q, t]`` that :func:`frame_scores` gave of tokens of that geometry."""
    fps, edges, spans = _rate(geometry), step_edges(geometry, 0), []
    for query, row in zip(queries, scores.double().numpy(), strict=True):
        per_frame = np.repeat(row, np.diff(edges))
        for run in find_runs(
            per_frame, window=window, threshold=threshold, ground=ground, absolute=absolute, most=most
        ):
            start, end = ((edges[0] + frame) / fps for frame in (run.first, run.end))
            spans.append(Span(query, float(start), float(end), run.score))
    return tuple(sorted(spans, key=lambda span: -span.score))


def _rate(geometry: Geometry) -> float:
    if geometry.fps is None:
        raise ValueError(
            "these tokens have no frame rate, so their actions have no seconds; for a video, set it: "
            "replace(tokens, geometry=replace(tokens.geometry, fps=25.0))"
        )
    return geometry.fps


def frame_scores(model: VideoTokenizer, tokens: Tokens, queries: Sequence[str]) -> Tensor:
    """Cosine of every query with every step of level 1, which is dense in time: float32 ``[Q, t]``, in [-1, 1].

    :func:`~pyratok.tasks.steps.step_edges` of level 0 says which frames a step covers; steps of padding alone have
    no score. Raises ValueError for more than one clip, tokens of another model, and queries as
    :func:`~pyratok.tasks.classification.check_texts`.
    """
    if tokens.batch_size != 1:
        raise ValueError(f"one clip at a time, got a batch of {tokens.batch_size}; take tokens.select(i)")
    words = embed_texts(model, check_texts(queries, "query"))
    steps = F.normalize(step_vectors(model, tokens, level=0)[0], dim=-1)
    return (words @ steps.T).float().cpu()


def find_runs(
    scores: NDArray[np.float64],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    ground: float = GROUND,
    absolute: bool = False,
    most: int = 5,
) -> list[Run]:
    """Runs of frames whose smoothed score reaches the threshold, best mean first and, of equal ones, longest first.

    ``scores`` float64 ``[T]``. Smoothed is the mean over ``window`` frames around each one, the clip being mirrored
    at its ends. ``threshold`` in (0, 1] is the share of the way from the ground, where the clip does something
    else, to the maximum of the smoothed scores. The ground is the quantile ``ground`` of the scores before or after
    smoothing, whichever is lower, since the window spreads an action over what surrounds it: by default the median;
    choose less for clips that may be filled by their action. A clip that looks the same throughout has no runs. If
    ``absolute``, the threshold is a cosine.

    Taking a run away leaves the others as they are, so all are found at once, and the ``most`` best of them returned.

    Raises ValueError for a window or ``most`` below 1, a threshold or ground out of range.
    """
    for name, value in (("window", window), ("most", most)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not (-1 <= threshold <= 1 if absolute else 0 < threshold <= 1):
        meaning = "a cosine in [-1, 1]" if absolute else "a share in (0, 1]; for a cosine say absolute=True"
        raise ValueError(f"threshold is {meaning}, got {threshold}")
    if not 0 <= ground < 1:
        raise ValueError(f"ground is a quantile in [0, 1), got {ground}")
    smooth = _smoothed(scores, window)
    top, bottom = float(smooth.max()), float(min(np.quantile(x, ground) for x in (scores, smooth)))
    if not absolute and top - bottom < ROUNDING:
        return []
    least = threshold if absolute else top - (1 - threshold) * (top - bottom)
    changes = np.flatnonzero(np.diff(smooth >= least - ROUNDING, prepend=False, append=False))
    ends = changes.reshape(-1, 2).tolist()
    runs = [Run(first, end, round(float(smooth[first:end].mean()), DIGITS)) for first, end in ends]
    return sorted(runs, key=lambda run: (-run.score, run.first - run.end))[:most]


def _smoothed(scores: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means over ``scores[i - window // 2 : i + (window + 1) // 2]``."""
    wide = np.pad(scores, (window // 2, (window - 1) // 2), mode="symmetric")
    return np.convolve(wide, np.full(window, 1 / window), mode="valid")
