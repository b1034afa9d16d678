"""The ``.pyra`` file: one token pyramid, its levels one after another, or the segments of one that grows.

This is the file that :func:`save_tokens` writes whole; the one that grows is described in
:mod:`pyratok.codec.segments` and read by the same functions. All integers are little-endian; offsets and sizes are
in bytes.

======  ====  =========================================================================================
offset  size  content
======  ====  =========================================================================================
0       8     magic ``89 50 59 52 0D 0A 1A 0A``: not text, and its line ends show text-mode damage
8       2     format version, 1
10      2     flags, 0 (bit 1 appended segments; reserved: bit 0 entropy-coded levels)
12      4     N, size of the header, at most ``MAX_HEADER``
16      4     CRC-32 of bytes 0 to 15 and of the header
20      N     header, JSON in UTF-8 with sorted keys
20 + N        levels, shallow to deep, without gaps, to the end of the file
======  ====  =========================================================================================

Header: ``batch_size``, ``geometry`` (the fields of :class:`~pyratok.types.Geometry`), ``levels`` (for each
``grid`` [t, h, w], ``offset`` from byte 20 + N, ``size``, ``crc32``), ``model`` (``name``, ``fingerprint``),
``num_bits``. Other keys are ignored, so a later writer may add facts that a reader can do without; whatever a
reader must understand gets a flag or a new version, which older readers refuse.

A level is its ids ``[B, t, h, w]`` in row-major order, ``num_bits`` bits each, packed without gaps: bit i of
the id of token n is bit ``n * num_bits + i`` of the level, and bit j of a level is bit ``j % 8`` (least
significant first, as in :mod:`pyratok.quantization.bits`) of its byte ``j // 8``. The last byte is filled up
with zeros. The same tokens always give the same bytes.

Since every level has its own place and CRC, the first n levels can be read from a file that was cut, or
damaged, behind them.
"""

from __future__ import annotations

import json
import os
import warnings
from bisect import bisect_right
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from pyratok.codec.layout import (
    MAGIC,
    MAX_HEADER,
    MAX_LEVELS,
    SEGMENTED,
    VERSION,
    Layout,
    PyraFileError,
    Segment,
    check_size,
    front_bytes,
    integer,
    making_sense,
    pack_ids,
    packed_size,
    read_front,
    unpack_ids,
)
from pyratok.codec.segments import index_size, read_segment, scan
from pyratok.codec.segments import to_fields as segmented_fields
from pyratok.codec.writer import SEGMENT_STEPS, PyraWriter
from pyratok.files import replacing
from pyratok.types import Geometry, ModelId, TokenPyramid

__all__ = [
    "MAGIC",
    "MAX_HEADER",
    "MAX_LEVELS",
    "SEGMENT_STEPS",
    "VERSION",
    "PyraFileError",
    "PyraReader",
    "PyraWriter",
    "Segment",
    "bits_on_disk",
    "load_tokens",
    "open_tokens",
    "pack_ids",
    "packed_size",
    "read_header",
    "save_tokens",
    "unpack_ids",
]

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class PyraReader:
    """A ``.pyra`` file of either kind whose tokens are read when they are asked for; it holds no open file.

    ``segments`` are the parts that can be read one by one, a single one in a file that was written whole.
    ``complete`` is False for a file whose writer was killed or is still at work; then the segments are those that
    were whole when it was opened. ``segment_steps`` is the usual number of latent steps of a segment, None in a file
    that was written whole; ``header_size`` counts the bytes in front of the first segment.
    """

    path: Path
    layout: Layout
    segments: tuple[Segment, ...]
    complete: bool
    segment_steps: int | None
    header_size: int

    @cached_property
    def geometry(self) -> Geometry:
        """Of all that can be read."""
        frames = sum(segment.geometry.frames for segment in self.segments)
        return replace(self.segments[0].geometry, frames=frames)

    @property
    def num_steps(self) -> int:
        """Latent steps that can be read."""
        return self.geometry.latent_steps

    @property
    def model(self) -> ModelId:
        return self.layout.model

    @property
    def num_levels(self) -> int:
        return self.layout.num_levels

    @property
    def batch_size(self) -> int:
        return self.layout.batch_size

    @property
    def num_bits(self) -> int:
        return self.layout.num_bits

    @cached_property
    def _first_steps(self) -> list[int]:
        return [segment.geometry.first_step for segment in self.segments]

    @property
    def level_bytes(self) -> tuple[int, ...]:
        """Bytes of each level, over all segments."""
        return tuple(map(sum, zip(*(segment.sizes for segment in self.segments), strict=True)))

    def read(self, start: int | None = None, stop: int | None = None, levels: int | None = None) -> TokenPyramid:
        """Latent steps ``start:stop`` (default: all) of the first ``levels`` levels (default: all).

        The same as ``time_slice(start, stop)`` and ``prefix(levels)`` of the whole; counted from the beginning of the
        file. Of the segments that hold these steps the levels asked for are read and checked, and nothing else.

        Raises: :class:`PyraFileError` for what is not there, or damaged.
        """
        total, origin = self.num_steps, self.geometry.first_step
        first = 0 if start is None else start
        last = total if stop is None else stop
        if not 0 <= first < last <= total:
            raise PyraFileError(f"{self.path} holds latent steps 0:{total}, asked for {first}:{last}")
        parts = []
        with self.path.open("rb") as file:
            count = self._check(file, levels)
            number = bisect_right(self._first_steps, origin + first)
            while first < last:
                part = self._read(file, number, count)
                begin = part.geometry.first_step - origin
                end = min(last, begin + part.geometry.latent_steps)
                parts.append(part.time_slice(first - begin, end - begin))
                first, number = end, number + 1
        return TokenPyramid.concat(parts)

    def num_bytes(self, levels: int | None = None) -> int:
        """Bytes of a file that holds the first ``levels`` levels (default: all) of this one."""
        with self.path.open("rb") as file:
            count = self._check(file, levels)
        index = index_size(self.layout, len(self.segments)) if self.segment_steps and self.complete else 0
        return self.segments[-1].end() + index - sum(self.level_bytes[count:])

    def _read(self, file: BinaryIO, number: int, count: int) -> TokenPyramid:
        """A segment, counted from 1."""
        segment = self.segments[number - 1]
        if self.segment_steps is None:
            return self.layout.read(file, segment, count)
        return read_segment(file, self.layout, segment, count, number)

    def _check(self, file: BinaryIO, levels: int | None) -> int:
        """Number of levels to read. In a file written whole these must be there, and all of them must be all of it."""
        count = self.num_levels if levels is None else levels
        if not 1 <= count <= self.num_levels:
            raise PyraFileError(f"{self.path} holds {self.num_levels} levels, asked for the first {count}")
        if self.segment_steps is None:
            (segment,) = self.segments
            check_size(file, segment, count)
            surplus = os.fstat(file.fileno()).st_size - segment.end()
            if count == self.num_levels and surplus:
                raise PyraFileError(f"{self.path} has {surplus} bytes of something else behind its last level")
        return count


def open_tokens(path: PathLike) -> PyraReader:
    """Look at what a ``.pyra`` file holds, without reading its levels.

    Raises: :class:`PyraFileError` for a foreign, damaged or newer file, and one that holds no whole segment yet;
    OSError where it cannot be opened.
    """
    with Path(path).open("rb") as file:
        front = read_front(file)
        if not front.flags & SEGMENTED:
            with making_sense(file.name):
                layout, segment = _from_fields(front.fields, front.size)
            return PyraReader(
                path=Path(path),
                layout=layout,
                segments=(segment,),
                complete=True,
                segment_steps=None,
                header_size=front.size,
            )
        contents = scan(file, front)
    if not contents.segments:
        raise PyraFileError(f"{path} holds no whole segment: its writer was killed early, or has just begun")
    return PyraReader(
        path=Path(path),
        layout=contents.layout,
        segments=contents.segments,
        complete=contents.complete,
        segment_steps=contents.segment_steps,
        header_size=front.size,
    )


def load_tokens(
    path: PathLike, levels: int | None = None, start: int | None = None, stop: int | None = None
) -> TokenPyramid:
    """Read a pyramid, its first ``levels`` levels, its latent steps ``start:stop``; see :meth:`PyraReader.read`.

    By default the whole file is checked, to its last byte. Of one whose writer was killed or is still at work, what
    is there is read, with a warning where no ``stop`` was given.

    Raises: :class:`PyraFileError` for a foreign, damaged, truncated, extended or newer file, or one with fewer
    levels or steps than asked for; OSError where it cannot be opened.
    """
    reader = open_tokens(path)
    if stop is None and not reader.complete:
        warnings.warn(
            f"{path} is unfinished, its writer was killed or is still at work: its first {reader.num_steps} latent "
            f"steps ({reader.geometry.frames} frames) are read",
            stacklevel=2,
        )
    return reader.read(start, stop, levels)


def save_tokens(tokens: TokenPyramid, path: PathLike) -> None:
    """Write a pyramid to a ``.pyra`` file, whole or not at all; an existing file is replaced.

    Raises: ValueError for more levels or a longer model name than the format holds; OSError where the folder cannot
    be written.
    """
    layout = Layout.of(tokens)
    segment, payload = layout.pack(tokens, offset=0)
    fields = _to_fields(layout, segment)
    # Whatever is written can be read back: a pyramid beyond the format's limits is refused here.
    _from_fields(json.loads(json.dumps(fields)), start=0)
    front = front_bytes(fields)
    with replacing(Path(path)) as temporary, temporary.open("xb") as file:
        file.writelines([front, payload])


def read_header(path: PathLike) -> dict[str, Any]:
    """What a file says of itself, without reading its levels: the fields listed at the top of this module, or of
    :mod:`pyratok.codec.segments`, with ``version`` (of the format) and ``header_size`` (bytes in front of the first
    level or segment).

    Raises: as :func:`open_tokens`.
    """
    reader = open_tokens(path)
    if reader.segment_steps is None:
        fields = _to_fields(reader.layout, reader.segments[0], reader.header_size)
    else:
        fields = segmented_fields(reader.layout, reader.segment_steps)
    plain: dict[str, Any] = json.loads(json.dumps(fields))
    return plain | {"version": VERSION, "header_size": reader.header_size}


def bits_on_disk(path: PathLike, levels: int | None = None) -> int:
    """Bits of a file that holds the first ``levels`` levels (default: all) of this one, header included.

    Divided by frames x height x width of the true video this is the bits per pixel that compression reports.

    Raises: as :func:`load_tokens`, for header and size.
    """
    return 8 * open_tokens(path).num_bytes(levels)


def _to_fields(layout: Layout, segment: Segment, start: int = 0) -> dict[str, Any]:
    """The header of a file that is written whole; ``start`` is the byte at which its levels begin."""
    places = enumerate(zip(segment.sizes, segment.crcs, strict=True))
    return {
        "batch_size": layout.batch_size,
        "geometry": asdict(layout.geometry),
        "levels": [
            {
                "grid": segment.geometry.grid(index),
                "offset": segment.end(index) - start,
                "size": size,
                "crc32": crc,
            }
            for index, (size, crc) in places
        ],
        "model": asdict(layout.model),
        "num_bits": layout.num_bits,
    }


def _from_fields(fields: dict[str, Any], start: int) -> tuple[Layout, Segment]:
    """Inverse of :func:`_to_fields`. Raises LookupError, TypeError or ValueError for what no writer would write."""
    entries = fields["levels"]
    layout = Layout.from_fields(fields, len(entries))
    segment = Segment(
        geometry=layout.geometry,
        offset=start,
        sizes=layout.level_sizes(layout.geometry),
        crcs=tuple(integer(entry["crc32"], 0) for entry in entries),
    )
    for index, entry in enumerate(entries):
        place = [*layout.geometry.grid(index)], segment.end(index) - start, segment.sizes[index]
        if (entry["grid"], entry["offset"], entry["size"]) != place:
            raise ValueError(f"the place of level {index + 1} does not follow from the geometry")
    return layout, segment
