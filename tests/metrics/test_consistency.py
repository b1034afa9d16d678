import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.metrics.consistency import temporal_consistency

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def walk(frames: int = 6, width: int = 16) -> Tensor:
    return torch.randn(frames, width, generator=torch.Generator().manual_seed(0)).cumsum(0)


@pytest.mark.parametrize(
    ("embeddings", "expected"),
    [
        ([[1, 0], [1, 0]], 100),
        ([[1, 0], [0, 1]], 0),
        ([[1, 0], [-1, 0]], -100),
        ([[1, 0], [1, 1], [0, 1]], 100 / math.sqrt(2)),
        ([[1, 0], [1, 0], [0, 1]], 50),
    ],
)
def test_by_hand(embeddings: list[list[float]], expected: float) -> None:
    assert temporal_consistency(torch.tensor(embeddings, dtype=torch.float32)) == pytest.approx(expected)


@relaxed
@given(st.lists(st.floats(1e-30, 1e30), min_size=6, max_size=6))
def test_length_does_not_matter(lengths: list[float]) -> None:
    scaled = walk().double() * torch.tensor(lengths, dtype=torch.float64)[:, None]
    assert temporal_consistency(scaled) == pytest.approx(temporal_consistency(walk()), rel=1e-6)


def test_a_still_video_is_consistent_and_a_shuffled_one_less() -> None:
    assert temporal_consistency(walk()[:1].expand(5, -1)) == pytest.approx(100)
    steady = torch.stack([torch.linspace(0, 2, 9).cos(), torch.linspace(0, 2, 9).sin()], dim=1)
    assert temporal_consistency(steady) == pytest.approx(100 * math.cos(0.25))
    assert temporal_consistency(steady.flip(0)) == pytest.approx(temporal_consistency(steady))
    assert temporal_consistency(steady[[0, 5, 1, 6, 2, 7, 3, 8, 4]]) < temporal_consistency(steady)


def test_low_precision_input() -> None:
    half = walk().bfloat16().requires_grad_()
    assert temporal_consistency(half) == pytest.approx(temporal_consistency(half.detach().double()))


@pytest.mark.parametrize("wrong", [torch.ones(1, 4), torch.ones(4), torch.ones(2, 3, 4)])
def test_other_shapes_are_refused(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="at least two frames"):
        temporal_consistency(wrong)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_embeddings_without_direction_are_refused(value: float) -> None:
    embeddings = torch.ones(3, 4)
    embeddings[1] = value
    with pytest.raises(ValueError, match="finite embedding other than zero"):
        temporal_consistency(embeddings)
