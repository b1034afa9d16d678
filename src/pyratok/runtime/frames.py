"""Where large video comes from and goes to, crop by crop, so that no clip is ever needed as floats in one piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.data.video_pixels import from_uint8, to_uint8
from pyratok.model.base import check_video
from pyratok.types import Geometry

Reader = Callable[[slice, slice, slice], np.ndarray | Tensor]
Sink = Callable[[Tensor, slice, slice, slice], None]
"""Takes pixels float32 ``[B, 3, t, h, w]`` in [-1, 1] and the frames, rows and columns where they belong."""


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """A clip that is read crop by crop.

    ``read(frames, rows, columns)`` gives RGB uint8 ``[t, h, w, 3]`` (numpy), or floats ``[B, 3, t, h, w]`` in [-1, 1]
    of ``batch`` clips; it is asked only for what lies within the clip.
    """

    frames: int
    height: int
    width: int
    read: Reader
    fps: float | None = None
    batch: int = 1

    def crop(self, frames: slice, rows: slice, columns: slice) -> Tensor:
        """Float32 ``[B, 3, t, h, w]``; what lies beyond the last frame, row or column repeats it.

        Raises ValueError for pixels of another shape, type or range than promised.
        """
        wanted, sizes = (frames, rows, columns), (self.frames, self.height, self.width)
        inside = [slice(axis.start, min(axis.stop, size)) for axis, size in zip(wanted, sizes, strict=True)]
        pixels = self.read(*inside)
        clip = pixels.as_subclass(Tensor).float() if isinstance(pixels, Tensor) else from_uint8(pixels)
        expected = (self.batch, 3, *(axis.stop - axis.start for axis in inside))
        if tuple(clip.shape) != expected:
            raise ValueError(f"the source gave pixels of shape {tuple(clip.shape)}, asked for {expected}")
        check_video(clip)
        missing = [whole.stop - part.stop for whole, part in zip(wanted, inside, strict=True)]
        padding = (0, missing[2], 0, missing[1], 0, missing[0])
        return F.pad(clip, padding, mode="replicate") if any(missing) else clip


def as_source(video: FrameSource | np.ndarray | Tensor, fps: float | None = None) -> FrameSource:
    """Anything that holds a clip: a source as it is, RGB uint8 ``[T, H, W, 3]`` (array, memory map or tensor), or
    floats ``[B, 3, T, H, W]`` in [-1, 1]. ``fps`` overrides the rate that it knows of. Raises ValueError for anything
    else."""
    if isinstance(video, FrameSource):
        return video
    if isinstance(video, Tensor) and video.is_floating_point() and video.ndim == 5:
        batch, _, frames, height, width = video.shape
        return FrameSource(
            frames=frames,
            height=height,
            width=width,
            read=lambda t, y, x: video[:, :, t, y, x],
            fps=getattr(video, "fps", None) if fps is None else fps,
            batch=batch,
        )
    pixels = video.numpy() if isinstance(video, Tensor) and video.dtype == torch.uint8 else video
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        kind, shape = getattr(video, "dtype", type(video).__name__), getattr(video, "shape", "")
        raise ValueError(f"expected uint8 frames [T, H, W, 3] or floats [B, 3, T, H, W] in [-1, 1], got {kind} {shape}")
    frames, height, width, _ = pixels.shape
    return FrameSource(frames=frames, height=height, width=width, read=lambda t, y, x: pixels[t, y, x], fps=fps)


def as_sink(out: Sink | np.ndarray | Tensor, batch: int, geometry: Geometry) -> Sink:
    """Where decoded pixels go: a function, uint8 ``[T, H, W, 3]`` of one clip (array, memory map or tensor), or floats
    ``[B, 3, T, H, W]``. Raises ValueError for another shape or type than that of the clip to be written."""
    if isinstance(out, Tensor) and out.dtype == torch.uint8:
        out = out.numpy()
    size = (geometry.frames, geometry.height, geometry.width)
    if isinstance(out, np.ndarray):
        array = out
        if batch != 1 or array.dtype != np.uint8 or array.shape != (*size, 3):
            raise ValueError(f"expected uint8 {(*size, 3)} for one clip, got {array.dtype} {array.shape} for {batch}")

        def store(pixels: Tensor, frames: slice, rows: slice, columns: slice) -> None:
            array[frames, rows, columns] = to_uint8(pixels)

        return store
    if isinstance(out, Tensor):
        tensor = out
        if not tensor.is_floating_point() or tuple(tensor.shape) != (batch, 3, *size):
            raise ValueError(f"expected floats {(batch, 3, *size)}, got {tensor.dtype} {tuple(tensor.shape)}")

        def copy(pixels: Tensor, frames: slice, rows: slice, columns: slice) -> None:
            tensor[:, :, frames, rows, columns] = pixels

        return copy
    return out
