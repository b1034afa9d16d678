from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyratok.losses.retention import feature_kl, frame_retention

Loss = Callable[[Tensor, Tensor], Tensor]

CASES = [(feature_kl, (4, 8, 3, 2, 2)), (feature_kl, (4, 8)), (frame_retention, (4, 5, 8))]
each = pytest.mark.parametrize(("loss", "shape"), CASES, ids=["kl-video", "kl-vector", "frames"])


@each
def test_equal_features_cost_nothing_and_others_something(loss: Loss, shape: tuple[int, ...]) -> None:
    reference = torch.randn(shape)
    assert loss(reference, reference).item() == pytest.approx(0, abs=1e-6)
    assert loss(-reference, reference).item() > 0.1


@each
def test_a_step_against_the_gradient_comes_closer_and_the_reference_stays(loss: Loss, shape: tuple[int, ...]) -> None:
    adapted, reference = torch.randn(2, *shape).unbind()
    adapted, reference = adapted.requires_grad_(), reference.requires_grad_()
    before = loss(adapted, reference)
    before.backward()
    assert reference.grad is None
    assert loss(adapted - adapted.grad, reference) < before


@each
def test_the_mean_over_parts_is_the_whole(loss: Loss, shape: tuple[int, ...]) -> None:
    adapted, reference = torch.randn(2, *shape).unbind()
    parts = [loss(a, r) for a, r in zip(adapted.chunk(2), reference.chunk(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(adapted, reference))


@each
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3, 1e6])
def test_extremes_are_finite(loss: Loss, shape: tuple[int, ...], scale: float) -> None:
    adapted, reference = (scale * torch.randn(2, *shape)).unbind()
    value = loss(adapted.requires_grad_(), reference)
    value.backward()
    assert value.isfinite()
    assert value >= -1e-6
    assert adapted.grad.isfinite().all()


@each
def test_float32_under_autocast(loss: Loss, shape: tuple[int, ...]) -> None:
    adapted, reference = torch.randn(2, *shape).bfloat16().unbind()
    expected = loss(adapted.float(), reference.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(adapted, reference)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@each
def test_shapes_must_agree(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(shape), torch.zeros(shape)[:1])


def test_a_common_shift_of_channels_is_no_drift_and_a_higher_temperature_forgives() -> None:
    adapted, reference = torch.randn(2, 3, 8, 4).unbind()
    assert feature_kl(reference + 5, reference).item() == pytest.approx(0, abs=1e-5)
    drifts = [feature_kl(adapted, reference, temperature).item() for temperature in (0.5, 1, 2, 4)]
    assert drifts == sorted(drifts, reverse=True)


def test_frames_are_compared_by_direction() -> None:
    reference = torch.randn(2, 5, 8)
    assert frame_retention(3 * reference, reference).item() == pytest.approx(0, abs=1e-6)
    assert frame_retention(-reference, reference).item() == pytest.approx(2)
    assert frame_retention(reference.flip(1), reference) > 0
