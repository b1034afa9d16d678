"""What both kinds of ``.pyra`` file share: how they begin, how ids become bytes, and where the bytes of a level lie.

The formats themselves are described in :mod:`pyratok.codec.container` and :mod:`pyratok.codec.segments`.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from pyratok.types import Geometry, ModelId, TokenPyramid

MAGIC = b"\x89PYR\r\n\x1a\n"
VERSION = 1
SEGMENTED = 1 << 1
"""Flag of a file whose tokens come in segments."""
MAX_HEADER = 1 << 16
MAX_LEVELS = 256

PREAMBLE = struct.Struct("<8sHHI")
_FRONT = PREAMBLE.size + 4


class PyraFileError(ValueError):
    """The file is not a whole, sound ``.pyra`` file that this version can read."""


class CutShortError(PyraFileError):
    """The file ends before its header does, so that it holds no tokens."""


def pack_ids(ids: NDArray[np.integer[Any]], num_bits: int) -> bytes:
    """Integer ids in ``[0, 2**num_bits)``, any shape, as a bit stream of ``ceil(n * num_bits / 8)`` bytes."""
    if num_bits == 16:
        return ids.astype("<u2").tobytes()
    words = ids.astype("<u4").reshape(-1, 1).view(np.uint8)
    bits = np.unpackbits(words, axis=1, count=num_bits, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_ids(data: bytes, count: int, num_bits: int) -> NDArray[np.int32]:
    """Inverse of :func:`pack_ids`: the first ``count`` ids of the stream, int32 ``[count]``."""
    if num_bits == 16:
        return np.frombuffer(data, "<u2", count).astype(np.int32)
    stream = np.frombuffer(data, np.uint8)
    bits = np.unpackbits(stream, count=count * num_bits, bitorder="little").reshape(count, num_bits)
    words = np.zeros((count, 4), np.uint8)
    words[:, : packed_size(1, num_bits)] = np.packbits(bits, axis=1, bitorder="little")
    return words.view("<u4").reshape(count).astype(np.int32)


def packed_size(count: int, num_bits: int) -> int:
    """Bytes of ``count`` ids of ``num_bits`` bits."""
    return (count * num_bits + 7) // 8


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of latent steps in a file: their geometry, and the bytes and CRC-32 of each level held.

    ``offset`` is the byte of the file at which the first level begins; the others follow without gaps.
    """

    geometry: Geometry
    offset: int
    sizes: tuple[int, ...]
    crcs: tuple[int, ...]

    def end(self, num_levels: int | None = None) -> int:
        """The byte behind the first ``num_levels`` levels (default: all)."""
        return self.offset + sum(self.sizes[:num_levels])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What all tokens of a file have in common; how long they are, ``geometry`` says only in a file written whole."""

    geometry: Geometry
    batch_size: int
    num_levels: int
    model: ModelId
    num_bits: int

    @classmethod
    def of(cls, tokens: TokenPyramid) -> Layout:
        geometry = tokens.geometry
        return cls(
            # JSON tells 25 from 25.0.
            geometry=geometry if geometry.fps is None else replace(geometry, fps=float(geometry.fps)),
            batch_size=tokens.batch_size,
            num_levels=len(tokens.levels),
            model=tokens.model,
            num_bits=tokens.num_bits,
        )

    @classmethod
    def from_fields(cls, fields: dict[str, Any], num_levels: int) -> Layout:
        """Trust nothing: every value is checked before anything of its size is allocated.

        Raises: LookupError, TypeError or ValueError for what no writer would write.
        """
        geometry = _geometry(fields["geometry"])
        if not 1 <= num_levels <= len(geometry.strides):
            raise ValueError(f"{num_levels} levels for {len(geometry.strides)} strides")
        model = fields["model"]
        return cls(
            geometry=geometry,
            batch_size=integer(fields["batch_size"], 1),
            num_levels=num_levels,
            model=ModelId(name=_text(model["name"]), fingerprint=_text(model["fingerprint"])),
            num_bits=integer(fields["num_bits"], 1, 30),
        )

    def level_sizes(self, geometry: Geometry) -> tuple[int, ...]:
        """Bytes of every level of a part."""
        counts = (self.batch_size * math.prod(geometry.grid(level)) for level in range(self.num_levels))
        return tuple(packed_size(count, self.num_bits) for count in counts)

    def pack(self, tokens: TokenPyramid, offset: int) -> tuple[Segment, bytes]:
        """The bytes of a part, all levels, and what they are called at byte ``offset`` of a file."""
        levels = [pack_ids(ids.numpy(force=True), self.num_bits) for ids in tokens.levels]
        segment = Segment(
            geometry=tokens.geometry,
            offset=offset,
            sizes=tuple(map(len, levels)),
            crcs=tuple(map(zlib.crc32, levels)),
        )
        return segment, b"".join(levels)

    def read(self, file: BinaryIO, segment: Segment, num_levels: int, where: str = "") -> TokenPyramid:
        """The first ``num_levels`` levels of a segment; ``where`` tells people which one it is.

        Raises: :class:`PyraFileError` where bytes are missing or damaged.
        """
        check_size(file, segment, num_levels)
        file.seek(segment.offset)
        levels = []
        for index in range(num_levels):
            data = file.read(segment.sizes[index])
            if zlib.crc32(data) != segment.crcs[index]:
                raise PyraFileError(f"{file.name} is damaged in level {index + 1}{where}: {_readable(index)}")
            grid = segment.geometry.grid(index)
            ids = unpack_ids(data, self.batch_size * math.prod(grid), self.num_bits)
            levels.append(torch.from_numpy(ids).reshape(self.batch_size, *grid))
        return TokenPyramid(tuple(levels), segment.geometry, self.model, self.num_bits)


def check_size(file: BinaryIO, segment: Segment, num_levels: int) -> None:
    """Raises :class:`PyraFileError` where the file ends before the first levels of a segment do."""
    size = os.fstat(file.fileno()).st_size
    if size < segment.end(num_levels):
        complete = max(count for count in range(num_levels) if count == 0 or segment.end(count) <= size)
        raise PyraFileError(f"{file.name} is truncated, it has {size} of {segment.end()} bytes: {_readable(complete)}")


def _readable(num_levels: int) -> str:
    if not num_levels:
        return "no level can be read"
    return "levels=1 can be read" if num_levels == 1 else f"up to levels={num_levels} can be read"


def integer(value: Any, low: int, high: int = 2**32 - 1) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected an integer from {low} to {high}, got {value!r:.40}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {value!r:.40}")
    return value


def _geometry(fields: dict[str, Any]) -> Geometry:
    strides, fps = fields["strides"], fields["fps"]
    if len(strides) > MAX_LEVELS:
        raise ValueError(f"at most {MAX_LEVELS} strides, got {len(strides)}")
    if not (fps is None or isinstance(fps, float)):
        raise ValueError(f"expected a decimal fps or null, got {fps!r:.40}")
    return Geometry(
        frames=integer(fields["frames"], 1),
        height=integer(fields["height"], 1),
        width=integer(fields["width"], 1),
        strides=tuple((integer(t, 1), integer(h, 1), integer(w, 1)) for t, h, w in strides),
        fps=fps,
        first_step=integer(fields["first_step"], 0),
    )


@dataclass(frozen=True, kw_only=True)
class Front:
    """How a file begins: its flags, the JSON of its header, and the size of it all in bytes."""

    flags: int
    fields: Any
    size: int


def front_bytes(fields: dict[str, Any], flags: int = 0) -> bytes:
    """Magic, version, flags and header, with their checksum. Raises ValueError where the header is too long."""
    header = json.dumps(fields, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    if len(header) > MAX_HEADER:
        raise ValueError(f"the header takes {len(header)} bytes, at most {MAX_HEADER} fit; shorten the model name")
    preamble = PREAMBLE.pack(MAGIC, VERSION, flags, len(header))
    return preamble + zlib.crc32(preamble + header).to_bytes(4, "little") + header


def read_front(file: BinaryIO) -> Front:
    """Read and check how a file begins, and stop there. Raises :class:`PyraFileError`."""
    path = file.name
    front = file.read(_FRONT)
    if not front.startswith(MAGIC):
        kind = CutShortError if MAGIC.startswith(front) else PyraFileError
        raise kind(f"{path} is not a .pyra file: {_looks_like(front)}")
    if len(front) < _FRONT:
        raise CutShortError(f"{path} is truncated, it has only {len(front)} bytes")
    preamble, checksum = front[: PREAMBLE.size], int.from_bytes(front[PREAMBLE.size :], "little")
    _, version, flags, size = PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise PyraFileError(
            f"{path} has .pyra format version {version}, this pyratok reads version {VERSION}; upgrade pyratok"
        )
    if size > MAX_HEADER:
        raise PyraFileError(f"{path} is damaged: its header claims {size} bytes, at most {MAX_HEADER} are allowed")
    text = file.read(size)
    if len(text) < size:
        raise CutShortError(f"{path} is truncated within its header")
    if zlib.crc32(preamble + text) != checksum:
        raise PyraFileError(f"{path} is damaged in its header")
    if flags & ~SEGMENTED:
        raise PyraFileError(f"{path} uses features (flags {flags:#x}) that this pyratok does not know; upgrade pyratok")
    with making_sense(path):
        return Front(flags=flags, fields=json.loads(text), size=_FRONT + size)


@contextmanager
def making_sense(path: str) -> Iterator[None]:
    """One :class:`PyraFileError` for whatever is wrong with a header whose checksum is right."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise PyraFileError(f"{path} has a header that makes no sense: {error}") from error


_SIGNATURES = (
    (b"\x89PYR", "a .pyra file damaged at its start, as by a text-mode transfer; copy it again in binary mode"),
    (b"\xc2\x89PYR", "a .pyra file damaged by a conversion to UTF-8; copy it again in binary mode"),
    (b"\xef\xbf\xbdPYR", "a .pyra file damaged by a conversion to UTF-8; copy it again in binary mode"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"PK", "a ZIP archive, such as a PyTorch checkpoint"),
    (b"\x1f\x8b", "gzip-compressed data; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data; decompress it first"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
)


def _looks_like(head: bytes) -> str:
    """Describe a file by its first bytes."""
    if not head:
        return "it is empty"
    if MAGIC.startswith(head):
        return f"it ends after {len(head)} bytes"
    if head[4:8] == b"ftyp":
        return "it looks like an MP4 or QuickTime video"
    if head[:4] == b"RIFF":
        return {b"AVI ": "it looks like an AVI video", b"WEBP": "it looks like a WebP image"}.get(
            head[8:12], "it looks like a RIFF file"
        )
    if head[8:9] == b"{":
        return "it looks like a safetensors file"
    for signature, description in _SIGNATURES:
        if head.startswith(signature):
            return f"it looks like {description}"
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return f"it looks like text, starting with {head.decode('ascii')!r}"
    return f"it starts with the bytes {head[:8].hex(' ')}"
