"""Plots as SVG files that stand alone, on white, so that they read in any page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from pyratok.report.svg import nice_ticks, spread

COLOURS = ("#2f6fb3", "#c8693c", "#5b8c3e", "#8a5aa8", "#7a7a7a")
WIDTH = 640
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600; font-size: 13px }
.grid { stroke: #ddd }
.faint { fill: #777 }
polyline { fill: none; stroke-width: 2 }
"""


def bars(rows: Sequence[tuple[str, Mapping[str, float]]], *, title: str) -> str:
    """Groups of horizontal bars from zero: a label for the group, and a named value for each bar."""
    left, right, thick, gap, top = 150, 60, 16, 14, 56
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    longest = max((value for _, values in rows for value in values.values()), default=0.0) or 1.0
    ticks = nice_ticks(0.0, longest)
    height = top + sum(len(values) * thick + gap for _, values in rows) + 24
    scale = (WIDTH - left - right) / ticks[-1]
    parts = [*_legend(names)]
    for tick in ticks:
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 24}"/>')
        parts.append(f'<text class="faint" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tick:g}</text>')
    y = float(top)
    for label, values in rows:
        middle = y + len(values) * thick / 2 + 4
        parts.append(f'<text x="{left - 10}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for name, value in values.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            parts.append(
                f'<rect x="{left}" y="{y:.1f}" width="{value * scale:.1f}" height="{thick - 3}" fill="{colour}"/>'
            )
            parts.append(f'<text class="faint" x="{left + value * scale + 5:.1f}" y="{y + 11:.1f}">{value:.3g}</text>')
            y += thick
        y += gap
    return _page(title, height, parts)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    from_zero: bool = False,
    log_x: bool = False,
) -> str:
    """Lines through points ``(x, y)``, each named at its right end; every x that occurs is written below."""
    left, right, top, height = 56, 130, 40, 300
    bottom, end = height - 46, WIDTH - right
    xs = sorted({x for points in lines.values() for x, _ in points})
    ys = [y for points in lines.values() for _, y in points]
    ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys))

    def place(x: float) -> float:
        low, high, at = (math.log(v) if log_x else v for v in (xs[0], xs[-1], x))
        return left + (end - left) * (at - low) / ((high - low) or 1)

    def level(y: float) -> float:
        return bottom - (bottom - top) * (y - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{end}" y1="{level(tick):.1f}" y2="{level(tick):.1f}"/>')
        parts.append(f'<text class="faint" x="{left - 8}" y="{level(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in xs:
        parts.append(f'<text class="faint" x="{place(x):.1f}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text class="faint" x="{(left + end) / 2}" y="{bottom + 36}" text-anchor="middle">{escape(x_label)}</text>'
    )
    heights = spread([level(points[-1][1]) for points in lines.values()], 15.0)
    for (name, points), at, colour in zip(lines.items(), heights, COLOURS, strict=False):
        drawn = " ".join(f"{place(x):.1f},{level(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" stroke="{colour}"/>')
        parts += [f'<circle cx="{place(x):.1f}" cy="{level(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{end + 10}" y="{at + 4:.1f}" style="fill:{colour}">{escape(name)}</text>')
    return _page(title, height, parts)


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], 16
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="41">{escape(name)}</text>')
        x += 36 + 7 * len(name)
    return parts


def _page(title: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    ground = f'<rect width="{WIDTH}" height="{height:.0f}" rx="6" fill="#fff"/>'
    name = f'<title>{escape(title)}</title><text class="title" x="16" y="22">{escape(title)}</text>'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, name, *parts, "</svg>"]) + "\n"
