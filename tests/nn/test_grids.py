from __future__ import annotations

import pytest
import torch
from einops import reduce, repeat
from torch import nn

from pyratok.nn.grids import Fold, Resample
from pyratok.types import Stride

WIDTH = 4
MOVES = [((1, 32, 32), (4, 8, 8)), ((1, 16, 8), (2, 16, 8)), ((2, 16, 16), (2, 8, 16)), ((4, 8, 8), (4, 8, 8))]
FOLDS = [((1, 4, 4), (1, 16, 16)), ((1, 4, 4), (4, 8, 8)), ((2, 8, 8), (4, 8, 8)), ((4, 8, 8), (4, 8, 8))]


def grid(stride: Stride, frames: int = 17, side: int = 64) -> tuple[int, int, int]:
    return 1 + (frames - 1) // stride[0], side // stride[1], side // stride[2]


def features(stride: Stride, channels: int = WIDTH) -> torch.Tensor:
    return torch.randn(2, channels, *grid(stride))


def randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_resampling_starts_as_average_in_time_and_repetition_in_space(source: Stride, target: Stride) -> None:
    q, steps = features(source), target[0] // source[0]
    rest = reduce(q[:, :, 1:], "b c (t s) h w -> b c t h w", "mean", s=steps)
    averaged = torch.cat([q[:, :, :1], rest], dim=2)
    expected = repeat(averaged, "b c t h w -> b c t (h y) (w x)", y=source[1] // target[1], x=source[2] // target[2])
    out = Resample(WIDTH, source, target)(q)
    assert out.shape[2:] == grid(target)
    torch.testing.assert_close(out, expected)


def test_same_grid_costs_nothing() -> None:
    module, q = Resample(WIDTH, (4, 8, 8), (4, 8, 8)), features((4, 8, 8))
    assert not list(module.parameters())
    assert torch.equal(module(q), q)


@pytest.mark.parametrize(("tap", "target"), FOLDS)
def test_folding_gives_the_grid(tap: Stride, target: Stride) -> None:
    assert Fold(3, WIDTH, tap, target)(features(tap, 3)).shape == (2, WIDTH, *grid(target))


def check_reach(module: nn.Module, source: Stride, target: Stride, channels: int) -> None:
    """Step j of the target sees the source's steps up to its own last frame and after the previous one's, no others."""
    x = features(source, channels)
    whole, ratio = module(x), target[0] // source[0]
    for step in range(x.shape[2]):
        changed = x.clone()
        changed[:, :, step] += 1
        touched = (module(changed) - whole).abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()
        assert touched == [-(-step // ratio)]


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_resampling_is_causal_and_local(source: Stride, target: Stride) -> None:
    check_reach(randomized(Resample(WIDTH, source, target)), source, target, WIDTH)


@pytest.mark.parametrize(("tap", "target"), FOLDS)
def test_folding_is_causal_and_local(tap: Stride, target: Stride) -> None:
    check_reach(randomized(Fold(3, WIDTH, tap, target)), tap, target, 3)


@pytest.mark.parametrize(("tap", "target"), FOLDS)
def test_a_cell_sees_its_own_pixels_only(tap: Stride, target: Stride) -> None:
    module, x = randomized(Fold(3, WIDTH, tap, target)), features(tap, 3)
    height, width = target[1] // tap[1], target[2] // tap[2]
    changed = x.clone()
    changed[..., height : 2 * height, width : 2 * width] += 1
    rows_columns = (module(changed) - module(x)).abs().amax(dim=(0, 1, 2)).nonzero().tolist()
    assert rows_columns == [[1, 1]]
