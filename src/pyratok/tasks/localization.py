"""Zero-shot temporal localization: when does something happen?

```
q^(l) ── text features, pooled over space ── cosine with the query ── a score per step
      ── a score per frame ── mean over a sliding window ── threshold ── connected runs ── spans in seconds
```

Source: PyraTok (arXiv 2601.16210), sec. 4: windows of 25 frames at stride 1, then the longest connected run with the
best mean, again and again for more actions. The paper names no threshold; ours is a share of the best score of the
clip, since cosines differ from query to query. A share is reached by any curve, so ``FLOOR`` stands beside it.

The paper reads level 1. By default we read the last level, whose steps are half as many in pyratok-nano and say more
(docs/understanding.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pyratok.model.base import VideoTokenizer
from pyratok.tasks.classification import check_texts, embed_texts
from pyratok.tasks.steps import Tokens, held_level, step_edges, step_vectors
from pyratok.types import Geometry

WINDOW = 25
"""Frames."""
THRESHOLD = 0.5
"""Half the way up: with it, an action longer than the window ends where it does, however the window blurs its ends."""
FLOOR = 0.04
"""Cosine that the best frame of an action has, smoothed: less, or a negative one, is none however far it rises above
the rest. Unrelated vectors of 384 dimensions have cosines of 0 +- 0.05."""
RISE = 0.01
"""Cosine. Where the ground is that of the clip, one whose best window lies less than this above it looks the same
throughout."""
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


class Curves(NamedTuple):
    """``scores`` float32 ``[Q, t]``: the cosine of each query with each step, which covers the frames
    ``edges[j] .. edges[j + 1] - 1`` of the video; ``edges`` int64 ``[t + 1]``."""

    scores: Tensor
    edges: NDArray[np.int64]


def localize(
    model: VideoTokenizer,
    tokens: Tokens,
    queries: Sequence[str],
    *,
    level: int = -1,
    **settings: Any,
) -> tuple[Span, ...]:
    """When each query happens in a clip: at most ``most`` spans per query, those of all queries together, best first.

    ``settings``: window, threshold, ground, floor, absolute and most of :func:`find_runs`. The spans of a query are the
    runs that it finds in the scores frame by frame, so they are disjoint and lie within the clip. In a part of a longer
    video times count from the start of that video.

    Raises ValueError for more than one clip, an unknown frame rate, a level that is not there, queries as
    :func:`~pyratok.tasks.classification.check_texts` and settings as :func:`find_runs`.
    """
    fps = rate_of(tokens.geometry)
    return spans_of(score_curves(model, tokens, queries, level), fps, queries, **settings)


def spans_of(curves: Curves, fps: float, queries: Sequence[str], **settings: Any) -> tuple[Span, ...]:
    """:func:`localize` from what :func:`score_curves` gave."""
    edges, spans = curves.edges, []
    for query, row in zip(queries, curves.scores.double().numpy(), strict=True):
        per_frame = np.repeat(row, np.diff(edges))
        for run in find_runs(per_frame, **settings):
            start, end = ((edges[0] + frame) / fps for frame in (run.first, run.end))
            spans.append(Span(query, float(start), float(end), run.score))
    return tuple(sorted(spans, key=lambda span: -span.score))


def rate_of(geometry: Geometry) -> float:
    """Frames per second. Raises ValueError where the tokens do not know them."""
    if geometry.fps is None:
        raise ValueError(
            "these tokens have no frame rate, so their actions have no seconds; for a video, set it: "
            "replace(tokens, geometry=replace(tokens.geometry, fps=25.0))"
        )
    return geometry.fps


def score_curves(model: VideoTokenizer, tokens: Tokens, queries: Sequence[str], level: int = -1) -> Curves:
    """How well every query goes with every step of a level of one clip.

    Raises ValueError for more than one clip, tokens of another model, a level that is not there, and queries as
    :func:`~pyratok.tasks.classification.check_texts`.
    """
    if tokens.batch_size != 1:
        raise ValueError(f"one clip at a time, got a batch of {tokens.batch_size}; take tokens.select(i)")
    level = held_level(tokens, level)
    words = embed_texts(model, check_texts(queries, "query"))
    steps = F.normalize(step_vectors(model, tokens, level)[0], dim=-1)
    return Curves((words @ steps.T).float().cpu(), step_edges(tokens.geometry, level))


def find_runs(
    scores: NDArray[np.float64],
    *,
    window: int = WINDOW,
    threshold: float = THRESHOLD,
    ground: float | None = None,
    floor: float = FLOOR,
    absolute: bool = False,
    most: int = 5,
) -> list[Run]:
    """Runs of frames whose smoothed score reaches the threshold, best mean first and, of equal ones, longest first.

    ``scores`` float64 ``[T]``. Smoothed is the mean over ``window`` frames around each one, the clip being mirrored
    at its ends. ``threshold`` in (0, 1] is the share of the way from the ground to the maximum of the smoothed scores;
    if ``absolute``, a cosine, and alone decides. The best frame of a run reaches ``floor``.

    The ground is a cosine of 0, where unrelated things lie. In a text space where everything has much in common, let it
    be the quantile ``ground`` of the scores before or after smoothing, whichever is lower, since the window spreads an
    action over what surrounds it: 0.5, their median, where an action takes less than half of its clip. A clip that
    rises by less than ``RISE`` above such a ground has no runs.

    Taking a run away leaves the others as they are, so all are found at once, and the ``most`` best of them returned.

    Raises ValueError for a window or ``most`` below 1, a threshold or ground out of range.
    """
    for name, value in (("window", window), ("most", most)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not (-1 <= threshold <= 1 if absolute else 0 < threshold <= 1):
        meaning = "a cosine in [-1, 1]" if absolute else "a share in (0, 1]; for a cosine say absolute=True"
        raise ValueError(f"threshold is {meaning}, got {threshold}")
    if ground is not None and not 0 <= ground < 1:
        raise ValueError(f"ground is a quantile in [0, 1), or None for a cosine of 0, got {ground}")
    if not -1 <= floor <= 1:
        raise ValueError(f"floor is a cosine in [-1, 1], got {floor}")
    smooth = _smoothed(scores, window)
    top = float(smooth.max())
    bottom = 0.0 if ground is None else float(min(np.quantile(x, ground) for x in (scores, smooth)))
    if not absolute and top - bottom < (ROUNDING if ground is None else RISE):
        return []
    least = threshold if absolute else top - (1 - threshold) * (top - bottom)
    changes = np.flatnonzero(np.diff(smooth >= least - ROUNDING, prepend=False, append=False))
    ends = changes.reshape(-1, 2).tolist()
    if not absolute:
        ends = [pair for pair in ends if smooth[slice(*pair)].max() >= floor - ROUNDING]
    runs = [Run(first, end, round(float(smooth[first:end].mean()), DIGITS)) for first, end in ends]
    return sorted(runs, key=lambda run: (-run.score, run.first - run.end))[:most]


def _smoothed(scores: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Means over ``scores[i - window // 2 : i + (window + 1) // 2]``."""
    wide = np.pad(scores, (window // 2, (window - 1) // 2), mode="symmetric")
    return np.convolve(wide, np.full(window, 1 / window), mode="valid")
