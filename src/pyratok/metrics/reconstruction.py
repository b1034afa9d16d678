"""PSNR and SSIM of videos ``[B, 3, T, H, W]`` in [-1, 1].

Protocol: values are clamped to [-1, 1] and mapped to [0, 1]; both metrics are taken per frame over RGB, then averaged
over the frames of a clip. SSIM uses a Gaussian window of 11x11 with sigma 1.5 and reflected borders.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

MAX_PSNR = 100.0
"""dB given to identical frames, whose PSNR would be infinite; no frame scores higher."""

_FRAMES_AT_ONCE = 8


def psnr_per_frame(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of every frame, ``[B, T]``, at most :data:`MAX_PSNR`."""
    return _decibels(_squared_error(reconstruction, target).mean(dim=(1, 3, 4)))


def psnr(reconstruction: Tensor, target: Tensor, mode: Literal["frame", "video"] = "frame") -> Tensor:
    """Peak signal-to-noise ratio in dB of every clip, ``[B]``.

    ``mode="frame"`` averages the PSNR of the frames; ``mode="video"`` takes one mean squared error per clip, the
    protocol of TokenBench and LARP, which is never higher.
    """
    if mode == "frame":
        return psnr_per_frame(reconstruction, target).mean(dim=1)
    if mode == "video":
        return _decibels(_squared_error(reconstruction, target).flatten(1).mean(dim=1))
    raise ValueError(f'mode is "frame" or "video", got {mode!r}')


def ssim_per_frame(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of every frame, ``[B, T]``, at most 1; a side below 6 pixels narrows the window.

    Source: Wang et al., Image quality assessment (2004), as computed by torchmetrics.
    """
    # torchmetrics takes a second to import
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_videos(reconstruction, target)
    sigma = tuple(ssim_window(side)[1] for side in target.shape[-2:])
    frames_a, frames_b = (rearrange(_unit_range(x), "b c t h w -> (b t) c h w") for x in (reconstruction, target))
    scores: list[Any] = [
        structural_similarity_index_measure(a, b, sigma=sigma, data_range=1.0, reduction="none")
        for a, b in zip(frames_a.split(_FRAMES_AT_ONCE), frames_b.split(_FRAMES_AT_ONCE), strict=True)
    ]
    return rearrange(torch.cat(scores), "(b t) -> b t", b=target.shape[0])


def ssim(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean structural similarity of every clip, ``[B]``."""
    return ssim_per_frame(reconstruction, target).mean(dim=1)


def ssim_window(side: int) -> tuple[int, float]:
    """Radius in pixels and sigma of the Gaussian window along an axis of ``side`` pixels.

    A reflected border must be smaller than the frame: below 6 pixels both shrink in proportion, down to one pixel.
    """
    radius = min(5, side - 1)
    return radius, 1.5 if radius == 5 else max(radius / 3.5, 0.1)


def check_videos(reconstruction: Tensor, target: Tensor) -> None:
    """Raise ValueError unless both are non-empty videos ``[B, C, T, H, W]`` of one shape."""
    if reconstruction.shape != target.shape or target.ndim != 5 or not target.numel():
        raise ValueError(
            "expected two videos of the same shape [B, C, T, H, W], "
            f"got {tuple(reconstruction.shape)} and {tuple(target.shape)}"
        )


def _unit_range(video: Tensor) -> Tensor:
    """[-1, 1] to float32 in [0, 1], clamped."""
    return video.detach().float().clamp(-1, 1).add(1).div(2)


def _squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    check_videos(reconstruction, target)
    return (_unit_range(reconstruction) - _unit_range(target)).square()


def _decibels(mean_squared_error: Tensor) -> Tensor:
    return -10 * mean_squared_error.clamp_min(10 ** (-MAX_PSNR / 10)).log10()
