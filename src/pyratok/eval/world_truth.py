"""What a clip of a rendered world shows, found by its pixels alone: which thing, of which colour, going which way.

The place is what a pixel shows in most frames, their median, for a thing of a third of the frame's side crosses it.
Every thing of the world is then laid over the place, in every colour, at some sizes and everywhere, and the one wins
that explains best what is not the place: by how much the squared error falls. No network takes part, so none that made
the clip can be flattered.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyratok.data.opencv import opencv
from pyratok.data.scenes import read_sprite
from pyratok.data.sources import shrink
from pyratok.data.world import WAYS, World

FRAMES = 7
"""Frames that are looked at, evenly."""
SIZES = 3
"""How many sizes of a thing are tried, over the range of the world's."""
MIN_EXPLAINED = 0.03
"""Noise of any kind reaches a third of that."""
MIN_WAY = 0.15
"""Of the frame's side; what moves less goes no way."""

Picture = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """``explained``: share of the squared difference from the place that the thing accounts for, at most 1; below
    :data:`MIN_EXPLAINED` there is nothing of the world to be seen. ``way``: None too where the thing hardly moves."""

    noun: str | None
    colour: str | None
    way: str | None
    explained: float


@dataclass(frozen=True, eq=False)
class _Template:
    """A thing at one size: alpha ``[h, w]`` in [0, 1], ``paint`` ``[h, w, 3]`` premultiplied, 0 to 255."""

    noun: str
    colour: str
    alpha: Picture
    paint: Picture


class Detector:
    """Looks at clips of one ``world``, uint8 ``[T, size, size, 3]``."""

    def __init__(self, world: World, size: int) -> None:
        config = world.config
        self.size = size
        self.templates = [
            _template(world, noun, colour, scale * size)
            for noun, colour in itertools.product(config.nouns, config.colours)
            for scale in np.linspace(*config.sizes, SIZES)
        ]

    def look(self, video: NDArray[np.uint8]) -> Sight:
        """Raises ValueError for clips of another size, or of fewer than three frames: there is nothing to compare."""
        if video.ndim != 4 or video.shape[1:] != (self.size, self.size, 3) or len(video) < 3:
            raise ValueError(f"expected three or more frames [T, {self.size}, {self.size}, 3], got {list(video.shape)}")
        place = np.median(video, axis=0).astype(np.float32)
        chosen = np.linspace(0, len(video) - 1, min(FRAMES, len(video))).round().astype(int)
        # What lies over the edge is still a thing: of the frame's continuation nothing is known, and nothing differs.
        pad = math.ceil(max(max(t.alpha.shape) for t in self.templates) / 2)
        differences = [_padded(video[number].astype(np.float32) - place, pad) for number in chosen]
        behind, inside = _padded(place, pad), _padded(np.ones((self.size, self.size, 1), np.float32), pad)[..., 0]
        total = float(sum((difference**2).sum() for difference in differences))
        scored = [(self._explained(t, differences, behind, inside), t) for t in self.templates]
        (gained, where), best = max(scored, key=lambda found: found[0][0])
        explained = gained / total if total else 0.0
        if explained < MIN_EXPLAINED:
            return Sight(noun=None, colour=None, way=None, explained=explained)
        way = _way(where[-1] - where[0], self.size)
        return Sight(noun=best.noun, colour=best.colour, way=way, explained=explained)

    def _explained(
        self, template: _Template, differences: list[Picture], behind: Picture, inside: Picture
    ) -> tuple[float, NDArray[np.float64]]:
        """How much of the squared differences it takes away, where it fits each frame best, and those places (x, y).

        With D the difference, B the place, and C = A T + (1 - A) B the thing over it, D^2 - (D - (C - B))^2 =
        2 D (A T - A B) - (A T - A B)^2, summed over pixels and colours: correlations with kernels of A and A T.
        """
        alpha, paint = template.alpha, template.paint
        squares = _correlate(inside, (paint**2).sum(2)) - 2 * _correlate(behind, paint * alpha[..., None])
        squares = squares + _correlate((behind**2).sum(2), alpha**2)
        gained, places = 0.0, []
        for difference in differences:
            fit = 2 * (_correlate(difference, paint) - _correlate((difference * behind).sum(2), alpha)) - squares
            row, column = np.unravel_index(int(fit.argmax()), fit.shape)
            gained += max(float(fit[row, column]), 0.0)
            places.append((column + alpha.shape[1] / 2, row + alpha.shape[0] / 2))
        return gained, np.array(places)


def _template(world: World, noun: str, colour: str, longest: float) -> _Template:
    picture = read_sprite(world.sprite(noun, colour))[0]
    small = shrink(picture, longest / max(picture.shape[:2])).astype(np.float32)
    return _Template(noun, colour, small[..., 3] / np.float32(255), small[..., :3])


def _correlate(picture: Picture, kernel: Picture) -> Picture:
    """Over all places where the kernel fits in, summed over colours."""
    found: Picture = opencv().matchTemplate(picture, np.ascontiguousarray(kernel), opencv().TM_CCORR)
    return found


def _padded(picture: Picture, pad: int) -> Picture:
    return np.pad(picture, ((pad, pad), (pad, pad), (0, 0)))


def _way(moved: NDArray[np.float64], size: int) -> str | None:
    along = int(np.abs(moved).argmax())
    if abs(moved[along]) < MIN_WAY * size:
        return None
    return next(way for way, step in WAYS.items() if step[along] == np.sign(moved[along]))
