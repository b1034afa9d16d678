"""A ``.pyra`` file that grows: the tokens of a live or long video, segment by segment.

Magic, version, CRC and the packing of ids are those of :mod:`pyratok.codec.container`; flag bit 1 is set. All integers
are little-endian.

======  ====  =========================================================================================
offset  size  content
======  ====  =========================================================================================
0       20    as in a file that is written whole, flags 2
20      N     header: ``batch_size``, ``geometry`` (of the first segment, without ``frames``), ``model``,
              ``num_bits``, ``num_levels``, ``segment_steps`` (latent steps of a segment that nothing hastened)
20 + N        segments, without gaps
\\             index, once the file is closed
======  ====  =========================================================================================

A segment is a header and its levels, shallow to deep, without gaps:

========  ====  =======================================================================================
offset    size  content
========  ====  =======================================================================================
0         4     mark ``PYRS``
4         4     first latent step of the segment
8         4     true frames that it covers: 1 for latent step 0 and S for any other, but for the last step of
                the file, which may cover fewer (S: frames of a latent step)
12        12 L  of each level its size in bytes (8) and CRC-32 (4)
12 + 12L  4     CRC-32 of this header so far
========  ====  =======================================================================================

The index repeats the headers of all segments; then come their number (4), the CRC-32 of these headers and of that
number (4), and the mark ``PYRE``. With it a reader finds any step at once, and knows that the file is complete.

Without an index the file is what a killed writer left, or one that is still at work. It is read by walking from
header to header, up to the last segment that is whole. What lies behind is the beginning of a segment or an index,
unless a whole segment follows further on: then the file is damaged, and refused.

A growing file cannot be written under a temporary name and renamed. Instead, nothing that was written is ever changed
but by cutting off an unfinished end (and, to go on with a complete file, its index), so that whoever reads at any
time finds whole segments or notices that one is not.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

from pyratok.codec.layout import Front, Layout, PyraFileError, Segment, integer, making_sense
from pyratok.types import TokenPyramid

_MARK, _END = b"PYRS", b"PYRE"
_HEAD = struct.Struct("<4sII")
_LEVEL = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_TRAILER = struct.Struct("<II4s")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a growing file holds: its whole segments, and whether it was closed behind the last one."""

    layout: Layout
    segment_steps: int
    segments: tuple[Segment, ...]
    complete: bool


def scan(file: BinaryIO, front: Front) -> Contents:
    """Find the segments of a file without reading their levels. Raises :class:`PyraFileError` where it is damaged."""
    with making_sense(file.name):
        layout, segment_steps = from_fields(front.fields)
    segments = _indexed(file, layout, front.size)
    complete = segments is not None
    if segments is None:
        segments = _walked(file, layout, front.size)
    return Contents(layout=layout, segment_steps=segment_steps, segments=tuple(segments), complete=complete)


def to_fields(layout: Layout, segment_steps: int) -> dict[str, Any]:
    """The header of the file."""
    geometry = asdict(layout.geometry)
    del geometry["frames"]
    return {
        "batch_size": layout.batch_size,
        "geometry": geometry,
        "model": asdict(layout.model),
        "num_bits": layout.num_bits,
        "num_levels": layout.num_levels,
        "segment_steps": segment_steps,
    }


def from_fields(fields: dict[str, Any]) -> tuple[Layout, int]:
    """Inverse of :func:`to_fields`. Raises LookupError, TypeError or ValueError for what no writer would write."""
    one_frame = fields | {"geometry": fields["geometry"] | {"frames": 1}}
    return Layout.from_fields(one_frame, integer(fields["num_levels"], 1)), integer(fields["segment_steps"], 1)


def index_bytes(headers: list[bytes]) -> bytes:
    """The index of a complete file, from the headers of all its segments."""
    joined, count = b"".join(headers), len(headers)
    return joined + _TRAILER.pack(count, zlib.crc32(joined + _CRC.pack(count)), _END)


def index_size(layout: Layout, num_segments: int) -> int:
    """Bytes of the index of a complete file."""
    return num_segments * header_size(layout) + _TRAILER.size


def read_segment(file: BinaryIO, layout: Layout, segment: Segment, num_levels: int, number: int) -> TokenPyramid:
    """The first levels of a segment, its header compared; ``number`` from 1 tells people which one it is."""
    first = segment.geometry.first_step
    where = f" of segment {number} (latent steps {first}:{first + segment.geometry.latent_steps})"
    header = segment_header(segment)
    file.seek(segment.offset - len(header))
    if file.read(len(header)) != header:
        raise PyraFileError(f"{file.name} is damaged in the header{where}: no level of it can be read")
    return layout.read(file, segment, num_levels, where)


def header_size(layout: Layout) -> int:
    return _HEAD.size + layout.num_levels * _LEVEL.size + _CRC.size


def segment_header(segment: Segment) -> bytes:
    head = _HEAD.pack(_MARK, segment.geometry.first_step, segment.geometry.frames)
    head += b"".join(map(_LEVEL.pack, segment.sizes, segment.crcs))
    return head + _CRC.pack(zlib.crc32(head))


def _parse(header: bytes, layout: Layout, position: int) -> Segment | None:
    """The segment that ``header``, at byte ``position``, belongs to; None where that is no whole, sound header."""
    if len(header) < header_size(layout) or not header.startswith(_MARK):
        return None
    head, checksum = header[: -_CRC.size], header[-_CRC.size :]
    if _CRC.pack(zlib.crc32(head)) != checksum:
        return None
    _, first_step, frames = _HEAD.unpack_from(head)
    if frames < 1:
        return None
    geometry = replace(layout.geometry, first_step=first_step, frames=frames)
    sizes, crcs = zip(*_LEVEL.iter_unpack(head[_HEAD.size :]), strict=True)
    if sizes != layout.level_sizes(geometry):
        return None
    return Segment(geometry=geometry, offset=position + len(header), sizes=sizes, crcs=crcs)


def _chain(layout: Layout, start: int, stop: int, header_at: Callable[[int, int], bytes]) -> list[Segment]:
    """Segments from byte ``start``, none beyond ``stop``, as long as each continues the one before.

    ``header_at(number, position)`` gives the bytes of the next header.
    """
    segments: list[Segment] = []
    position = start
    while segment := _parse(header_at(len(segments), position), layout, position):
        if segment.end() > stop or not _continues(segment, segments[-1] if segments else None, layout):
            break
        segments.append(segment)
        position = segment.end()
    return segments


def _continues(segment: Segment, before: Segment | None, layout: Layout) -> bool:
    if before is None:
        return segment.geometry.first_step == layout.geometry.first_step
    try:
        before.geometry.join(segment.geometry)
    except ValueError:
        return False
    return True


def _indexed(file: BinaryIO, layout: Layout, start: int) -> list[Segment] | None:
    """The segments by the index at the end of the file; None where there is no sound one."""
    stop = os.fstat(file.fileno()).st_size - _TRAILER.size
    if stop < start:
        return None
    file.seek(stop)
    count, checksum, mark = _TRAILER.unpack(file.read(_TRAILER.size))
    size = header_size(layout)
    begin = stop - count * size
    if mark != _END or begin < start:
        return None
    file.seek(begin)
    headers = file.read(count * size)
    if zlib.crc32(headers + _CRC.pack(count)) != checksum:
        return None
    segments = _chain(layout, start, begin, lambda number, _: headers[number * size : (number + 1) * size])
    return segments if segments and len(segments) == count and segments[-1].end() == begin else None


def _walked(file: BinaryIO, layout: Layout, start: int) -> list[Segment]:
    """The whole segments of a file without an index."""

    def header_at(_: int, position: int) -> bytes:
        file.seek(position)
        return file.read(header_size(layout))

    size = os.fstat(file.fileno()).st_size
    segments = _chain(layout, start, size, header_at)
    end = segments[-1].end() if segments else start
    next_step = sum(segment.geometry.latent_steps for segment in segments) + layout.geometry.first_step
    if end < size and _goes_on(file, layout, end, next_step):
        raise PyraFileError(
            f"{file.name} is damaged: latent step {next_step} should begin at byte {end}, and whole segments follow "
            "further on"
        )
    return segments


def _goes_on(file: BinaryIO, layout: Layout, position: int, step: int) -> bool:
    """Is there, behind ``position``, a whole header of a segment at or behind latent step ``step``?"""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while (position := data.find(_MARK, position + 1)) >= 0:
            segment = _parse(data[position : position + header_size(layout)], layout, position)
            if segment is not None and segment.geometry.first_step >= step:
                return True
    return False
