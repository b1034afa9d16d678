"""Reading video and image files through PyAV; writing lives in ``video_write`` and is offered here too.

Every reader gives upright RGB pictures with square pixels: the display matrix of a video and the rotation in the EXIF
of a photograph (not its rare mirrored variants) are applied, alpha is composited over black, non-square pixels are
corrected by resizing the width, and 10-bit, grey and palette pictures become 8-bit RGB. YUV without a colour tag is
taken for BT.709 when wider than 1279 or higher than 576 pixels, else for BT.601; HDR transfer curves are not
tone-mapped. A picture that changes its size midway is scaled to the size of the first one.

Damage is never papered over: a frame that cannot be decoded, or that the decoder marks as corrupt, raises
:class:`VideoError` as soon as it is needed, and so does a file that ends well before its header says. Frames behind
the ones asked for are not decoded, so damage there does not matter.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

from pyratok.data.memory import available_memory
from pyratok.data.video_base import FALLBACK_FPS, PathLike, VideoError, exact_rate
from pyratok.data.video_pixels import from_uint8, pictures_to_tensor, to_uint8
from pyratok.data.video_track import Shot, VideoTrack
from pyratok.data.video_write import VideoWriter, save_video
from pyratok.types import Video

__all__ = [
    "FALLBACK_FPS",
    "VideoError",
    "VideoInfo",
    "VideoWriter",
    "exact_rate",
    "from_uint8",
    "iter_frames",
    "iter_video",
    "load_video",
    "probe",
    "save_video",
    "to_uint8",
]


_BYTES_PER_PIXEL = 3 * (1 + 4)  # while a clip is put together it exists as uint8 and as float32


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a file holds, from its header and first frame.

    ``width`` and ``height`` in pixels as the readers give them (upright, square pixels); ``fps`` the average rate,
    None for an image; ``duration`` in seconds and ``frames``, both as the header says, None where it does not;
    ``bit_depth`` bits per channel; ``rotation`` clockwise degrees (0, 90, 180, 270) by which the stored picture is
    turned on display.
    """

    width: int
    height: int
    fps: float | None
    duration: float | None
    frames: int | None
    codec: str
    has_audio: bool
    is_image: bool
    bit_depth: int
    rotation: int


def probe(path: PathLike) -> VideoInfo:
    """Describe a video or image; decodes its first frame only. Raises VideoError."""
    with VideoTrack(path) as track:
        painter = track.painter()
        height, width = painter.size
        return VideoInfo(
            width=width,
            height=height,
            fps=None if track.is_image else float(track.rate),
            duration=track.duration,
            frames=track.num_frames,
            codec=track.stream.codec_context.codec.canonical_name,
            has_audio=bool(track.container.streams.audio),
            is_image=track.is_image,
            bit_depth=max(component.bits for component in track.first.format.components),
            rotation=-90 * painter.turns % 360,
        )


def iter_frames(path: PathLike, *, start: float = 0.0, fps: float | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Decode a file frame by frame: ``(seconds after the first frame of the file, RGB uint8 [H, W, 3])``.

    Begins with the frame on display at ``start`` seconds. Without ``fps`` the stored frames come with their own exact
    times, evenly spaced or not; with it, tick k at ``start + k / fps`` shows the latest frame at or before it. An
    image is one frame at 0. Raises VideoError, on reading also midway.
    """
    _check(path, start=start, fps=fps)
    return _iter_frames(path, start, fps)


def _iter_frames(path: PathLike, start: float, fps: float | None) -> Iterator[tuple[float, np.ndarray]]:
    with VideoTrack(path) as track:
        painter = track.painter()
        shots = track.shots(start)
        if fps is not None and not track.is_image:
            shots = _sampled(shots, start, exact_rate(fps), track.slack)
        for shot in shots:
            yield shot.time, painter.paint(shot.frame)


def load_video(
    path: PathLike,
    *,
    size: int | None = None,
    frames: int | None = None,
    start: float = 0.0,
    fps: float | None = None,
    crop: int | tuple[int, int] | None = None,
) -> Video:
    """Read a clip as float32 ``[1, 3, T, H, W]`` in [-1, 1], its frame rate beside it as ``.fps``.

    ``size`` scales the short side to that many pixels (area filter when shrinking, bicubic when enlarging), the other
    side to the nearest pixel; ``crop`` then cuts ``(height, width)``, or a square, from the centre. ``start`` in
    seconds after the first frame; ``frames`` is the most that is read, fewer where the file ends before.

    Tokens assume a constant rate, so the clip has one. By default it is the average rate of the file: a frame goes to
    the nearest tick, ticks that no frame came near repeat the one before, and of frames that share a tick the first
    stays. A file of constant rate so gives every stored frame once, a variable one keeps its duration. ``fps``
    resamples to another rate as :func:`iter_frames` does. An image gives T = 1 and ``fps`` None.

    Raises VideoError, also, before decoding more than the first frame, for a clip that does not fit in memory.
    """
    _check(path, start=start, fps=fps, size=size, frames=frames, crop=crop)
    with VideoTrack(path) as track:
        clip = _Clip(track, size=size, frames=frames, start=start, fps=fps, crop=crop)
        clip.check_memory(clip.expected_frames)
        pictures: list[np.ndarray] = []
        for picture in clip.pictures():
            pictures.append(picture)
            clip.check_memory(len(pictures))
        return Video(pictures_to_tensor(pictures), clip.fps)


def iter_video(
    path: PathLike,
    *,
    chunk: int = 16,
    size: int | None = None,
    frames: int | None = None,
    start: float = 0.0,
    fps: float | None = None,
    crop: int | tuple[int, int] | None = None,
) -> Iterator[Video]:
    """What :func:`load_video` reads, ``chunk`` frames at a time: float32 ``[1, 3, n, H, W]``, the last with fewer.

    The memory in use is that of one chunk, however long the file. Raises VideoError, on reading also midway.
    """
    _check(path, start=start, fps=fps, size=size, frames=frames, chunk=chunk, crop=crop)
    return _iter_video(path, chunk, size=size, frames=frames, start=start, fps=fps, crop=crop)


def _iter_video(path: PathLike, chunk: int, **choice: Any) -> Iterator[Video]:
    with VideoTrack(path) as track:
        clip = _Clip(track, **choice)
        clip.check_memory(min(chunk, clip.expected_frames))
        pictures = clip.pictures()
        while some := list(islice(pictures, chunk)):
            yield Video(pictures_to_tensor(some), clip.fps)


class _Clip:
    """The frames of a track that :func:`load_video` was asked for, at the size and rate that it was asked for."""

    def __init__(
        self,
        track: VideoTrack,
        *,
        size: int | None,
        frames: int | None,
        start: float,
        fps: float | None,
        crop: int | tuple[int, int] | None,
    ) -> None:
        self._track, self._start, self._limit, self._resampled = track, start, frames, fps is not None
        self._painter = track.painter(size)
        self._window = _centre_window(track.path, self._painter.size, crop)
        self._rate = track.rate if fps is None else exact_rate(fps)
        height, width = self._size = tuple(side.stop - side.start for side in self._window)
        free = available_memory()
        self._capacity = sys.maxsize if free is None else free // (height * width * _BYTES_PER_PIXEL)

    @property
    def fps(self) -> float | None:
        return None if self._track.is_image else float(self._rate)

    @property
    def expected_frames(self) -> int:
        """By the header; 1 where it does not tell."""
        track = self._track
        if track.num_frames is None:
            return 1
        rest = max(1, round(track.num_frames * self._rate / track.rate - Fraction(self._start) * self._rate))
        return rest if self._limit is None else min(self._limit, rest)

    def pictures(self) -> Iterator[np.ndarray]:
        """RGB uint8 ``[H, W, 3]``; to be called once."""
        shots = self._track.shots(self._start)
        if not self._track.is_image:
            shots = (
                _sampled(shots, self._start, self._rate, self._track.slack)
                if self._resampled
                else _regular(shots, self._rate)
            )
        last, picture = None, None
        for shot in islice(shots, None if self._limit is None else min(self._limit, sys.maxsize)):
            if picture is None or shot.frame is not last:
                picture = self._painter.paint(shot.frame)[self._window]
            last = shot.frame
            yield picture

    def check_memory(self, frames: int) -> None:
        """Raises VideoError where so many frames at once do not fit into what was free in the beginning."""
        if frames <= self._capacity:
            return
        height, width = self._size
        needed, available = (count * height * width * _BYTES_PER_PIXEL / 2**30 for count in (frames, self._capacity))
        raise VideoError(
            f"{self._track.path}: {frames} frames of {width}x{height} need {needed:.1f} GiB of memory, "
            f"{available:.1f} GiB are available; ask for a smaller size or fewer frames"
        )


def _regular(shots: Iterator[Shot], rate: Fraction) -> Iterator[Shot]:
    """A constant rate from stored frames near it: each goes to its nearest tick, gaps repeat the one before."""
    tick, origin, held = -1, None, None
    for shot in shots:
        origin = shot.time if origin is None else origin
        target = round((shot.time - origin) * rate)
        while held is not None and tick + 1 < target:
            tick += 1
            yield held
        if tick < target:
            tick = target
            yield shot
        held = shot
    if held is not None and origin is not None:
        for _ in range(tick + 1, round((held.end - origin) * rate)):
            yield held


def _sampled(shots: Iterator[Shot], start: float, rate: Fraction, slack: float) -> Iterator[Shot]:
    """Tick k, at ``start + k / rate`` seconds, shows the latest frame at or before it, until the last frame's end."""
    tick, held = 0, None
    for shot in shots:
        while held is not None and (time := start + float(tick / rate)) < shot.time - slack:
            yield held._replace(time=time)
            tick += 1
        held = shot
    while held is not None and (time := start + float(tick / rate)) < held.end - slack:
        yield held._replace(time=time)
        tick += 1


def _check(
    path: PathLike,
    *,
    start: float,
    fps: float | None,
    size: int | None = None,
    frames: int | None = None,
    chunk: int | None = None,
    crop: int | tuple[int, int] | None = None,
) -> None:
    """Refuse arguments that no file could satisfy."""
    if not (math.isfinite(start) and start >= 0):
        raise VideoError(f"{path}: start must be a number of seconds >= 0, got {start}")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise VideoError(f"{path}: fps must be a number > 0, got {fps}")
    for name, value in (("size", size), ("frames", frames), ("chunk", chunk)):
        if value is not None and value < 1:
            raise VideoError(f"{path}: {name} must be at least 1, got {value}")
    if crop is not None and min(_pair(crop)) < 1:
        raise VideoError(f"{path}: crop must be at least 1 pixel, got {crop}")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _centre_window(path: PathLike, size: tuple[int, int], crop: int | tuple[int, int] | None) -> tuple[slice, slice]:
    """Rows and columns of the centre crop of a picture of ``size`` (height, width)."""
    height, width = size
    rows, columns = size if crop is None else _pair(crop)
    if rows > height or columns > width:
        raise VideoError(
            f"{path}: a crop of {columns}x{rows} pixels does not fit into {width}x{height}; "
            "give a smaller crop or a larger size"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)
