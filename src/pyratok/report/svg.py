"""Plots as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 38, 82, 12, 28
LABEL_GAP = 15.0


@dataclass(frozen=True)
class Line:
    """One curve: its label, its colour (any CSS colour) and a value per frame."""

    label: str
    colour: str
    values: Sequence[float]


def line_chart(lines: Sequence[Line], *, title: str, decimals: int) -> str:
    """Curves over frames, each named at its right end; ``.cursor`` is a line that a script may move."""
    frames = len(lines[0].values)
    values = [value for line in lines for value in line.values]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(frame: float) -> float:
        return LEFT + (right - LEFT) * frame / max(1, frames - 1)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - low) / (high - low)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for frame in frame_ticks(frames):
        parts.append(f'<text class="tick" x="{x(frame):.1f}" y="{bottom + 20}" text-anchor="middle">{frame}</text>')
    parts.append(f'<line class="cursor" data-x0="{LEFT}" data-x1="{right}" x1="{LEFT}" x2="{LEFT}"')
    parts.append(f' y1="{TOP}" y2="{bottom}"/>')
    heights = spread([y(line.values[-1]) for line in lines], LABEL_GAP)
    for line, height in zip(lines, heights, strict=True):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line.values))
        mean = sum(line.values) / frames
        parts.append(f'<polyline points="{points}" style="stroke:{line.colour}"/>')
        parts.append(f'<text class="label" x="{right + 8}" y="{height + 4:.1f}" style="fill:{line.colour}">')
        parts.append(f"{escape(line.label)} <tspan>{mean:.{decimals}f}</tspan></text>")
    return "".join([*parts, "</svg>"])


def bit_bars(means: Sequence[float], colour: str) -> str:
    """How often each bit is +1: a bar per bit around the half, which is best; dashed lines at 0.1 and 0.9."""
    step, height = 12, 44
    width = step * len(means)
    parts = [f'<svg class="bits" viewBox="0 0 {width} {height}" role="img" aria-label="share of +1 of every bit">']
    for share in (0.1, 0.9):
        parts.append(f'<line class="limit" x1="0" x2="{width}" y1="{height * share:.1f}" y2="{height * share:.1f}"/>')
    for bit, mean in enumerate(means):
        top, size = height * (1 - max(mean, 0.5)), max(1.0, height * abs(mean - 0.5))
        shape = f'x="{bit * step + 1.5}" y="{top:.1f}" width="{step - 3}" height="{size:.1f}"'
        parts.append(f'<rect {shape} style="fill:{colour}"><title>bit {bit}: {mean:.0%} are +1</title></rect>')
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{height / 2}" y2="{height / 2}"/></svg>')
    return "".join(parts)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers, at least two, that enclose ``low`` and ``high``."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def frame_ticks(frames: int, count: int = 8) -> list[int]:
    """Frame numbers under the axis, from 0, evenly apart."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 20, 40, 50, 100, 200, 500, 1000, 10**9) if frames / s <= count)
    return list(range(0, frames, step))


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The same positions in the same order, moved as little as needed to be ``gap`` apart."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[int]] = []

    def centre(group: list[int]) -> float:
        return sum(positions[i] for i in group) / len(group)

    def reach(group: list[int]) -> float:
        return gap * (len(group) - 1) / 2

    for index in order:
        groups.append([index])
        while len(groups) > 1:
            before, after = groups[-2], groups[-1]
            if centre(after) - reach(after) - centre(before) - reach(before) >= gap:
                break
            groups[-2:] = [before + after]
    placed = [0.0] * len(positions)
    for group in groups:
        for rank, index in enumerate(group):
            placed[index] = centre(group) - reach(group) + gap * rank
    return placed
