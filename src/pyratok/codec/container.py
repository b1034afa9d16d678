"""The ``.pyra`` file: one token pyramid, its levels one after another.

All integers are little-endian; offsets and sizes are in bytes.

======  ====  =========================================================================================
offset  size  content
======  ====  =========================================================================================
0       8     magic ``89 50 59 52 0D 0A 1A 0A``: not text, and its line ends show text-mode damage
8       2     format version, 1
10      2     flags, 0 (reserved: bit 0 entropy-coded levels, bit 1 appended segments)
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
import math
import os
import struct
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from pyratok.files import replacing
from pyratok.types import Geometry, ModelId, TokenPyramid

MAGIC = b"\x89PYR\r\n\x1a\n"
VERSION = 1
MAX_HEADER = 1 << 16
MAX_LEVELS = 256

_PREAMBLE = struct.Struct("<8sHHI")
_FRONT = _PREAMBLE.size + 4


class PyraFileError(ValueError):
    """The file is not a whole, sound ``.pyra`` file that this version can read."""


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
class _Level:
    grid: tuple[int, int, int]
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The checked content of a header; ``start`` is the byte at which the first level begins."""

    batch_size: int
    geometry: Geometry
    levels: tuple[_Level, ...]
    model: ModelId
    num_bits: int
    start: int = 0

    def end(self, num_levels: int) -> int:
        """Bytes of the file up to the end of the first ``num_levels`` levels."""
        return self.start + sum(level.size for level in self.levels[:num_levels])

    def to_json(self) -> bytes:
        fields = asdict(self)
        del fields["start"]
        return json.dumps(fields, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, fields: dict[str, Any], start: int) -> _Header:
        """Trust nothing: every value is checked before anything of its size is allocated.

        Raises: LookupError, TypeError or ValueError for what no writer would write.
        """
        batch_size = _integer(fields["batch_size"], 1)
        num_bits = _integer(fields["num_bits"], 1, 30)
        geometry = _geometry(fields["geometry"])
        model = ModelId(name=_text(fields["model"]["name"]), fingerprint=_text(fields["model"]["fingerprint"]))
        entries = fields["levels"]
        if not 1 <= len(entries) <= len(geometry.strides):
            raise ValueError(f"{len(entries)} levels for {len(geometry.strides)} strides")
        levels: list[_Level] = []
        offset = 0
        for index, entry in enumerate(entries):
            grid = geometry.grid(index)
            size = packed_size(batch_size * math.prod(grid), num_bits)
            if (entry["grid"], entry["offset"], entry["size"]) != (list(grid), offset, size):
                raise ValueError(f"the place of level {index + 1} does not follow from the geometry")
            levels.append(_Level(grid=grid, offset=offset, size=size, crc32=_integer(entry["crc32"], 0)))
            offset += size
        return cls(
            batch_size=batch_size, geometry=geometry, levels=tuple(levels), model=model, num_bits=num_bits, start=start
        )


def _integer(value: Any, low: int, high: int = 2**32 - 1) -> int:
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
        frames=_integer(fields["frames"], 1),
        height=_integer(fields["height"], 1),
        width=_integer(fields["width"], 1),
        strides=tuple((_integer(t, 1), _integer(h, 1), _integer(w, 1)) for t, h, w in strides),
        fps=fps,
        first_step=_integer(fields["first_step"], 0),
    )


def save_tokens(tokens: TokenPyramid, path: str | os.PathLike[str]) -> None:
    """Write a pyramid to a ``.pyra`` file, whole or not at all; an existing file is replaced.

    Raises: ValueError for an empty batch, or more levels or a longer model name than the format holds;
    OSError where the folder cannot be written.
    """
    if tokens.batch_size < 1:
        raise ValueError("cannot save a pyramid of an empty batch")
    payloads = [pack_ids(ids.numpy(force=True), tokens.num_bits) for ids in tokens.levels]
    levels = []
    offset = 0
    for index, payload in enumerate(payloads):
        grid = tokens.geometry.grid(index)
        levels.append(_Level(grid=grid, offset=offset, size=len(payload), crc32=zlib.crc32(payload)))
        offset += len(payload)
    geometry = tokens.geometry
    header = _Header(
        batch_size=tokens.batch_size,
        geometry=geometry if geometry.fps is None else replace(geometry, fps=float(geometry.fps)),
        levels=tuple(levels),
        model=tokens.model,
        num_bits=tokens.num_bits,
    ).to_json()
    # Whatever is written can be read back: a pyramid beyond the format's limits is refused here.
    _Header.from_json(json.loads(header), start=0)
    if len(header) > MAX_HEADER:
        raise ValueError(f"the header takes {len(header)} bytes, at most {MAX_HEADER} fit; shorten the model name")
    preamble = _PREAMBLE.pack(MAGIC, VERSION, 0, len(header))
    checksum = zlib.crc32(preamble + header).to_bytes(4, "little")
    with replacing(Path(path)) as temporary, temporary.open("xb") as file:
        file.writelines([preamble, checksum, header, *payloads])


def load_tokens(path: str | os.PathLike[str], levels: int | None = None) -> TokenPyramid:
    """Read a pyramid, or its first ``levels`` levels without looking at the bytes behind them.

    With ``levels=None`` (or all of them) the whole file is checked, to its last byte.

    Raises: :class:`PyraFileError` for a foreign, damaged, truncated, extended or newer file, or one with fewer
    levels than asked for; OSError where it cannot be opened.
    """
    with Path(path).open("rb") as file:
        header = _read_header(file)
        count = _check_levels(file, header, levels)
        pyramid = []
        for index, level in enumerate(header.levels[:count]):
            data = file.read(level.size)
            if zlib.crc32(data) != level.crc32:
                raise PyraFileError(f"{path} is damaged in level {index + 1}: {_readable(index)}")
            ids = unpack_ids(data, header.batch_size * math.prod(level.grid), header.num_bits)
            pyramid.append(torch.from_numpy(ids).reshape(header.batch_size, *level.grid))
    return TokenPyramid(tuple(pyramid), header.geometry, header.model, header.num_bits)


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file says of itself, without reading its levels: the fields listed at the top of this module,
    with ``version`` (of the format) and ``header_size`` (bytes in front of the first level).

    Raises: as :func:`load_tokens`, for the header alone.
    """
    with Path(path).open("rb") as file:
        header = _read_header(file)
    fields: dict[str, Any] = json.loads(header.to_json())
    return fields | {"version": VERSION, "header_size": header.start}


def bits_on_disk(path: str | os.PathLike[str], levels: int | None = None) -> int:
    """Bits of a file that holds the first ``levels`` levels (default: all) of this one, header included.

    Divided by frames x height x width of the true video this is the bits per pixel that compression reports.

    Raises: as :func:`load_tokens`, for header and size.
    """
    with Path(path).open("rb") as file:
        header = _read_header(file)
        count = _check_levels(file, header, levels)
    return 8 * header.end(count)


def _read_header(file: BinaryIO) -> _Header:
    """Parse and check everything in front of the first level, and stop there."""
    path = file.name
    front = file.read(_FRONT)
    if not front.startswith(MAGIC):
        raise PyraFileError(f"{path} is not a .pyra file: {_looks_like(front)}")
    if len(front) < _FRONT:
        raise PyraFileError(f"{path} is truncated, it has only {len(front)} bytes")
    preamble, checksum = front[: _PREAMBLE.size], int.from_bytes(front[_PREAMBLE.size :], "little")
    _, version, flags, size = _PREAMBLE.unpack(preamble)
    if version != VERSION:
        raise PyraFileError(
            f"{path} has .pyra format version {version}, this pyratok reads version {VERSION}; upgrade pyratok"
        )
    if size > MAX_HEADER:
        raise PyraFileError(f"{path} is damaged: its header claims {size} bytes, at most {MAX_HEADER} are allowed")
    text = file.read(size)
    if len(text) < size:
        raise PyraFileError(f"{path} is truncated within its header")
    if zlib.crc32(preamble + text) != checksum:
        raise PyraFileError(f"{path} is damaged in its header")
    if flags:
        raise PyraFileError(f"{path} uses features (flags {flags:#x}) that this pyratok does not know; upgrade pyratok")
    try:
        return _Header.from_json(json.loads(text), start=_FRONT + size)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise PyraFileError(f"{path} has a header that makes no sense: {error}") from error


def _check_levels(file: BinaryIO, header: _Header, levels: int | None) -> int:
    """Number of levels to read: these must be there, and if they are all, nothing else may be."""
    path, held = file.name, len(header.levels)
    count = held if levels is None else levels
    if not 1 <= count <= held:
        raise PyraFileError(f"{path} holds {held} levels, asked for the first {count}")
    size, whole = os.fstat(file.fileno()).st_size, header.end(held)
    if size < header.end(count):
        complete = max(n for n in range(count) if header.end(n) <= size)
        raise PyraFileError(f"{path} is truncated, it has {size} of {whole} bytes: {_readable(complete)}")
    if count == held and size > whole:
        raise PyraFileError(f"{path} has {size - whole} bytes of something else behind its last level")
    return count


def _readable(num_levels: int) -> str:
    if not num_levels:
        return "no level can be read"
    return "levels=1 can be read" if num_levels == 1 else f"up to levels={num_levels} can be read"


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
