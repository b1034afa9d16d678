"""Copying the sound of one file into another, without re-encoding."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction

import av
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition

from pyratok.data.video_base import PathLike, open_media

_PRIMING = 0.1  # seconds of sound ahead of the first frame that AAC and Opus decoders warm up on


class SoundCopy:
    """The first sound track of ``path``, from ``start`` seconds after the first frame of its video.

    Without a sound track it copies nothing. Raises VideoError when the file cannot be opened.
    """

    def __init__(self, path: PathLike, start: float = 0.0) -> None:
        self._input = open_media(path)
        self._stream = next(iter(self._input.streams.audio), None)
        self._start = start
        self._pending: tuple[float, Packet] | None = None
        self.codec = self._stream.codec_context.name if self._stream and self._stream.codec_context else "unknown"

    def attach(self, output: OutputContainer) -> bool:
        """Add the track to ``output``, before anything is written to it; False when that cannot hold such sound."""
        if self._stream is None:
            return True
        self._output = output
        try:
            self._try_header(output.format.name)
            self._copy = output.add_stream_from_template(self._stream)
        except (av.FFmpegError, ValueError):
            self._stream = None
            return False
        self._packets = self._shifted()
        return True

    def copy_until(self, seconds: float) -> None:
        """Store the packets that begin before ``seconds`` of the new file."""
        if self._stream is None:
            return
        while True:
            time, packet = self._pending or next(self._packets, (seconds, None))
            self._pending = None if packet is None else (time, packet)
            if packet is None or time >= seconds:
                return
            self._pending = None
            packet.stream = self._copy
            self._output.mux_one(packet)

    def close(self) -> None:
        self._input.close()

    def _try_header(self, muxer: str) -> None:
        """Some formats refuse a codec only when their header is written: too late to go on without the sound.

        Raises FFmpegError or ValueError.
        """
        assert self._stream is not None
        trial = av.open(io.BytesIO(), "w", format=muxer)
        try:
            trial.add_stream_from_template(self._stream)
            trial.start_encoding()
        finally:
            with suppress(av.FFmpegError, OSError):  # a file without any sound in it may be refused as well
                trial.close()

    def _shifted(self) -> Iterator[tuple[float, Packet]]:
        """Packets with their times moved so that ``start`` becomes 0."""
        assert self._stream is not None
        clock = self._stream.time_base or Fraction(1, av.time_base)
        origin = self._origin() + self._start
        if self._start:
            self._input.seek(int(origin * av.time_base))
        earliest = 0.0 if self._start else -_PRIMING
        for packet in self._input.demux(self._stream):
            if packet.pts is None:  # the empty packet that ends every track
                continue
            time = float(packet.pts * clock) - origin
            if time + float((packet.duration or 0) * clock) <= earliest:
                continue
            shift = round(origin / clock)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            yield time, packet

    def _origin(self) -> float:
        """Seconds on the clock of the file at which its video, or a file of sound alone, begins."""
        for stream in self._input.streams.video:
            if stream.start_time is not None and stream.time_base and not stream.disposition & Disposition.attached_pic:
                return float(stream.start_time * stream.time_base)
        return (self._input.start_time or 0) / av.time_base
