"""From folders and manifests to lists of videos, photographs and sprites."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

VIDEO_SUFFIXES = frozenset(".mp4 .mkv .webm .mov .avi .m4v .mpg .mpeg .ts .gif .y4m .ogv .flv .wmv".split())
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .tif .tiff".split())
MANIFEST_SUFFIXES = frozenset({".jsonl", ".csv"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A media file and what it shows; ``caption`` is empty where nothing is known."""

    path: Path
    caption: str = ""


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
    passed over with a warning. Hidden files are left alone, a file that is named twice counts once, and files whose
    stem is in ``exclude`` are left out: held-out clips.

    Raises ValueError for a root that is not there, a broken manifest, and where nothing is found.
    """
    captions: dict[Path, str] = {}
    found: dict[Path, None] = {}
    for root in map(_absolute, roots):
        if not root.exists():
            raise ValueError(f"{root}: no such file or folder")
        if root.suffix.lower() in MANIFEST_SUFFIXES and root.is_file():
            entries = read_manifest(root)
            causes = {e.path: "no such file" for e in entries if not e.path.is_file()}
            report_broken(f"files named in {root}", len(entries), causes)
            captions |= {entry.path: entry.caption for entry in entries}
            found |= dict.fromkeys(entry.path for entry in entries if entry.path not in causes)
            continue
        for path in [root] if root.is_file() else _visible_files(root):
            if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
                found[path] = None
            elif path.suffix.lower() in MANIFEST_SUFFIXES:
                try:
                    captions |= {entry.path: entry.caption for entry in read_manifest(path)}
                except ValueError as error:
                    warnings.warn(f"passed over: {error}", stacklevel=2)
    left_out = set(exclude)
    kinds: dict[str, list[Entry]] = {"videos": [], "photos": [], "sprites": []}
    for path in found:
        if path.stem in left_out:
            continue
        sidecar = path.with_suffix(".txt")
        caption = captions.get(path) or (sidecar.read_text("utf-8", "replace").strip() if sidecar.is_file() else "")
        kinds[kind_of(path)].append(Entry(path=path, caption=caption))
    if not any(kinds.values()):
        raise ValueError(f"no videos or images found in {', '.join(map(str, roots))}")
    return Media(**{name: tuple(entries) for name, entries in kinds.items()})


def report_broken(what: str, total: int, causes: Mapping[Path, str], listed: int = 10) -> None:
    """Warn of the files that are left out of ``total`` ones, listing the first few with the cause.

    Raises ValueError when they are more than half: then it is not the files that are broken.
    """
    if not causes:
        return
    lines = [f"  {path}: {cause}" for path, cause in islice(causes.items(), listed)]
    lines += [f"  and {len(causes) - listed} more"] if len(causes) > listed else []
    message = "\n".join([f"{len(causes)} of {total} {what} cannot be used:", *lines])
    if 2 * len(causes) > total:
        raise ValueError(message)
    warnings.warn(f"left out: {message}", stacklevel=3)


def read_manifest(path: Path) -> list[Entry]:
    """Rows of a ``.jsonl`` or ``.csv`` manifest with the columns ``path`` and, optionally, ``caption``, in UTF-8.

    Raises ValueError naming the file and the row that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows: Iterable[str | dict[str, Any]] = [line for line in text.split("\n") if line.strip()]
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a manifest ({error})") from None
    return [_read_row(row, number, path) for number, row in enumerate(rows, start=1)]


def _read_row(row: str | dict[str, Any], number: int, manifest: Path) -> Entry:
    try:
        values = json.loads(row) if isinstance(row, str) else row
        name, caption = values["path"].strip(), (values.get("caption") or "").strip()
    except (ValueError, LookupError, TypeError, AttributeError):
        name = caption = ""
    if not name:
        raise ValueError(f"{manifest}: row {number} has no 'path' and 'caption' but {row!r:.100}")
    return Entry(path=_absolute(manifest.parent / name), caption=caption)


def _absolute(path: str | os.PathLike[str]) -> Path:
    """One name for one file; links are not followed, because what they lead to may be called otherwise."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _visible_files(folder: Path) -> list[Path]:
    """All files below ``folder``, sorted, without those that are hidden or in a hidden folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def kind_of(path: Path) -> str:
    """The field of :class:`Media` for a file: by suffix and, for images, by the header's word on an alpha channel."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos"
    with path.open("rb") as file:
        header = file.read(32).ljust(32, b"\0")
    png_alpha = header[:8] == b"\x89PNG\r\n\x1a\n" and header[25] in (4, 6)
    webp_alpha = header[8:16] == b"WEBPVP8X" and bool(header[20] & 0x10)
    lossless_webp_alpha = header[8:16] == b"WEBPVP8L" and bool(header[24] & 0x10)
    return "sprites" if png_alpha or webp_alpha or lossless_webp_alpha else "photos"
