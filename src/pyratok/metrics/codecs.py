"""What conventional video codecs do at the same rate: x264, x265 and SVT-AV1 through PyAV.

Rates are bits of the real byte stream (Annex B of H.264 and HEVC, the low-overhead format of AV1: parameter sets and
coded pictures, nothing else) over ``T * H * W`` of the unpadded video. The advertisement that x264 and x265 write into
each stream, 0.6 and 2.3 kB, is left out in their favour.

RGB goes in and comes out as BT.709, limited range. Chroma is averaged over 2x2 pixels and interpolated around the same
centres, which ffmpeg's own conversion misses by half a pixel, so a codec is not charged for its wrapping. 4:2:0
still bounds the RGB PSNR, at 40 to 51 dB on resized footage; ``yuv444p``, which SVT-AV1 cannot take, lifts that bound
to 52 dB.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
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

KEYINT = 12
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


@dataclass(frozen=True, kw_only=True)
class Codec:
    """An encoder of FFmpeg as it is compared with: low delay, a key picture every 12 frames, constant rate factor.

    ``stream``: FFmpeg's name of the bare byte stream; ``options`` of a CRF and a padded height and width;
    ``bitstream_filter``: what leaves advertisements out. ``settings`` says in a protocol what was done.
    """

    name: str
    encoder: str
    stream: str
    preset: str
    max_crf: float
    whole_crf: bool = False
    settings: str
    options: Callable[[float, int, int], dict[str, str]]
    bitstream_filter: str | None = None

    def check(self) -> None:
        """Raises ValueError where this build of FFmpeg lacks the encoder."""
        if self.encoder not in av.codecs_available:
            raise ValueError(
                f"the FFmpeg that PyAV was built with has no {self.encoder}; leave {self.name} out, or install the "
                "wheel of PyAV, which has it: pip install --force-reinstall --no-deps --only-binary :all: av"
            )


def _x264(crf: float, height: int, width: int) -> dict[str, str]:
    # zerolatency cuts pictures into as many slices as there are threads, so bits would depend on the computer
    return {"tune": "zerolatency", "x264-params": f"crf={crf:.4f}:keyint={KEYINT}:threads=1:log-level=none"}


def _x265(crf: float, height: int, width: int) -> dict[str, str]:
    # x265 encodes a video one coding tree unit wide differently at every run
    tree_unit = next(unit for unit in (64, 32, 16) if unit < width and unit <= height)
    params = f"crf={crf:.4f}:keyint={KEYINT}:ctu={tree_unit}:info=0:log-level=none"
    return {"tune": "zerolatency", "x265-params": params}


def _svtav1(crf: float, height: int, width: int) -> dict[str, str]:
    return {"crf": f"{crf:.0f}", "g": str(KEYINT), "svtav1-params": "pred-struct=1:lp=1"}


CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(
            name="x264",
            encoder="libx264",
            stream="h264",
            preset="medium",
            max_crf=51.0,
            settings="medium, tune zerolatency, keyint 12, one thread, yuv420p",
            options=_x264,
            bitstream_filter="filter_units=remove_types=6",
        ),
        Codec(
            name="x265",
            encoder="libx265",
            stream="hevc",
            preset="medium",
            max_crf=51.0,
            settings="medium, tune zerolatency, keyint 12, yuv420p",
            options=_x265,
        ),
        Codec(
            name="svtav1",
            encoder="libsvtav1",
            stream="obu",
            preset="6",
            max_crf=63.0,
            whole_crf=True,
            settings="preset 6, low delay, keyint 12, yuv420p",
            options=_svtav1,
        ),
    )
}


def encode(
    codec: Codec,
    frames: Frames,
    fps: float,
    crf: float,
    *,
    preset: str | None = None,
    pixel_format: PixelFormat = "yuv420p",
) -> tuple[bytes, Frames]:
    """Byte stream of ``frames`` (uint8 ``[T, H, W, 3]``, RGB) and what a decoder makes of it, in the same layout.

    That of x265 is the anchor of learned video compression: ``-tune zerolatency -x265-params crf=Q:keyint=12``.
    Sides that the codecs cannot take (odd, or too small) are padded by repeating the border, and cropped after
    decoding. Raises ValueError for other arrays, rates or settings, and where FFmpeg lacks the encoder.
    """
    _check(frames)
    codec.check()
    if not 0 <= crf <= codec.max_crf or (codec.whole_crf and crf != round(crf)):
        kind = "a whole number" if codec.whole_crf else "a number"
        raise ValueError(f"crf of {codec.name} is {kind} between 0 and {codec.max_crf:g}, got {crf}")
    rate = exact_rate(fps)
    height, width = frames.shape[1:3]
    padding = [(0, max(_MIN_SIDE, side + side % 2) - side) for side in (height, width)]
    padded = np.pad(frames, [(0, 0), *padding, (0, 0)], mode="edge")
    # SVT-AV1 tells all it does on stderr; this is how it is asked for errors alone
    os.environ.setdefault("SVT_LOG", "1")

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=codec.stream) as container:
        stream = container.add_stream(codec.encoder, rate=rate)
        stream.height, stream.width = padded.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_range = ColorRange.MPEG
        stream.options = {"preset": preset or codec.preset} | codec.options(crf, *padded.shape[1:3])
        chosen = None if codec.bitstream_filter is None else BitStreamFilterContext(codec.bitstream_filter, stream)

        def pictures() -> Iterator[av.VideoFrame | None]:
            for index, rgb in enumerate(padded):
                frame = av.VideoFrame.from_ndarray(_rgb_to_yuv(rgb, pixel_format), format=pixel_format)
                frame.pts = index
                yield frame
            yield None  # the encoder gives what it still holds

        for picture in pictures():
            for packet in stream.encode(picture):
                container.mux(packet if chosen is None else chosen.filter(packet))
    data = buffer.getvalue()

    decoded = _decode(codec, data)
    assert decoded.shape == padded.shape, f"{codec.name} returned {decoded.shape} for {padded.shape}"
    return data, np.ascontiguousarray(decoded[:, :height, :width])


def encode_at_bpp(
    codec: Codec,
    frames: Frames,
    fps: float,
    bpp: float,
    *,
    preset: str | None = None,
    pixel_format: PixelFormat = "yuv420p",
) -> RatePoint:
    """The encode whose rate is closest to, but not above, ``bpp`` bits per pixel, found by bisection over CRF.

    Stops within 1 % of the rate or 0.02 of the CRF (1 where it is whole): about ten encodes. Raises
    :class:`UnreachableRateError` when even the largest CRF needs more, ValueError as :func:`encode`.
    """
    _check(frames)
    pixels = math.prod(frames.shape[:3])

    def trial_of(crf: float) -> tuple[float, float, Frames]:
        data, decoded = encode(codec, frames, fps, crf, preset=preset, pixel_format=pixel_format)
        return 8 * len(data) / pixels, crf, decoded

    best = trial_of(codec.max_crf)
    if best[0] > bpp:
        raise UnreachableRateError(
            f"{codec.name} needs at least {best[0]:.4f} bits per pixel for this video, asked for {bpp}"
        )
    too_fine, fits = 0.0, codec.max_crf
    while fits - too_fine > (1 if codec.whole_crf else 0.02) and best[0] < 0.99 * bpp:
        middle = (too_fine + fits) / 2
        trial = trial_of(math.floor(middle) if codec.whole_crf else middle)
        if trial[0] > bpp:
            too_fine = trial[1]
        else:
            fits = trial[1]
            # the rate is not quite monotone in CRF
            best = max(best, trial, key=lambda point: point[0])
    rate, crf, decoded = best
    reconstruction, target = from_uint8(decoded), from_uint8(frames)
    return RatePoint(crf, rate, psnr(reconstruction, target).item(), ssim(reconstruction, target).item())


x265_at_bpp = partial(encode_at_bpp, CODECS["x265"])
"""The anchor beside reconstructions."""


def _decode(codec: Codec, data: bytes) -> Frames:
    with av.open(io.BytesIO(data), format=codec.stream) as container:
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
