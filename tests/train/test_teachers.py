"""Holding deep features to those of an image encoder."""

from __future__ import annotations

import pytest
import torch

from pyratok.text.references import FrameFeatures
from pyratok.train.teachers import FeatureProjector


def seen(rows: int, columns: int, dim: int = 12) -> FrameFeatures:
    torch.manual_seed(1)
    patches = torch.randn(2, 3, rows * columns, dim)
    return FrameFeatures(patches=patches, pooled=torch.randn(2, 3, dim), grid=(rows, columns))


def tap(channels: int = 8) -> torch.Tensor:
    return torch.randn(2, channels, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (7, 9), (3, 8)])
def test_any_two_grids_can_be_compared(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    projector, features, reference = FeatureProjector(8, 12), tap(), seen(*grid)
    drift, retention = projector.drift(features, reference), projector.retention(features, reference)
    assert drift > 0
    assert 0 <= retention <= 2
    (drift + retention).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(weight.grad is not None and weight.grad.any() for weight in projector.parameters())


def test_features_that_say_the_same_are_at_zero_in_any_scale() -> None:
    projector, features = FeatureProjector(8, 8), tap()
    with torch.no_grad():
        for layer in (projector.cells, projector.frames):
            layer.weight.copy_(torch.eye(8))
            layer.bias.zero_()
    cells = features.detach().flatten(3).permute(0, 2, 3, 1)
    steps = features.detach().mean(dim=(3, 4)).mT
    reference = FrameFeatures(
        patches=5 * cells + 3, pooled=torch.nn.functional.layer_norm(steps, (8,)) * 7, grid=(4, 4)
    )
    torch.testing.assert_close(projector.drift(features, reference), torch.zeros(()), atol=1e-5, rtol=0)
    torch.testing.assert_close(projector.retention(features, reference), torch.zeros(()), atol=1e-5, rtol=0)


def test_learning_brings_both_closer() -> None:
    torch.manual_seed(0)
    projector, features, reference = FeatureProjector(8, 12), tap(), seen(4, 4)
    optimizer = torch.optim.Adam([features, *projector.parameters()], lr=0.05)
    before = None
    for _ in range(20):
        loss = projector.drift(features, reference) + projector.retention(features, reference)
        before = before or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * before
