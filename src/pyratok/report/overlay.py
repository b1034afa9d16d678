"""Masks over their video: every word in a colour of its own, named in a legend below the picture."""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyratok.data.video_io import VideoWriter, to_uint8
from pyratok.report.lettering import ADVANCE, HEIGHT, lettering
from pyratok.tasks.segmentation import Segmentation

Pixels = NDArray[np.uint8]

OPACITY = 0.45
GOLDEN = (math.sqrt(5) - 1) / 2
SHORT_SIDE = 256
"""Smaller pictures are enlarged by a whole number, until they reach it."""
GROUND, INK = 24, 240
FRAMES_AT_ONCE = 16


def word_colours(count: int) -> Pixels:
    """RGB ``[count, 3]``, far apart: hues go round by the golden ratio, so more words leave the first as they are."""
    colours = [colorsys.hsv_to_rgb((0.02 + i * GOLDEN) % 1, 0.82, 1.0) for i in range(count)]
    return (255 * np.array(colours).reshape(count, 3)).round().astype(np.uint8)


def save_overlay(video: Tensor, segmentation: Segmentation, path: str | os.PathLike[str], *, fps: float | None) -> None:
    """Write the overlay of a clip ``[1, 3, T, H, W]`` in [-1, 1] as a video or, with T = 1, as an image.

    ``fps`` None for an image alone. Raises :class:`~pyratok.data.video_io.VideoError` as
    :class:`~pyratok.data.video_io.VideoWriter`.
    """
    clip, masks = video[0], segmentation.masks.numpy()
    with VideoWriter(path, fps=fps) as writer:
        for start in range(0, clip.shape[1], FRAMES_AT_ONCE):
            part = slice(start, start + FRAMES_AT_ONCE)
            writer.write(overlay(to_uint8(clip[:, part]), masks[:, part], segmentation.words))


def overlay(frames: Pixels, masks: NDArray[np.bool_], words: Sequence[str]) -> Pixels:
    """``frames`` uint8 ``[T, H, W, 3]`` with ``masks`` ``[W, T, H, W]`` tinted and outlined, and the legend below."""
    factor = math.ceil(SHORT_SIDE / min(frames.shape[1:3]))
    out = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    for small, colour in zip(masks, word_colours(len(words)), strict=True):
        mask = small.repeat(factor, axis=1).repeat(factor, axis=2)
        out[mask] = (out[mask] * (1 - OPACITY) + colour * OPACITY).round().astype(np.uint8)
        out[outline(mask)] = colour
    below = legend(words, out.shape[2])
    return np.concatenate([out, np.broadcast_to(below, (len(out), *below.shape))], axis=1)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask ``[T, H, W]`` beside one that is not; the border of the picture is no outline."""
    wide = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    inner = wide[:, :-2, 1:-1] & wide[:, 2:, 1:-1] & wide[:, 1:-1, :-2] & wide[:, 1:-1, 2:]
    edge: NDArray[np.bool_] = mask & ~inner
    return edge


def legend(words: Sequence[str], width: int) -> Pixels:
    """A colour and its word, side by side as long as there is room, in lines of ``width``: uint8 ``[h, width, 3]``."""
    scale = max(1, round(width / 160))
    letter, line, gap = ADVANCE * scale, (HEIGHT + 5) * scale, 4 * scale
    swatch = HEIGHT * scale
    room = (width - 3 * gap - swatch) // letter
    shown = [word if len(word) <= room else word[: max(0, room - 2)] + ".." for word in words]
    places, x, y = [], gap, 0
    for word in shown:
        size = swatch + gap + len(word) * letter
        if x > gap and x + size > width:
            x, y = gap, y + line
        places.append((x, y + (line - swatch) // 2))
        x += size + 2 * gap
    height = y + line
    out = np.full((height + height % 2, width, 3), GROUND, np.uint8)
    for word, (x, y), colour in zip(shown, places, word_colours(len(words)), strict=True):
        out[y : y + swatch, x : x + swatch] = colour
        ink = lettering(word, scale)[:, : max(0, width - x - swatch - gap)]
        out[y : y + swatch, x + swatch + gap :][:, : ink.shape[1]][ink] = INK
    return out
