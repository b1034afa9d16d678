"""What a conventional video codec does at the same rate: x265 through PyAV.

Rates are bits of the real HEVC byte stream (Annex B: parameter sets, slices, nothing else) over ``T * H * W`` of the
unpadded video. The advertisement x265 writes into each stream, 2.3 kB, is switched off in its favour.

RGB goes in and comes out as BT.709, limited range. Chroma is averaged over 2x2 pixels and interpolated around the same
centres, which ffmpeg's own conversion misses by half a pixel, so the codec is not charged for its wrapping. 4:2:0
still bounds the RGB PSNR, at 40 to 51 dB on resized footage; ``yuv444p`` lifts that bound to 52 dB.
"""

from __future__ import annotations

import io
import math
from typing import Literal, NamedTuple, TypeAlias

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from einops import einsum
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pyratok.data.video_base import exact_rate
from pyratok.data.video_pixels import from_uint8
from pyratok.metrics.reconstruction import psnr, ssim

Frames: TypeAlias = NDArray[np.uint8]
PixelFormat = Literal["yuv420p", "yuv444p"]

MAX_CRF = 51.0
_MIN_SIDE = 18
# BT.709: luma weights of red, green, blue; rows are Y, Cb, Cr with chroma in [-0.5, 0.5]
_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722
_RGB_TO_YUV = torch.tensor(
    [
        [_RED, _GREEN, _BLUE],
        [-_RED / (2 - 2 * _BLUE), -_GREEN / (2 - 2 * _BLUE), 0.5],
        [0.5, -_GREEN / (2 - 2 * _RED), -_BLUE / (2 - 2 * _RED)],
    ]
)
_LIMITED_SCALE = torch.tensor([219.0, 224.0, 224.0]).view(3, 1, 1)
_LIMITED_OFFSET = torch.tensor([16.0, 128.0, 128.0]).view(3, 1, 1)


class UnreachableRateError(ValueError):
    """Even the coarsest setting of the codec takes more bits than were asked for."""


class RatePoint(NamedTuple):
    """One point of a rate-distortion curve: bits per pixel, mean PSNR of the frames in dB, mean SSIM."""

    crf: float
    bpp: float
    psnr: float
    ssim: float


def encode_x265(
    frames: Frames,
    fps: float,
    crf: float,
    *,
    preset: str = "medium",
    keyint: int = 12,
    zerolatency: bool = True,
    pixel_format: PixelFormat = "yuv420p",
) -> tuple[bytes, Frames]:
    """HEVC byte stream of ``frames`` (uint8 ``[T, H, W, 3]``, RGB) and what a decoder makes of it, in the same layout.

    The defaults are the anchor of learned video compression: ``-tune zerolatency -x265-params crf=Q:keyint=12``.
    Sides that x265 cannot take (odd, or too small) are padded by repeating the border, and cropped after decoding.
    Raises ValueError for other arrays, rates or settings.
    """
    _check(frames)
    if not 0 <= crf <= MAX_CRF:
        raise ValueError(f"crf is between 0 and {MAX_CRF:g}, got {crf}")
    rate = exact_rate(fps)
    height, width = frames.shape[1:3]
    padding = [(0, max(_MIN_SIDE, side + side % 2) - side) for side in (height, width)]
    padded = np.pad(frames, [(0, 0), *padding, (0, 0)], mode="edge")
    # x265 encodes a video one coding tree unit wide differently at every run
    tree_unit = next(unit for unit in (64, 32, 16) if unit < padded.shape[2] and unit <= padded.shape[1])

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="hevc") as container:
        stream = container.add_stream("libx265", rate=rate)
        stream.height, stream.width = padded.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.options = {
            "preset": preset,
            "x265-params": f"crf={crf:.4f}:keyint={keyint}:ctu={tree_unit}:info=0:log-level=none",
        } | ({"tune": "zerolatency"} if zerolatency else {})
        for index, rgb in enumerate(padded):
            frame = av.VideoFrame.from_ndarray(_rgb_to_yuv(rgb, pixel_format), format=pixel_format)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = buffer.getvalue()

    decoded = _decode(data)
    assert decoded.shape == padded.shape, f"x265 returned {decoded.shape} for {padded.shape}"
    return data, np.ascontiguousarray(decoded[:, :height, :width])


def x265_at_bpp(
    frames: Frames,
    fps: float,
    bpp: float,
    *,
    preset: str = "medium",
    keyint: int = 12,
    zerolatency: bool = True,
    pixel_format: PixelFormat = "yuv420p",
) -> RatePoint:
    """The x265 encode whose rate is closest to, but not above, ``bpp`` bits per pixel, found by bisection over CRF.

    Stops within 1 % of the rate or 0.02 of the CRF: about ten encodes. Settings are those of :func:`encode_x265`.
    Raises :class:`UnreachableRateError` when even CRF 51 needs more, ValueError for other arrays, rates or settings.
    """
    _check(frames)
    pixels = math.prod(frames.shape[:3])

    def encode(crf: float) -> tuple[float, float, Frames]:
        data, decoded = encode_x265(
            frames, fps, crf, preset=preset, keyint=keyint, zerolatency=zerolatency, pixel_format=pixel_format
        )
        return 8 * len(data) / pixels, crf, decoded

    best = encode(MAX_CRF)
    if best[0] > bpp:
        raise UnreachableRateError(f"x265 needs at least {best[0]:.4f} bits per pixel for this video, asked for {bpp}")
    too_fine, fits = 0.0, MAX_CRF
    while fits - too_fine > 0.02 and best[0] < 0.99 * bpp:
        trial = encode((too_fine + fits) / 2)
        if trial[0] > bpp:
            too_fine = trial[1]
        else:
            fits = trial[1]
            # the rate is not quite monotone in CRF
            best = max(best, trial, key=lambda point: point[0])
    rate, crf, decoded = best
    reconstruction, target = from_uint8(decoded), from_uint8(frames)
    return RatePoint(crf, rate, psnr(reconstruction, target).item(), ssim(reconstruction, target).item())


def _decode(data: bytes) -> Frames:
    with av.open(io.BytesIO(data), format="hevc") as container:
        return np.stack([_yuv_to_rgb(frame.to_ndarray(), frame.width) for frame in container.decode(video=0)])


def _rgb_to_yuv(rgb: Frames, pixel_format: PixelFormat) -> Frames:
    """``[H, W, 3]`` to the planes of a frame as PyAV takes them: ``[3, H, W]``, or ``[H * 3/2, W]`` for 4:2:0."""
    yuv = einsum(_RGB_TO_YUV, torch.from_numpy(rgb) / 255, "out rgb, h w rgb -> out h w")
    yuv = yuv * _LIMITED_SCALE + _LIMITED_OFFSET
    if pixel_format == "yuv444p":
        return _rounded(yuv)
    luma, chroma = yuv[:1], F.avg_pool2d(yuv[1:], 2)
    return _rounded(torch.cat([luma.flatten(), chroma.flatten()]).view(-1, rgb.shape[1]))


def _yuv_to_rgb(planes: Frames, width: int) -> Frames:
    """Inverse of :func:`_rgb_to_yuv`."""
    yuv = torch.from_numpy(planes).float()
    if yuv.ndim == 2:
        height = yuv.shape[0] * 2 // 3
        chroma = yuv[height:].reshape(2, height // 2, width // 2)
        chroma = F.interpolate(chroma[None], scale_factor=2, mode="bicubic")[0]
        yuv = torch.cat([yuv[None, :height], chroma])
    yuv = (yuv - _LIMITED_OFFSET) / _LIMITED_SCALE
    return _rounded(255 * einsum(_RGB_TO_YUV.inverse(), yuv, "rgb yuv, yuv h w -> h w rgb"))


def _rounded(values: Tensor) -> Frames:
    rounded: Frames = values.round().clamp(0, 255).to(torch.uint8).contiguous().numpy()
    return rounded


def _check(frames: Frames) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"expected uint8 frames [T, H, W, 3], got {frames.dtype} {frames.shape}")
