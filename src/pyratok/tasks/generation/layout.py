"""Where the words of a pyramid lie, and in which order a prior meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from pyratok.types import Geometry

BASE = 100.0
"""From the fastest to the slowest turn of a rotary position: neighbours are told apart, and so are ends of a clip."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The ``n`` places of a sequence of words, those of the first ``num_levels`` levels.

    ``order`` int64 ``[n]``: place i holds word ``order[i]`` of all levels one after another, each in t, h, w order.
    Per place: ``level`` and latent ``step`` int64, and ``position`` float32 ``[n, 4]``: level, time in latent steps,
    row and column in cells of the finest level. A token stands at the last of its frames, in the centre of its cell.

    Places one behind another make up a stack, which is one place unless the order is ``cell``: ``stack`` and ``depth``
    int64 ``[n]``, which stack it is and how deep in it a place lies; ``at_depth``: int64, the places at depth 0, which
    are the first ones of all stacks, at depth 1 ...
    """

    geometry: Geometry
    num_levels: int
    order: Tensor
    level: Tensor
    step: Tensor
    position: Tensor
    stack: Tensor
    depth: Tensor
    at_depth: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.order)

    def to(self, device: torch.device) -> Layout:
        names = ("order", "level", "step", "position", "stack", "depth")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, at_depth=tuple(places.to(device) for places in self.at_depth))

    def flatten(self, levels: Sequence[Tensor]) -> Tensor:
        """``[B, t, h, w]`` (or ``[t, h, w]`` as one clip) per level to ``[B, n]``."""
        flat = [values.reshape(-1, math.prod(values.shape[-3:])) for values in levels]
        return torch.cat(flat, dim=1)[:, self.order]

    def unflatten(self, places: Tensor) -> tuple[Tensor, ...]:
        """Inverse of :meth:`flatten`, batch axis kept."""
        grids = [self.geometry.grid(level) for level in range(self.num_levels)]
        flat = torch.empty_like(places)
        flat[:, self.order] = places
        parts = flat.split([math.prod(grid) for grid in grids], dim=1)
        return tuple(part.reshape(-1, *grid) for part, grid in zip(parts, grids, strict=True))

    @property
    def begins_level(self) -> Tensor:
        """bool, of every stack: does ``<Q-SEP>`` stand before it?"""
        level = self.level[self.at_depth[0]]
        return torch.cat([level.new_zeros(1), level.diff()]) != 0

    def steps_within(self, places: int) -> int:
        """How many latent steps are whole when the first ``places`` places are."""
        later = self.step[places:]
        return self.geometry.latent_steps if not len(later) else int(later.min())

    def angles(self, head_dim: int) -> Tensor:
        """Rotary angles ``[stacks, head_dim / 2]``, where the first places of stacks are: an equal share of every head
        turns with each of the four positions."""
        count, position = head_dim // 8, self.position[self.at_depth[0]]
        speeds = BASE ** -(torch.arange(count, device=position.device) / count)
        return (position[..., None] * speeds).flatten(1)


@lru_cache(maxsize=32)
def layout_of(geometry: Geometry, order: str, num_levels: int = 0) -> Layout:
    """The places of a clip in that order (PriorConfig.order); of its first ``num_levels`` levels, or all."""
    num_levels = num_levels or len(geometry.strides)
    finest = [min(stride[axis] for stride in geometry.strides) for axis in (1, 2)]
    levels, steps, positions = [], [], []
    for level, (t, h, w) in enumerate(geometry.strides[:num_levels]):
        grid = geometry.grid(level)
        cell = torch.cartesian_prod(*(torch.arange(size) for size in grid))
        levels.append(torch.full((len(cell),), level))
        per_step = geometry.latent_stride // t
        steps.append((cell[:, 0] + per_step - 1) // per_step)
        time = cell[:, 0] / per_step
        row, column = ((cell[:, axis] + 0.5) * s / f for axis, s, f in zip((1, 2), (h, w), finest, strict=True))
        positions.append(torch.stack([torch.full_like(time, level), time, row, column], dim=1))
    of_level, step, position = torch.cat(levels), torch.cat(steps), torch.cat(positions)
    depths = depths_of(geometry.strides[:num_levels]) if order == "cell" else [0] * num_levels
    depth, places = torch.tensor(depths)[of_level], torch.arange(len(step))
    if order == "cell":
        cells = torch.cat([torch.arange(len(part)) for part in levels])
        for key in (depth, cells, of_level - depth):
            places = places[key[places].argsort(stable=True)]
    if order != "level":
        places = places[step[places].argsort(stable=True)]
    depth = depth[places]
    return Layout(
        geometry=geometry,
        num_levels=num_levels,
        order=places,
        level=of_level[places],
        step=step[places],
        position=position[places],
        stack=(depth == 0).cumsum(0) - 1,
        depth=depth,
        at_depth=tuple((depth == number).nonzero()[:, 0] for number in range(max(depths) + 1)),
    )


def depths_of(strides: Sequence[tuple[int, ...]]) -> list[int]:
    """How many levels of the same grid are right before each level."""
    depths = [0]
    for before, stride in pairwise(strides):
        depths.append(depths[-1] + 1 if stride == before else 0)
    return depths
