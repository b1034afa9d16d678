"""What reading and writing video share: the error, how a file is opened, frame rates, the note of the true size."""

from __future__ import annotations

import math
import os
import re
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer

PathLike = str | os.PathLike[str]

FALLBACK_FPS = 25.0
"""Frames per second where nothing tells the rate: of stills, and of clips that were bare tensors."""

_SCRIPTS = {"tty": "a text file, not a video or image", "concat": "a list of files for FFmpeg, not a video or image"}
"""What FFmpeg would play by its own rules: text as a terminal recording, a list as the files that it names."""


class VideoError(ValueError):
    """A video or image that cannot be read or written: one line that names the file, the cause and the fix."""


def exact_rate(fps: float | Fraction) -> Fraction:
    """Frame rate as the fraction it stands for: 29.97002997... becomes 30000/1001. Raises ValueError unless > 0."""
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number of frames per second, got {fps}")
    return Fraction(fps).limit_denominator(1001) or Fraction(fps).limit_denominator(10**9)


def note_true_size(height: int, width: int) -> str:
    """Metadata comment of a file whose sides had to be padded to even numbers."""
    return f"pyratok true size {width}x{height}"


def parse_true_size(metadata: dict[str, str]) -> tuple[int, int] | None:
    """(height, width) out of :func:`note_true_size`, None where there is no such note."""
    comment = next((value for key, value in metadata.items() if key.lower() == "comment"), "")
    found = re.fullmatch(r"pyratok true size (\d+)x(\d+)", comment)
    return (int(found[2]), int(found[1])) if found else None


def open_media(path: PathLike) -> InputContainer:
    """Open a file for reading; every failure is a VideoError. The caller closes the container."""
    file = Path(path)
    if not file.exists():
        raise VideoError(f"{file}: no such file")
    if not file.is_file():
        raise VideoError(f"{file}: is {'a folder' if file.is_dir() else 'a device'}, expected a video or image file")
    if file.stat().st_size == 0:
        raise VideoError(f"{file}: the file is empty")
    try:
        # "file:" keeps a colon in a name from being taken for a protocol.
        container = av.open(f"file:{file}", "r", metadata_errors="replace")
    except PermissionError as error:
        raise VideoError(f"{file}: no permission to read it") from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{file}: {_why_unreadable(file)}") from error
    if container.format.name in _SCRIPTS:
        container.close()
        raise VideoError(f"{file}: {_SCRIPTS[container.format.name]}")
    return container


def _why_unreadable(file: Path) -> str:
    """Name the usual reasons why FFmpeg does not know a file."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    if head[4:8] == b"ftyp":
        return "damaged or cut short: an MP4 without its index (moov); copy or record the file again"
    if all(byte >= 32 or byte in b"\t\n\r\f\x1b" for byte in head):
        return "a text file, not a video or image"
    return "not a video or image that FFmpeg can read, or damaged"


def why_undecodable(file: Path) -> str:
    """Why not even the first frame of a file of known format can be decoded."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if head[8:12] == b"WEBP" and b"ANIM" in head:
        return "an animated WebP, which FFmpeg cannot decode; convert it to GIF, APNG or MP4"
    return "damaged, its first frames cannot be decoded"
