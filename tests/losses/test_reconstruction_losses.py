import math

import pytest
import torch
from torch import Tensor

from pyratok.losses import charbonnier_loss, l1_loss, log_mse_loss, ssim_loss
from pyratok.metrics import psnr, ssim

LOSSES = (l1_loss, charbonnier_loss, ssim_loss)


def videos(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator) * 2 - 1
    noise = 0.3 * torch.randn(shape, generator=generator)
    return (target + noise).clamp(-1, 1), target


@pytest.mark.parametrize(("height", "width"), [(32, 48), (11, 11), (6, 40), (5, 9), (2, 3), (1, 1)])
def test_ssim_loss_is_what_torchmetrics_measures(height: int, width: int) -> None:
    reconstruction, target = videos(2, 3, 4, height, width)
    measured = 1 - ssim(reconstruction, target).mean()
    torch.testing.assert_close(ssim_loss(reconstruction, target), measured, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_videos_cost_nothing(loss) -> None:
    _, target = videos(1, 3, 2, 24, 24)
    assert loss(target, target).item() == pytest.approx(0, abs=2e-3 if loss is charbonnier_loss else 1e-6)


def test_log_mse_is_what_a_mean_psnr_asks_for() -> None:
    reconstruction, target = videos(3, 3, 2, 8, 8)
    reconstruction[0] = target[0] + 0.1 * (reconstruction[0] - target[0])
    decibels = [float(psnr(a[None], b[None], mode="video")) for a, b in zip(reconstruction, target, strict=True)]
    # Peak to peak is 2: 20 log10(2) - 10 log10(mse).
    wanted = 20 * math.log10(2) - 10 / math.log(10) * log_mse_loss(reconstruction, target).item()
    assert sum(decibels) / 3 == pytest.approx(wanted, abs=1e-4)
    assert log_mse_loss(target, target).item() == pytest.approx(math.log(1e-6))


@pytest.mark.parametrize("loss", [*LOSSES, log_mse_loss])
def test_closer_is_cheaper(loss) -> None:
    reconstruction, target = videos(2, 3, 2, 24, 24)
    costs = [loss(target + strength * (reconstruction - target), target).item() for strength in (0.1, 0.3, 1.0)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient(loss) -> None:
    reconstruction, target = (x.double() for x in videos(1, 2, 1, 7, 8))
    assert torch.autograd.gradcheck(loss, (reconstruction.requires_grad_(), target))


@pytest.mark.parametrize("loss", LOSSES)
def test_flat_frames_have_finite_gradients(loss) -> None:
    flat = torch.zeros(1, 3, 2, 16, 16, requires_grad=True)
    loss(flat, torch.full_like(flat, -1)).backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_low_precision_is_computed_in_float32(loss) -> None:
    reconstruction, target = (x.bfloat16() for x in videos(1, 3, 2, 24, 24))
    wanted = loss(reconstruction.float(), target.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(reconstruction, target)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_must_agree(loss) -> None:
    _, target = videos(1, 3, 2, 16, 16)
    for other in (target[:, :1], target[0], target[:, :, :0]):
        with pytest.raises(ValueError, match="same shape"):
            loss(other, target)


def test_l1_is_the_mean_absolute_error() -> None:
    target = torch.zeros(1, 3, 2, 4, 4)
    assert l1_loss(target + 0.25, target).item() == 0.25
    assert charbonnier_loss(target + 0.25, target, epsilon=0.1).item() == pytest.approx(math.hypot(0.25, 0.1))


@pytest.mark.slow
def test_ssim_loss_compiles_whole() -> None:
    reconstruction, target = videos(1, 3, 2, 24, 24)
    compiled = torch.compile(ssim_loss, fullgraph=True)
    torch.testing.assert_close(compiled(reconstruction, target), ssim_loss(reconstruction, target))
