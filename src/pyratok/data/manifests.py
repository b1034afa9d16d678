"""From folders and manifests to lists of videos, photographs and sprites."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pyratok.data.opencv import opencv

VIDEO_SUFFIXES = frozenset(".mp4 .mkv .webm .mov .avi .m4v .mpg .mpeg .ts .gif .y4m .ogv .flv .wmv".split())
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .tif .tiff".split())
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
MANIFEST_SUFFIXES = frozenset({".jsonl", ".csv"})
PNG = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (PNG, b"\xff\xd8\xff")
"""How PNG and JPEG begin."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A media file and what it shows; ``caption`` is empty where nothing is known."""

    path: Path
    caption: str = ""


class LeftOutWarning(UserWarning):
    """The work goes on without a part of the data. ``causes``: all of it, by name, and why."""

    def __init__(self, message: str, causes: Mapping[Path, str] | Mapping[str, str]) -> None:
        super().__init__(message)
        self.causes = {str(name): cause for name, cause in causes.items()}


@dataclass(frozen=True, kw_only=True)
class Media:
    """Training material by kind; sprites are images with an alpha channel."""

    videos: tuple[Entry, ...]
    photos: tuple[Entry, ...]
    sprites: tuple[Entry, ...]


def gather(roots: Sequence[str | os.PathLike[str]], exclude: Iterable[str] = ()) -> Media:
    """Collect media from files, folders (searched through) and manifests (``.jsonl``, ``.csv``).

    A manifest row has ``path`` (relative to the manifest) and ``caption``; in a folder a side-car ``.txt`` is the
    caption. Manifests inside a folder give captions to the files they name; tables there that are no manifests are
    passed over with a warning. Hidden files are left alone, links to folders are not followed, a file that is named
    twice counts once, and files whose stem is in ``exclude`` are left out: held-out clips.

    Files that a manifest names and that are not there, and images whose header says that they are none, are left out
    and reported (:func:`report_broken`); whether a video can be read is found out by who reads it.

    Raises ValueError for a root that is not there, a broken manifest, and where nothing is found.
    """
    captions: dict[Path, str] = {}
    found: dict[Path, None] = {}
    broken: dict[Path, str] = {}
    for root in map(_absolute, roots):
        if not root.exists():
            raise ValueError(f"{root}: no such file or folder")
        if root.suffix.lower() in MANIFEST_SUFFIXES and root.is_file():
            entries = read_manifest(root)
            named = dict.fromkeys(entry.path for entry in entries)
            absent = {path: cause for path in named if (cause := why_absent(path))}
            report_broken(f"files named in {root}", len(named), absent)
            captions |= _captions(entries)
            found |= dict.fromkeys(path for path in named if path not in absent)
            continue
        for path in [root] if root.is_file() else _visible_files(root, broken):
            if path.suffix.lower() in MEDIA_SUFFIXES:
                found[path] = None
            elif path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
                try:
                    captions |= _captions(read_manifest(path))
                except ValueError as error:
                    warnings.warn(f"passed over: {error}", stacklevel=2)
    left_out = set(exclude)
    kinds: dict[str, list[Entry]] = {"videos": [], "photos": [], "sprites": []}
    for path in found:
        if path.stem in left_out:
            continue
        try:
            kind = kind_of(path)
        except ValueError as error:
            broken[path] = str(error)
        else:
            kinds[kind].append(Entry(path=path, caption=captions.get(path) or _side_car(path)))
    report_broken("files found", len(found | broken), broken)
    if not any(kinds.values()):
        raise ValueError(f"no videos or images found in {', '.join(map(str, roots))}")
    return Media(**{name: tuple(entries) for name, entries in kinds.items()})


def _captions(entries: Sequence[Entry]) -> dict[Path, str]:
    """What rows say, without those that say nothing: a second row of a file does not take its caption away."""
    return {entry.path: entry.caption for entry in entries if entry.caption}


def _side_car(path: Path) -> str:
    """The text beside a file; empty where there is none."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        return ""
    try:
        return text.read_text("utf-8-sig", "replace").strip()
    except OSError as error:
        warnings.warn(f"passed over: {text}: {error.strerror}", stacklevel=3)
        return ""


def report_broken(what: str, total: int, causes: Mapping[Path, str] | Mapping[str, str], listed: int = 10) -> None:
    """Warn of what is left out of ``total`` ones (:class:`LeftOutWarning`), listing the first few with the cause.

    Raises ValueError when they are more than half: then it is not the files that are broken.
    """
    if not causes:
        return
    lines = [f"  {path}: {cause}" for path, cause in islice(causes.items(), listed)]
    lines += [f"  and {len(causes) - listed} more"] if len(causes) > listed else []
    message = "\n".join([f"{len(causes)} of {total} {what} cannot be used:", *lines])
    if 2 * len(causes) > total:
        raise ValueError(message)
    warnings.warn(LeftOutWarning(f"left out: {message}", causes), stacklevel=3)


def read_manifest(path: Path) -> list[Entry]:
    """Rows of a ``.jsonl`` or ``.csv`` manifest with the columns ``path`` and, optionally, ``caption``, in UTF-8.

    Rows that are something else are left out and reported (:func:`report_broken`). Raises ValueError for a file that
    cannot be read, or most of whose rows are none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows: Sequence[str | dict[str, Any]] = [line for line in text.split("\n") if line.strip()]
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a manifest ({error})") from None
    entries: list[Entry] = []
    broken: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        try:
            entries.append(_read_row(row, path.parent))
        except (ValueError, LookupError, TypeError, AttributeError):
            broken[f"{path}, row {number}"] = f"no 'path' and 'caption' but {row!r:.100}"
    report_broken(f"rows of {path}", len(rows), broken)
    return entries


def _read_row(row: str | dict[str, Any], folder: Path) -> Entry:
    values = json.loads(row) if isinstance(row, str) else row
    name, caption = values["path"].strip(), values.get("caption")
    caption = "" if caption is None else caption.strip()
    caption.encode()  # JSON can hold halves of characters, which no tokenizer takes
    if not name:
        raise ValueError("an empty path")
    return Entry(path=_absolute(folder / name), caption=caption)


def why_absent(path: Path) -> str:
    """Why there is no file under that name; empty where there is one."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return "" if stat.S_ISREG(mode) else "is a folder" if stat.S_ISDIR(mode) else "is a device"


def _absolute(path: str | os.PathLike[str]) -> Path:
    """One name for one file; links are not followed, because what they lead to may be called otherwise."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _visible_files(folder: Path, broken: dict[Path, str]) -> list[Path]:
    """All files below ``folder``, and links to nothing, sorted, without those that are hidden or in a hidden folder.

    Folders that cannot be looked into are noted in ``broken``.
    """

    def note(error: OSError) -> None:
        broken[Path(error.filename)] = (error.strerror or str(error)).lower()

    files: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


def kind_of(path: Path) -> str:
    """The field of :class:`Media` for a file: by suffix and, for images, by the header's word on an alpha channel.

    ValueError where what is no video is no image either.
    """
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos"
    if cause := why_absent(path):
        raise ValueError(cause)
    try:
        with path.open("rb") as file:
            header = file.read(32)
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from None
    if not header:
        raise ValueError("the file is empty")
    # OpenCV would open the file again: asked only of what begins in none of the usual ways.
    if not header.startswith(SIGNATURES) and not opencv().haveImageReader(os.fspath(path)):
        raise ValueError("neither a video nor an image that OpenCV reads")
    header = header.ljust(32, b"\0")
    png_alpha = header.startswith(PNG) and header[25] in (4, 6)
    webp_alpha = header[8:16] == b"WEBPVP8X" and bool(header[20] & 0x10)
    lossless_webp_alpha = header[8:16] == b"WEBPVP8L" and bool(header[24] & 0x10)
    return "sprites" if png_alpha or webp_alpha or lossless_webp_alpha else "photos"
