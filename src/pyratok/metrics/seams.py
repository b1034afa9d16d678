"""How visible the borders of tiles are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Beside a border: near enough to be of the same picture, far enough to be of the inside of a tile.
_BESIDE = (2, 3, 4)
# A hundredth of the square of an 8-bit step in [-1, 1]: flat pictures have no seams, rather than 0 / 0 of them.
_FLOOR = 1e-2 * (2 / 255) ** 2


def seam_ratio(video: Tensor, rows: Sequence[int], columns: Sequence[int], untiled: Tensor | None = None) -> float:
    """Gradient energy across tile borders over that beside them; 1 where a border looks like any other place.

    ``video`` ``[B, C, T, H, W]`` in [-1, 1]; ``rows`` and ``columns``: the first row or column after each border.
    Energy is the mean square of the difference of neighbouring pixels across the line, over all borders together;
    "beside" are the lines 2 to 4 pixels away on both sides. With ``untiled``, the same clip without tiles, the ratio
    is divided by that of ``untiled``, so that edges of the picture that happen to lie on a border cancel.
    Raises ValueError for another shape, no borders, or a border less than 5 pixels from the edge of the frame.
    """
    if video.ndim != 5 or (untiled is not None and untiled.shape != video.shape):
        shapes = [tuple(v.shape) for v in (video, untiled) if v is not None]
        raise ValueError(f"expected videos [B, C, T, H, W] of one shape, got {shapes}")
    if not (rows or columns):
        raise ValueError("expected at least one border, got none: a single tile has no seams")
    ratio = _ratio(video, rows, columns)
    return ratio if untiled is None else ratio / _ratio(untiled, rows, columns)


def _ratio(video: Tensor, rows: Sequence[int], columns: Sequence[int]) -> float:
    across: list[Tensor] = []
    beside: list[Tensor] = []
    for dim, borders in ((3, rows), (4, columns)):
        size = video.shape[dim]
        for border in borders:
            if not max(_BESIDE) < border < size - max(_BESIDE):
                raise ValueError(f"border {border} is too near to the edge of a frame with {size} lines")
            across.append(_energy(video, dim, border))
            beside += [_energy(video, dim, border + side * away) for away in _BESIDE for side in (-1, 1)]
    return float((torch.stack(across).mean() + _FLOOR) / (torch.stack(beside).mean() + _FLOOR))


def _energy(video: Tensor, dim: int, line: int) -> Tensor:
    """Mean square of the step from the line before to ``line``, float64."""
    step = video.select(dim, line).double() - video.select(dim, line - 1).double()
    return step.square().mean()
