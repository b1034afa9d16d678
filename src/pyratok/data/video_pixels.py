"""Pixels: decoded frames to upright RGB pictures, RGB pictures to tensors and back."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from torch import Tensor

# swscale's default replicates chroma and truncates: a mean shift of up to 1.5 levels and 2.5 dB on a 4:2:0 round trip
# of photographs. Full chroma interpolation and exact rounding bring the shift below 0.15 levels.
_ACCURATE = 0x2000 | 0x40000  # SWS_FULL_CHR_H_INT | SWS_ACCURATE_RND, which older PyAV has no names for
BICUBIC = 0x4 | _ACCURATE
AREA = 0x20 | _ACCURATE

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


def from_uint8(frames: np.ndarray) -> Tensor:
    """RGB frames uint8 ``[T, H, W, 3]`` to float32 ``[1, 3, T, H, W]`` in [-1, 1]: ``value / 127.5 - 1``."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"expected uint8 frames [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    return pictures_to_tensor(list(frames)) if len(frames) else torch.empty(1, 3, *frames.shape[:3])


def pictures_to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """:func:`from_uint8` for pictures ``[H, W, 3]`` that do not lie in one array."""
    height, width, _ = pictures[0].shape
    video = torch.empty(1, 3, len(pictures), height, width)
    for index, picture in enumerate(pictures):
        writable = np.require(picture, requirements="W")
        video[0, :, index] = torch.from_numpy(writable).permute(2, 0, 1)
    return video.div_(127.5).sub_(1)


def to_uint8(video: Tensor) -> np.ndarray:
    """Inverse of :func:`from_uint8`: one clip, ``[1, 3, T, H, W]`` or ``[3, T, H, W]``, to uint8 ``[T, H, W, 3]``.

    Values outside [-1, 1] are clamped, as a decoder overshoots a little. Raises ValueError on NaN, infinity,
    another shape or more than one clip.
    """
    clip = video[0] if video.ndim == 5 and video.shape[0] == 1 else video
    if clip.ndim != 4 or clip.shape[0] != 3:
        raise ValueError(f"expected one clip [1, 3, T, H, W] or [3, T, H, W], got {list(video.shape)}")
    frames = np.empty((*clip.shape[1:], 3), np.uint8)
    for index, frame in enumerate(clip.detach().unbind(1)):
        values = frame.float().add(1).mul_(127.5).round_()
        if not bool(torch.isfinite(values).all()):
            raise ValueError("the video holds NaN or infinite values")
        frames[index] = values.clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return frames


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """``(turns, mirrored)``: for display, mirror left to right first, then turn by quarters counter-clockwise."""
    matrix: Any = None
    with suppress(ValueError):  # side data of a kind that PyAV has no name for, as EXIF
        matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return round(frame.rotation / 90) % 4, False
    return matrix_orientation(np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2])


def matrix_orientation(matrix: np.ndarray) -> tuple[int, bool]:
    """:func:`orientation` of ``[[a, b], [c, d]]``, which takes (x right, y down) to ``(a x + c y, b x + d y)``."""
    (a, b), (c, d) = matrix.astype(float)
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return round(math.atan2(-b, a) / (math.pi / 2)) % 4, mirrored


class Painter:
    """Turns the decoded frames of a track into upright RGB pictures, all of one size.

    ``true_size`` (height, width) cuts padding off the right and the bottom of the stored picture; ``aspect`` is
    that of a stored pixel; ``short_side`` scales. ``size`` is the (height, width) of the pictures.
    """

    def __init__(
        self,
        first: av.VideoFrame,
        *,
        aspect: Fraction | None = None,
        true_size: tuple[int, int] | None = None,
        short_side: int | None = None,
    ) -> None:
        self.turns, self.mirrored = orientation(first)
        self._true_size = true_size
        height, width = true_size or (first.height, first.width)
        if aspect and 1 / 16 <= aspect <= 16:  # anything beyond is a broken header
            width = max(1, round(width * aspect))
        if short_side is not None:
            scale = Fraction(short_side, min(height, width))
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
        self._unturned = height, width
        self._to_rgb, self._scale = VideoReformatter(), VideoReformatter()

    @property
    def size(self) -> tuple[int, int]:
        height, width = self._unturned
        return (width, height) if self.turns % 2 else (height, width)

    def paint(self, frame: av.VideoFrame) -> np.ndarray:
        """Upright RGB picture, uint8 ``[H, W, 3]``; alpha over black."""
        if self._true_size is not None or _has_alpha(frame):
            frame = av.VideoFrame.from_ndarray(self._opaque(frame), format="rgb24")
        picture = _convert(self._scale, frame, "rgb24", self._unturned)
        if self.mirrored:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(np.rot90(picture, self.turns))

    def _opaque(self, frame: av.VideoFrame) -> np.ndarray:
        """The stored picture at its own size, without padding, alpha composited before anything blends pixels."""
        rgba = _convert(self._to_rgb, frame, "rgba", (frame.height, frame.width))
        if self._true_size is not None:
            height, width = self._true_size
            rgba = rgba[:height, :width]
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() < 255:
            rgb = ((rgb.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        return np.ascontiguousarray(rgb)


def _has_alpha(frame: av.VideoFrame) -> bool:
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def _convert(scaler: VideoReformatter, frame: av.VideoFrame, pixels: str, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    colorspace = None
    if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
        high_definition = frame.width >= 1280 or frame.height > 576
        colorspace = Colorspace.ITU709 if high_definition else Colorspace.ITU601
    shrinks = width < frame.width or height < frame.height
    converted = scaler.reformat(
        frame,
        width=width,
        height=height,
        format=pixels,
        src_colorspace=colorspace,
        dst_color_range=ColorRange.JPEG,
        interpolation=AREA if shrinks else BICUBIC,
        threads=1,
    )
    return converted.to_ndarray()
