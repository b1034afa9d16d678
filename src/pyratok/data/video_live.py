"""Video as it comes: from a camera, a network stream, a pipe or a file, whatever FFmpeg opens."""

from __future__ import annotations

import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pyratok.data.video_base import FALLBACK_FPS, VideoError, exact_rate, open_media
from pyratok.data.video_pixels import Painter

WAITING_FRAMES = 8
"""Frames read ahead; behind them a source that can wait waits, and one that cannot drops or buffers by its own rule."""
LONGEST_GAP = 1.0
"""Seconds that the last picture is repeated for at most; beyond them the clock has jumped, or nothing was sent."""
_HIGHEST_RATE = 240  # a nominal rate beyond it is the clock of the container
_POLL = 0.1


class Head(NamedTuple):
    """What the first frame tells: pictures of ``height`` x ``width``, ticks of ``fps``."""

    height: int
    width: int
    fps: float


class LiveSource:
    """Pictures of a running video at a constant rate; a context manager, and an iterator to be used once.

    ``name``: a file, a device (``/dev/video0``), a URL that FFmpeg opens, or ``-`` for standard input. ``input_format``
    names FFmpeg's demuxer where it cannot tell by itself, as for devices on other systems than Linux. ``size`` scales
    the short side. ``timeout``: seconds without a new frame, or until the first one, after which the source counts as
    stalled.

    Gives RGB uint8 ``[H, W, 3]``, upright. Frames go to the nearest tick of the source's nominal rate, ticks without
    one repeat the picture before (for up to :data:`LONGEST_GAP`), and of frames that share a tick the first stays; so
    a source may be of variable rate. Frames that cannot be decoded are left out and counted in :attr:`num_damaged`: a
    broadcast may lose some and goes on.

    Raises VideoError, on entering or while reading: a source that cannot be opened, holds no video, stalls, or changes
    its frame size. All pictures before are given first.
    """

    head: Head

    def __init__(
        self, name: str, *, timeout: float = 10.0, size: int | None = None, input_format: str | None = None
    ) -> None:
        if not timeout > 0:
            raise VideoError(f"{name}: the timeout must be a number of seconds > 0, got {timeout}")
        self.name = "standard input" if name == "-" else name
        self.num_damaged = 0
        self._timeout = timeout
        self._opened_by = partial(_open, name, input_format)
        self._size = size
        self._stopped = threading.Event()
        self._ready: Queue[Head | np.ndarray | VideoError | None] = Queue(WAITING_FRAMES)
        # A daemon: nothing can wake a thread that waits for a device, and the process must still be able to end.
        self._thread = threading.Thread(target=self._run, name="pyratok-live", daemon=True)

    def __enter__(self) -> LiveSource:
        self._thread.start()
        try:
            head = self._next()
        except BaseException:
            self.stop()
            raise
        assert isinstance(head, Head), "the head comes first"
        self.head = head
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join(timeout=1.0)

    def stop(self) -> None:
        """End the iteration after the picture at hand; may be called from anywhere, also from a signal handler."""
        self._stopped.set()

    def __iter__(self) -> Iterator[np.ndarray]:
        while (picture := self._next()) is not None:
            assert isinstance(picture, np.ndarray)
            yield picture

    def _next(self) -> Head | np.ndarray | None:
        """What the reading thread gives next; None at the end and after :meth:`stop`."""
        deadline = time.monotonic() + self._timeout
        while not self._stopped.is_set():
            with suppress(Empty):
                item = self._ready.get(timeout=min(_POLL, self._timeout))
                if isinstance(item, VideoError):
                    raise item
                return item
            if time.monotonic() > deadline:
                raise VideoError(f"{self.name}: stalled, no frame for {self._timeout:g} s; --timeout waits longer")
        return None

    def _run(self) -> None:
        """The reading thread."""
        end: VideoError | None = None
        try:
            with self._opened_by() as container:
                for item in self._items(container):
                    self._put(item)
                    if self._stopped.is_set():
                        return
        except VideoError as error:
            end = error
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            end = VideoError(f"{self.name}: cannot be opened or read by FFmpeg ({reason})")
        self._put(end)

    def _put(self, item: Head | np.ndarray | VideoError | None) -> None:
        while not self._stopped.is_set():
            with suppress(Full):
                self._ready.put(item, timeout=_POLL)
                return

    def _items(self, container: InputContainer) -> Iterator[Head | np.ndarray]:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(f"{self.name}: holds no video")
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f"{self.name}: this build of FFmpeg has no decoder for its video")
        rate, clock = _rate(stream), stream.time_base or Fraction(1, av.time_base)
        ticks, painter, stored = _Ticks(rate), None, (0, 0)
        held: np.ndarray | None = None
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self.num_damaged += painter is not None  # a broadcast that is joined midway owes no clean start
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.num_damaged += painter is not None
                    continue
                if painter is None:
                    painter = Painter(frame, aspect=stream.sample_aspect_ratio, short_side=self._size)
                    stored = _size(frame)
                    yield Head(*painter.size, float(rate))
                if _size(frame) != stored:
                    began, now = (f"{width}x{height}" for height, width in (stored, _size(frame)))
                    raise VideoError(f"{self.name}: the frame size changed from {began} to {now}; watch it anew")
                count = ticks.advance(None if frame.pts is None else float(frame.pts * clock))
                if not count:
                    continue
                picture = painter.paint(frame)
                yield from [picture if held is None else held] * (count - 1)
                yield picture
                held = picture
        if painter is None:
            raise VideoError(f"{self.name}: ended before a frame could be decoded")


class _Ticks:
    """Places frames on a constant rate, one by one, knowing only those before."""

    def __init__(self, rate: Fraction) -> None:
        self._rate = rate
        self._longest = max(1, round(LONGEST_GAP * rate))
        self._origin = 0.0
        self._tick = -1

    def advance(self, seconds: float | None) -> int:
        """How many ticks further a frame at ``seconds`` lies, 0 where one is there already; without a time it is the
        next one, and so is one beyond the longest gap, which the clock then goes on from."""
        if seconds is None:
            target = self._tick + 1
        else:
            target = round((seconds - self._origin) * self._rate)
            if self._tick < 0 or abs(target - self._tick) > self._longest:
                target = self._tick + 1
                self._origin = seconds - float(target / self._rate)
        count = max(0, target - self._tick)
        self._tick += count
        return count


def _rate(stream: VideoStream) -> Fraction:
    """Frames per second: the nominal rate where the average is near it or not known, else the average."""
    average, nominal = stream.average_rate, stream.guessed_rate
    if nominal and nominal <= _HIGHEST_RATE and (not average or abs(nominal / average - 1) < 0.05):
        return exact_rate(nominal)
    return exact_rate(average or FALLBACK_FPS)


def _size(frame: av.VideoFrame) -> tuple[int, int]:
    return frame.height, frame.width


def _open(name: str, input_format: str | None) -> InputContainer:
    """What FFmpeg makes of a name. Raises VideoError, FFmpegError or OSError."""
    path = Path(name)
    if name == "-":
        return av.open("pipe:0", format=input_format, metadata_errors="replace")
    if input_format is not None:
        return av.open(name, format=input_format, metadata_errors="replace")
    if path.is_file() or path.is_dir():
        return open_media(path)
    if path.exists():
        is_camera = sys.platform == "linux" and stat.S_ISCHR(path.stat().st_mode)
        return av.open(f"file:{name}" if not is_camera else name, format="v4l2" if is_camera else None)
    if not re.match(r"[a-z][a-z0-9+.-]+:", name):
        raise VideoError(f"{name}: no such file or device, and no URL")
    return av.open(name, metadata_errors="replace")
