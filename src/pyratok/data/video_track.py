"""The video track of an open file: what it is, and its frames in display order with exact times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from pyratok.data.video_base import FALLBACK_FPS, PathLike, VideoError, open_media, parse_true_size, why_undecodable
from pyratok.data.video_pixels import Painter

_ANIMATIONS = {"gif", "apng"}  # video, unless they hold a single frame
_STILL_BRANDS = {"avif", "heic", "heix", "mif1"}
_TRUE_DURATION = {"mov", "matroska", "avi"}  # other containers guess it from the bit rate
_JOINED_MIDWAY = {"mpegts", "mpeg", "h264", "hevc", "mpegvideo"}  # broadcasts, raw streams: no clean start is due


class Shot(NamedTuple):
    """A decoded frame, on display from ``time`` to ``end``, seconds after the first frame of the file."""

    time: float
    end: float
    frame: av.VideoFrame


class VideoTrack:
    """The first video track of a file (cover art does not count), with its first frame decoded.

    A context manager. Raises VideoError when the file cannot be opened, has no video or no frame that decodes.
    """

    container: InputContainer
    stream: VideoStream
    _decoder: Iterator[av.VideoFrame]

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)
        self._origin: int | None = None
        self._open()
        try:
            is_animation = self.container.format.name in _ANIMATIONS
            head = list(islice(self._decoder, 2 if is_animation else 1))
            if not head:
                raise VideoError(f"{self.path}: holds no video frames")
        except BaseException:
            self.container.close()
            raise
        self.first = head[0]
        self.is_image = len(head) == 1 and (is_animation or self._is_still_format())
        self._origin = self.first.pts or 0
        self._decoder = chain(head, self._decoder)

    def __enter__(self) -> VideoTrack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.container.close()

    def _open(self) -> None:
        self.container = open_media(self.path)
        try:
            self.stream = _pick_stream(self.path, self.container)
        except BaseException:
            self.container.close()
            raise
        if self._is_still_format() and self.stream.codec_context.name == "mjpeg":
            # Else a JPEG that was cut short decodes to a picture whose rest is grey.
            self.stream.codec_context.options = {"err_detect": "explode"}
        self._clock = self.stream.time_base or Fraction(1, av.time_base)
        self._decoder = self._decode()

    def _is_still_format(self) -> bool:
        name, brand = self.container.format.name, self.container.metadata.get("major_brand")
        return name.endswith("_pipe") or name == "image2" or (brand in _STILL_BRANDS and self.stream.frames <= 1)

    @cached_property
    def rate(self) -> Fraction:
        """Average frames per second; the nominal rate where the two are within 5 %, so that a lost frame is a gap."""
        if self.container.format.name == "gif" and not self.is_image:
            return self._usual_rate()
        average, nominal = self.stream.average_rate, self.stream.guessed_rate
        if not average:
            step = (self.first.duration or 0) * self._clock
            return 1 / step if step else nominal or Fraction(FALLBACK_FPS)
        return nominal if nominal and abs(nominal / average - 1) < 0.05 else average

    def _usual_rate(self) -> Fraction:
        """GIF counts in 1/100 s, so that 30 a second is 3, 3, 4, ...: the mean step, pauses left out."""
        with open_media(self.path) as media:
            times = [packet.pts for packet in media.demux(video=0) if packet.pts is not None]
        steps = np.diff(times)
        usual = steps[steps <= 2 * np.median(steps)]
        return len(usual) / (int(usual.sum()) * self._clock)

    @property
    def duration(self) -> float | None:
        """Seconds, as the header says; None for an image or where it does not."""
        if self.is_image:
            return None
        if self.stream.duration:
            return float(self.stream.duration * self._clock)
        return self.container.duration / av.time_base if self.container.duration else None

    @property
    def num_frames(self) -> int | None:
        """As the header says, or by duration and rate; None where it tells neither."""
        if self.is_image:
            return 1
        if self.stream.frames:
            return self.stream.frames
        return None if self.duration is None else max(1, round(self.duration * self.rate))

    @property
    def slack(self) -> float:
        """How late, in seconds, a frame may come and still be on time: containers round times to their clock tick."""
        return min(float(self._clock), 0.001)

    def painter(self, short_side: int | None = None) -> Painter:
        """What makes pictures of this track's frames; cuts the padding that ``VideoWriter`` added and noted."""
        noted = parse_true_size(self.container.metadata)
        padded = noted is not None and (self.first.height, self.first.width) == (
            noted[0] + noted[0] % 2,
            noted[1] + noted[1] % 2,
        )
        return Painter(
            self.first,
            aspect=self.stream.sample_aspect_ratio,
            true_size=noted if padded else None,
            short_side=short_side,
        )

    def shots(self, start: float = 0.0) -> Iterator[Shot]:
        """From the frame on display at ``start`` seconds to the end, a single one for an image. To be called once.

        Raises VideoError when ``start`` is beyond the end, at damage, and at the end of a file that was cut short.
        """
        target = start + self.slack
        before: Shot | None = None
        for shot in self._timed(self._seek(start) if start > 0 else self._decoder):
            if shot.end <= target:
                before = shot
                continue
            if before is not None and shot.time > target:
                yield before  # stays on display through the gap around start
            before = None
            yield shot
            if self.is_image:
                return
        if before is not None:
            raise VideoError(f"{self.path}: start={start:g} is beyond the end, the video lasts {before.end:.2f} s")

    def _timed(self, frames: Iterator[av.VideoFrame]) -> Iterator[Shot]:
        """Give each frame its time; missing or backward time stamps go on at the average rate."""
        period = float(1 / self.rate)
        last, end = -period, 0.0
        for frame in frames:
            time = self._time(frame.pts)
            if time is None or (time <= last and last >= 0):
                time = last + period
            last, end = time, time + (float(frame.duration * self._clock) if frame.duration else period)
            yield Shot(last, end, frame)
        self._check_whole(end, period)

    def _time(self, pts: int | None) -> float | None:
        return None if pts is None else float((pts - (self._origin or 0)) * self._clock)

    def _seek(self, start: float) -> Iterator[av.VideoFrame]:
        """Frames from a key frame at or before ``start``; from the first one where seeking does not get there."""
        if self.first.pts is None or self.is_image:
            return self._decoder
        try:
            self.container.seek(self.first.pts + int(start / self._clock), stream=self.stream)
            decoder = self._decode()
            frame = next(decoder, None)
            time = None if frame is None else self._time(frame.pts)
            if frame is not None and time is not None and time <= start + self.slack:
                return chain([frame], decoder)
        except av.FFmpegError:
            pass
        self.container.close()
        self._open()
        return self._decoder

    def _decode(self) -> Iterator[av.VideoFrame]:
        may_begin_damaged = self._origin is None and self.container.format.name in _JOINED_MIDWAY
        packets = self.container.demux(self.stream)
        pts: int | None = None
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                pts = packet.pts
                frames = packet.decode()
            except av.FFmpegError as error:
                if may_begin_damaged:
                    continue
                raise self._damaged(pts) from error
            for frame in frames:
                if not frame.is_corrupt:
                    may_begin_damaged = False
                    yield frame
                elif not may_begin_damaged:
                    raise self._damaged(frame.pts)

    def _damaged(self, pts: int | None) -> VideoError:
        if self._origin is None:
            return VideoError(f"{self.path}: {why_undecodable(self.path)}")
        time = self._time(pts)
        where = "" if time is None else f" at {max(0.0, time):.2f} s"
        return VideoError(
            f"{self.path}: damaged{where}; ask for fewer frames, or re-encode the file to hide the damage"
        )

    def _check_whole(self, end: float, period: float) -> None:
        """Refuse a file that ends well before its header says; ``end`` in seconds after the first frame."""
        if self.is_image or _TRUE_DURATION.isdisjoint(self.container.format.name.split(",")):
            return
        declared = _seconds(self.stream.metadata.get("DURATION")) or float((self.stream.duration or 0) * self._clock)
        end += max(0.0, float((self._origin or 0) * self._clock))
        if end < 0.95 * declared - 2 * period:
            raise VideoError(
                f"{self.path}: cut short, it ends at {end:.2f} s of {declared:.2f} s; ask for fewer frames"
            )


def _seconds(clock: str | None) -> float | None:
    """Seconds of a Matroska tag such as ``00:01:02.500000000``."""
    try:
        hours, minutes, seconds = (clock or "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _pick_stream(path: Path, container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        held = "holds sound only" if container.streams.audio else "holds no video"
        raise VideoError(f"{path}: {held}, expected a video or an image")
    if streams[0].codec_context is None:
        raise VideoError(f"{path}: this build of FFmpeg has no decoder for its video")
    return streams[0]
