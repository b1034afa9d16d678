import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pyratok.metrics import psnr, psnr_per_frame, ssim, ssim_per_frame
from pyratok.metrics.reconstruction import MAX_PSNR


def videos(*shape: int, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator) * 2 - 1
    return target + noise * torch.randn(shape, generator=generator), target


def numpy_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel in [0, 1] by the definition, a window at a time."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    a, b = (np.pad(x.astype(np.float64), 5, mode="reflect") for x in (a, b))
    scores = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = (v[row : row + 11, column : column + 11] for v in (a, b))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            variance_x, variance_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            scores.append(luminance * (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4))
    return float(np.mean(scores))


def test_psnr_against_numpy() -> None:
    reconstruction, target = videos(2, 3, 4, 20, 28)
    a, b = ((x.clamp(-1, 1).double().numpy() + 1) / 2 for x in (reconstruction, target))
    error = (a - b) ** 2
    per_frame = -10 * np.log10(error.mean(axis=(1, 3, 4)))
    np.testing.assert_allclose(psnr_per_frame(reconstruction, target).numpy(), per_frame, rtol=1e-5)
    np.testing.assert_allclose(psnr(reconstruction, target).numpy(), per_frame.mean(1), rtol=1e-5)
    whole = -10 * np.log10(error.mean(axis=(1, 2, 3, 4)))
    np.testing.assert_allclose(psnr(reconstruction, target, mode="video").numpy(), whole, rtol=1e-5)


def test_one_error_per_video_is_never_kinder() -> None:
    reconstruction, target = videos(1, 3, 5, 16, 16)
    reconstruction[:, :, :2] = target[:, :, :2]
    assert psnr(reconstruction, target, mode="video") < psnr(reconstruction, target, mode="frame")


def test_ssim_against_the_definition() -> None:
    reconstruction, target = videos(1, 3, 2, 13, 17)
    a, b = ((x.clamp(-1, 1).numpy() + 1) / 2 for x in (reconstruction, target))
    wanted = [np.mean([numpy_ssim(a[0, c, t], b[0, c, t]) for c in range(3)]) for t in range(2)]
    np.testing.assert_allclose(ssim_per_frame(reconstruction, target)[0].numpy(), wanted, atol=1e-5)


def test_ssim_is_two_dimensional_and_keeps_the_order() -> None:
    reconstruction, target = videos(2, 3, 9, 24, 32)
    reconstruction[1, :, 3] = target[1, :, 3]
    found = ssim_per_frame(reconstruction, target)
    for clip, frame in ((0, 0), (0, 8), (1, 3), (1, 4)):
        a, b = ((x[clip, :, frame].clamp(-1, 1)[None] + 1) / 2 for x in (reconstruction, target))
        torch.testing.assert_close(found[clip, frame], structural_similarity_index_measure(a, b, data_range=1.0))
    torch.testing.assert_close(ssim(reconstruction, target), found.mean(1))


@pytest.mark.parametrize("side", [1, 5, 64])
def test_identical_videos(side: int) -> None:
    _, target = videos(1, 3, 2, side, side)
    assert psnr_per_frame(target, target).tolist() == [[MAX_PSNR] * 2]
    assert psnr(target, target, mode="video").item() == MAX_PSNR
    torch.testing.assert_close(ssim_per_frame(target, target), torch.ones(1, 2))


def test_values_outside_the_range_are_clamped() -> None:
    white = torch.ones(1, 3, 1, 16, 16)
    assert psnr(white * 3, white).item() == MAX_PSNR
    assert psnr(-white, white).item() == pytest.approx(0)
    torch.testing.assert_close(ssim(white * 3, white), torch.ones(1))


def test_low_precision_input() -> None:
    reconstruction, target = (x.bfloat16() for x in videos(1, 3, 2, 16, 16))
    torch.testing.assert_close(psnr(reconstruction, target), psnr(reconstruction.float(), target.float()))
    torch.testing.assert_close(ssim(reconstruction, target), ssim(reconstruction.float(), target.float()))


@pytest.mark.parametrize("metric", [psnr, psnr_per_frame, ssim, ssim_per_frame])
def test_wrong_arguments(metric) -> None:
    _, target = videos(1, 3, 2, 8, 8)
    for other in (target[:, :1], target[0], target[:, :, :1]):
        with pytest.raises(ValueError, match="same shape"):
            metric(other, target)
    with pytest.raises(ValueError, match="mode"):
        psnr(target, target, mode="clip")  # type: ignore[arg-type]
