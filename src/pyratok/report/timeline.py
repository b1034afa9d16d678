"""When something happens in a clip: a row per query, the score of every step, and the spans that were found."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pyratok.report.canvas import Box, Canvas, Image, Pixels, Words
from pyratok.report.overlay import word_colours
from pyratok.report.svg import nice_ticks
from pyratok.tasks.localization import Span

WIDTH, LEFT, RIGHT = 960, 64, 24
CHART, ROW = 64, 112
"""Heights of the bars of a query, and of all that belongs to it."""
INK, SOFT, LINE = "#1a1c22", "#5f6470", "#d5d5cf"
DARKER = 0.8
"""Colours that shine over a video are too light on white."""
NARROWEST = 1.0
LABEL_ROOM = 150.0


def timeline(
    title: str,
    queries: Sequence[str],
    scores: NDArray[np.float64],
    edges: NDArray[np.float64],
    spans: Sequence[Span],
    stills: Sequence[Pixels] = (),
) -> Canvas:
    """The picture of a search in time.

    ``scores`` ``[Q, t]``: cosines; step j lasts from ``edges[j]`` to ``edges[j + 1]`` seconds, ``edges`` ``[t + 1]``.
    ``stills``: frames of the clip, uint8 ``[H, W, 3]``, of parts of equal length, shown above. Each query has a scale
    of its own, from its least to its greatest score, which stand beside it.
    """
    strip = _strip_height(stills)
    top = 56 + (strip + 16 if stills else 0)
    canvas = Canvas(WIDTH, round(top + ROW * len(queries) + 32), title)
    canvas.shapes.append(Words(LEFT, 32, title, INK, 16))
    width = (WIDTH - LEFT - RIGHT) / max(1, len(stills))
    for place, still in enumerate(stills):
        canvas.shapes.append(Image(LEFT + place * width + 1, 48, width - 2, strip, still))
    colours = ["#" + bytes((colour * DARKER).astype(np.uint8)).hex() for colour in word_colours(len(queries))]
    for row, (query, values, colour) in enumerate(zip(queries, scores, colours, strict=True)):
        own = [span for span in spans if span.query == query]
        _draw_query(canvas, top + row * ROW, query, values, edges, own, colour)
    _draw_axis(canvas, top + ROW * len(queries), edges)
    return canvas


def _draw_query(
    canvas: Canvas,
    top: float,
    query: str,
    scores: NDArray[np.float64],
    edges: NDArray[np.float64],
    spans: Sequence[Span],
    colour: str,
) -> None:
    shapes, base = canvas.shapes, top + ROW - 16
    low, high = float(scores.min()), float(scores.max())
    shapes.append(Words(LEFT, top + 12, query, colour, 14))
    shapes.append(Words(LEFT - 8, base - CHART + 9, f"{high:.2f}", SOFT, 11, "end"))
    shapes.append(Words(LEFT - 8, base, f"{low:.2f}", SOFT, 11, "end"))
    for span in spans:
        begin, end = (_x(time, edges) for time in (span.start, span.end))
        shapes.append(Box(begin, base - CHART, end - begin, CHART, colour, 0.16))
    times, values = _columns(edges, scores)
    for (start, end), value in zip(pairwise(times), values, strict=True):
        height = CHART * (value - low) / (high - low) if high > low else CHART / 2
        found = any(span.start < end and start < span.end for span in spans)
        begin, stop = _x(start, edges), _x(end, edges)
        shapes.append(Box(begin, base - height, stop - begin, height, colour, 0.9 if found else 0.3))
    shapes.append(Box(LEFT, base, WIDTH - LEFT - RIGHT, 1, LINE))
    free = float(LEFT)
    for span in sorted(spans, key=lambda span: span.start):
        x = min(_x(span.start, edges), WIDTH - RIGHT - LABEL_ROOM)
        if x >= free:  # of spans that begin close together the first one is named
            shapes.append(Words(x, base - CHART - 4, span_text(span), INK, 11))
            free = x + LABEL_ROOM
    if not spans:
        shapes.append(Words(WIDTH - RIGHT, top + 12, "not found", SOFT, 11, "end"))


def span_text(span: Span) -> str:
    return f"{span.start:.2f} - {span.end:.2f} s ({span.score:.3f})"


def _draw_axis(canvas: Canvas, y: float, edges: NDArray[np.float64]) -> None:
    start, end = float(edges[0]), float(edges[-1])
    for tick in nice_ticks(start, end, 10):
        if start <= tick <= end:
            x = _x(tick, edges)
            canvas.shapes.append(Box(x, y - 15, 1, 6, SOFT))
            canvas.shapes.append(Words(x, y + 6, f"{tick:g} s", SOFT, 11, "middle"))


def _x(time: float, edges: NDArray[np.float64]) -> float:
    share = (time - edges[0]) / (edges[-1] - edges[0])
    return float(LEFT + (WIDTH - LEFT - RIGHT) * share)


def _columns(edges: NDArray[np.float64], scores: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Edges and means of as many neighbouring steps as make a bar of some width."""
    most = int((WIDTH - LEFT - RIGHT) / NARROWEST)
    starts = np.unique(np.linspace(0, len(scores), min(most, len(scores)), endpoint=False).astype(int))
    counts = np.diff([*starts, len(scores)])
    return [*edges[starts].tolist(), float(edges[-1])], (np.add.reduceat(scores, starts) / counts).tolist()


def _strip_height(stills: Sequence[Pixels]) -> int:
    if not stills:
        return 0
    height, width = stills[0].shape[:2]
    return round((WIDTH - LEFT - RIGHT) / len(stills) * height / width)
