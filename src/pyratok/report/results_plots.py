"""Rate-distortion curves as inline SVG, for the page of results and as a file of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pyratok.report.results_records import Curve
from pyratok.report.svg import BOTTOM, HEIGHT, LABEL_GAP, LEFT, TOP, WIDTH, nice_ticks, spread

COLOURS = ("#5561d8", "#d9902f", "#2b9a62", "#d2574c", "#2089a8", "#a2489f")
"""Told apart on light and on dark ground."""
RIGHT = 158
LABEL_LENGTH = 21
QUALITIES = {"psnr": ("PSNR, dB", 1), "ssim": ("SSIM", 2)}
TOKENS = "pyra"
"""What the curve of token files is called in a record."""
STYLE = """
  svg { background: #fff; color: #1a1c22; font-family: system-ui, sans-serif; } text { font-size: 12px; }
  .grid { stroke: #e2e2dc; } .tick { fill: #5f6470; } .label { font-weight: 650; } .title { fill: currentColor; }
  polyline { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
  @media (prefers-color-scheme: dark) {
    svg { background: #1a1c22; color: #ecedf1; } .grid { stroke: #2c2f38; } .tick { fill: #9da2af; }
  }
"""


@dataclass(frozen=True)
class RateLine:
    """One curve over bits per pixel: its label, its colour (any CSS colour), points of rate and quality."""

    label: str
    colour: str
    points: tuple[tuple[float, float], ...]


def rate_lines(curves: Mapping[str, Curve], quality: str) -> list[RateLine]:
    """The curves that have this quality, each in its colour."""
    named = enumerate(curves.items())
    lines = [
        RateLine(
            label=label,
            colour=COLOURS[index % len(COLOURS)],
            points=tuple(sorted((p["bits_per_pixel"], p[quality]) for p in points if p.get(quality) is not None)),
        )
        for index, (label, points) in named
    ]
    return [line for line in lines if line.points]


def rate_chart(lines: Sequence[RateLine], title: str, decimals: int) -> str:
    """Quality over bits per pixel, whose axis is logarithmic; each curve named at its right end."""
    rates = [rate for line in lines for rate, _ in line.points]
    qualities = [quality for line in lines for _, quality in line.points]
    ticks = nice_ticks(min(qualities), max(qualities))
    low, high = ticks[0], ticks[-1]
    first, last = math.log2(min(rates)), math.log2(max(rates))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(rate: float) -> float:
        return LEFT + (right - LEFT) * (math.log2(rate) - first) / ((last - first) or 1)

    def y(quality: float) -> float:
        return bottom - (bottom - TOP) * (quality - low) / (high - low)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        number = f"{tick:.{decimals + 1}f}".rstrip("0").rstrip(".")
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{number}</text>')
    for rate in rate_ticks(min(rates), max(rates)):
        parts.append(f'<text class="tick" x="{x(rate):.1f}" y="{bottom + 20}" text-anchor="middle">{rate:g}</text>')
    heights = spread([y(line.points[-1][1]) for line in lines], LABEL_GAP)
    for line, height in zip(lines, heights, strict=True):
        shape = " ".join(f"{x(rate):.1f},{y(quality):.1f}" for rate, quality in line.points)
        parts.append(f'<polyline points="{shape}" style="stroke:{line.colour}"/>')
        for rate, quality in line.points:
            where = f'cx="{x(rate):.1f}" cy="{y(quality):.1f}" r="3"'
            said = f"{escape(line.label)}: {quality:.{decimals + 1}f} at {rate:.4f} bits per pixel"
            parts.append(f'<circle {where} style="fill:{line.colour}"><title>{said}</title></circle>')
        too_long = len(line.label) > LABEL_LENGTH
        name = f"{line.label[: LABEL_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}" if too_long else line.label
        parts.append(f'<text class="label" x="{right + 10}" y="{height + 4:.1f}" style="fill:{line.colour}">')
        parts.append(f"{escape(name)}</text>")
    return "".join([*parts, "</svg>"])


def rate_ticks(low: float, high: float) -> list[float]:
    """Numbers 1, 2 or 5 times a power of ten between two rates; the ends where there are none."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [round(m * 10.0**ten, 10) for ten in tens for m in (1, 2, 5)]
    return [rate for rate in found if low <= rate <= high] or sorted({low, high})


def rate_distortion_svg(curves: Mapping[str, Curve]) -> str:
    """A whole SVG file: PSNR and SSIM of every codec over bits per pixel, one chart below the other."""
    parts, top = [], 0
    for quality, (title, decimals) in QUALITIES.items():
        if lines := rate_lines(_named(curves), quality):
            drawn = rate_chart(lines, title, decimals).replace("<svg ", f'<svg x="0" y="{top + 28}" ', 1)
            head = f'<text class="title" x="{LEFT}" y="{top + 20}">{title} over bits per pixel</text>'
            parts += [head, drawn.replace("viewBox", f'width="{WIDTH}" height="{HEIGHT}" viewBox', 1)]
            top += HEIGHT + 40
    size = f'viewBox="0 0 {WIDTH} {top}" width="{2 * WIDTH}" height="{2 * top}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{"".join(parts)}</svg>\n'


def _named(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {"pyratok" if name == TOKENS else name: points for name, points in curves.items()}
