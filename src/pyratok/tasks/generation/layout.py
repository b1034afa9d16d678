"""Where the words of a pyramid lie, and in which order a prior meets them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

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
    """

    geometry: Geometry
    num_levels: int
    order: Tensor
    level: Tensor
    step: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.order)

    def to(self, device: torch.device) -> Layout:
        moved = {name: getattr(self, name).to(device) for name in ("order", "level", "step", "position")}
        return replace(self, **moved)

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
        """bool ``[n]``: places before which ``<Q-SEP>`` stands."""
        return torch.cat([self.level.new_zeros(1), self.level.diff()]) != 0

    def steps_within(self, places: int) -> int:
        """How many latent steps are whole when the first ``places`` places are."""
        later = self.step[places:]
        return self.geometry.latent_steps if not len(later) else int(later.min())

    def angles(self, head_dim: int) -> Tensor:
        """Rotary angles ``[n, head_dim / 2]``: an equal share of every head turns with each of the four positions."""
        count = head_dim // 8
        speeds = BASE ** -(torch.arange(count, device=self.position.device) / count)
        return (self.position[..., None] * speeds).flatten(1)


@lru_cache(maxsize=32)
def layout_of(geometry: Geometry, order: str, num_levels: int = 0) -> Layout:
    """The places of a clip, level after level or latent step after latent step (PriorConfig.order); of its first
    ``num_levels`` levels, or all."""
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
    step, position = torch.cat(steps), torch.cat(positions)
    by_time = torch.sort(step, stable=True).indices
    places = by_time if order == "time" else torch.arange(len(step))
    return Layout(geometry, num_levels, places, torch.cat(levels)[places], step[places], position[places])
