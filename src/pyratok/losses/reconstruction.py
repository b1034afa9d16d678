"""Pixel losses on videos ``[B, 3, T, H, W]`` in [-1, 1]; each returns a scalar, float32 or wider, never clamped."""

from __future__ import annotations

import torch
from torch import Tensor

from pyratok.metrics.reconstruction import check_videos, ssim_window


def l1_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    x, y = _wide(reconstruction, target)
    return (x - y).abs().mean()


def log_mse_loss(reconstruction: Tensor, target: Tensor, floor: float = 1e-6) -> Tensor:
    """Mean over clips of the natural logarithm of a clip's mean squared error, at least ``floor``.

    What a mean PSNR asks for: 1 nat is 4.34 dB, on a clip that is easy as on one that is hard.
    """
    x, y = _wide(reconstruction, target)
    return (x - y).square().mean(dim=(1, 2, 3, 4)).clamp_min(floor).log().mean()


def charbonnier_loss(reconstruction: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of ``sqrt(error^2 + epsilon^2)``: L1 with a smooth foot; never below ``epsilon``."""
    x, y = _wide(reconstruction, target)
    return ((x - y).square() + epsilon**2).sqrt().mean()


def ssim_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """``1 - SSIM``, mean over frames: exactly what :func:`pyratok.metrics.ssim` measures, with a gradient.

    Videos are mapped to [0, 1] first, because SSIM's luminance term has no meaning for values around zero. Every
    channel of every frame is smoothed by two matrix products, so a step costs little on small training crops.
    """
    x, y = ((video + 1) / 2 for video in _wide(reconstruction, target))
    height, width = target.shape[-2:]
    with torch.autocast(x.device.type, enabled=False):
        rows = _gaussian_matrix(height, x)
        columns = _gaussian_matrix(width, x)
        moments = torch.stack([x, y, x * x + y * y, x * y])
        mean_x, mean_y, square, product = rows @ (moments @ columns.mT)
    # (0.01 R)^2 and (0.03 R)^2 of Wang et al. (2004) at range R = 1
    c1, c2 = 1e-4, 9e-4
    mean_square, mean_product = mean_x.square() + mean_y.square(), mean_x * mean_y
    variances = (square - mean_square).clamp_min(0)
    covariance = product - mean_product
    luminance = (2 * mean_product + c1) / (mean_square + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    loss: Tensor = 1 - (luminance * structure).mean()
    return loss


def _wide(reconstruction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both videos, checked, in float32 or the wider type they have."""
    check_videos(reconstruction, target)
    dtype = torch.promote_types(torch.promote_types(reconstruction.dtype, target.dtype), torch.float32)
    return reconstruction.to(dtype), target.to(dtype)


def _gaussian_matrix(side: int, like: Tensor) -> Tensor:
    """``[side, side]`` matrix that smooths a column of ``side`` pixels with SSIM's window and reflected borders."""
    radius, sigma = ssim_window(side)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(like.dtype) / sigma) ** 2)
    taps = torch.arange(side, device=like.device).unsqueeze(1) + offsets
    reflected = (side - 1) - ((side - 1) - taps.abs()).abs()
    matrix = torch.zeros(side, side, device=like.device, dtype=like.dtype)
    return matrix.scatter_add_(1, reflected, (weights / weights.sum()).expand_as(taps))
