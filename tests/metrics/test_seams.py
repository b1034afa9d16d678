"""Seams are seen where they are and nowhere else."""

from __future__ import annotations

import pytest
import torch

from pyratok.metrics.seams import seam_ratio


def noise(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, 2, 64, 64, generator=torch.Generator().manual_seed(seed)) - 0.5


def test_no_seam_is_about_one() -> None:
    assert seam_ratio(noise(), [16, 32], [48]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dim", [3, 4])
def test_a_step_along_a_border_is_seen_and_grows(dim: int) -> None:
    def stepped(height: float) -> float:
        video = noise()
        video.narrow(dim, 32, 32).add_(height)
        borders = ([32], []) if dim == 3 else ([], [32])
        return seam_ratio(video, *borders, untiled=noise())

    assert stepped(0.0) == 1
    assert 1 < stepped(0.3) < stepped(0.6)


def test_an_edge_of_the_picture_is_no_seam() -> None:
    video = noise()
    video[..., 32:] += 0.4
    assert seam_ratio(video, [], [32]) > 1.2
    assert seam_ratio(video, [], [32], untiled=video) == 1


def test_a_flat_picture_has_none() -> None:
    assert seam_ratio(torch.zeros(1, 3, 1, 32, 32), [16], [16]) == 1


def test_a_faint_step_in_a_flat_picture_is_seen() -> None:
    video = torch.zeros(1, 3, 1, 32, 32)
    video[..., 16:] += 2 / 255
    assert seam_ratio(video, [], [16]) > 50


@pytest.mark.parametrize(
    ("rows", "columns", "shape", "match"),
    [
        ([], [], (1, 3, 1, 32, 32), "single tile"),
        ([2], [], (1, 3, 1, 32, 32), "too near"),
        ([16], [], (3, 1, 32, 32), "B, C"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    rows: list[int], columns: list[int], shape: tuple[int, ...], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        seam_ratio(torch.zeros(shape), rows, columns)
