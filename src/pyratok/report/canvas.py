"""Pictures made of boxes, words and images, as SVG or as pixels."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pyratok.report.lettering import HEIGHT, lettering
from pyratok.report.png import encode_png

Pixels = NDArray[np.uint8]
Anchor = Literal["start", "middle", "end"]

PIXELS_PER_UNIT = 2
CAPITAL = 0.7
"""Height of a capital letter, of the size of its font."""


@dataclass(frozen=True)
class Box:
    """``colour`` is ``#rrggbb``."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Words:
    """``y`` is where letters stand."""

    x: float
    y: float
    text: str
    colour: str
    size: float = 12
    anchor: Anchor = "start"


@dataclass(frozen=True, eq=False)
class Image:
    """``pixels`` uint8 RGB ``[H, W, 3]``, stretched to the box."""

    x: float
    y: float
    width: float
    height: float
    pixels: Pixels


@dataclass
class Canvas:
    """``shapes`` in the order in which they are painted on white ground; lengths in CSS pixels."""

    width: int
    height: int
    title: str
    shapes: list[Box | Words | Image] = field(default_factory=list)

    def svg(self) -> str:
        """A file of its own, which needs no other."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="system-ui, sans-serif">'
        ground = Box(0, 0, self.width, self.height, "#ffffff")
        body = map(_element, [ground, *self.shapes])
        text = "\n".join([head, f"<title>{_xml(self.title)}</title>", *body, "</svg>"])
        return text + "\n"

    def pixels(self) -> Pixels:
        """uint8 RGB, :data:`PIXELS_PER_UNIT` to a CSS pixel."""
        out = np.full((self.height * PIXELS_PER_UNIT, self.width * PIXELS_PER_UNIT, 3), 255, np.uint8)
        for shape in self.shapes:
            _paint(out, shape)
        return out


def _element(shape: Box | Words | Image) -> str:
    place = f'x="{shape.x:.2f}" y="{shape.y:.2f}"'
    if isinstance(shape, Words):
        look = f'font-size="{shape.size:g}" fill="{shape.colour}" text-anchor="{shape.anchor}"'
        return f"<text {place} {look}>{_xml(shape.text)}</text>"
    size = f'width="{shape.width:.2f}" height="{shape.height:.2f}"'
    if isinstance(shape, Image):
        data = base64.b64encode(encode_png(shape.pixels)).decode("ascii")
        return f'<image {place} {size} preserveAspectRatio="none" href="data:image/png;base64,{data}"/>'
    seen = "" if shape.opacity == 1 else f' fill-opacity="{shape.opacity:g}"'
    return f'<rect {place} {size} fill="{shape.colour}"{seen} shape-rendering="crispEdges"/>'


def _xml(text: str) -> str:
    """Escaped, without what XML cannot hold."""
    return escape("".join(letter for letter in text if letter.isprintable()))


def _paint(out: Pixels, shape: Box | Words | Image) -> None:
    if isinstance(shape, Words):
        scale = max(1, round(shape.size * CAPITAL * PIXELS_PER_UNIT / HEIGHT))
        ink = lettering(shape.text, scale)
        before = {"start": 0, "middle": ink.shape[1] // 2, "end": ink.shape[1]}[shape.anchor]
        left = round(shape.x * PIXELS_PER_UNIT) - before
        top = round(shape.y * PIXELS_PER_UNIT) - ink.shape[0]
        rows, columns = np.nonzero(ink)
        rows, columns = rows + top, columns + left
        inside = (rows >= 0) & (rows < out.shape[0]) & (columns >= 0) & (columns < out.shape[1])
        out[rows[inside], columns[inside]] = _rgb(shape.colour)
        return
    top, bottom, left, right = (
        max(0, round(edge * PIXELS_PER_UNIT))
        for edge in (shape.y, shape.y + shape.height, shape.x, shape.x + shape.width)
    )
    area = out[top:bottom, left:right]
    if isinstance(shape, Box):
        area[:] = (area * (1 - shape.opacity) + _rgb(shape.colour) * shape.opacity).round()
        return
    rows, columns = (
        np.arange(there) * given // max(1, wanted)
        for there, wanted, given in zip(area.shape, (bottom - top, right - left), shape.pixels.shape, strict=False)
    )
    area[:] = shape.pixels[rows[:, None], columns]


def _rgb(colour: str) -> Pixels:
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
