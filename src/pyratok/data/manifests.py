"""From folders and manifests to lists of videos, photographs and sprites."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

VIDEO_SUFFIXES = frozenset(".mp4 .mkv .webm .mov .avi .m4v .mpg .mpeg .ts .gif .y4m .ogv .flv .wmv".split())
IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .webp .bmp .tif .tiff".split())


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
    caption. Manifests inside a folder give captions to the files they name. Files whose stem is in ``exclude`` are
    left out: held-out clips.
    """
    captions: dict[Path, str] = {}
    found: dict[Path, None] = {}
    for root in map(Path, roots):
        if not root.exists():
            raise ValueError(f"{root}: no such file or folder")
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
        for path in files:
            if path.suffix in (".jsonl", ".csv"):
                for entry in read_manifest(path):
                    captions[entry.path] = entry.caption
                    if root.is_file():
                        found[entry.path] = None
            elif path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
                found[path] = None
    left_out = set(exclude)
    kinds: dict[str, list[Entry]] = {"videos": [], "photos": [], "sprites": []}
    for path in found:
        if path.stem in left_out:
            continue
        sidecar = path.with_suffix(".txt")
        caption = captions.get(path) or (sidecar.read_text().strip() if sidecar.is_file() else "")
        kinds[kind_of(path)].append(Entry(path=path, caption=caption))
    if not any(kinds.values()):
        raise ValueError(f"no videos or images found in {', '.join(map(str, roots))}")
    return Media(**{name: tuple(entries) for name, entries in kinds.items()})


def read_manifest(path: Path) -> list[Entry]:
    """Rows of a ``.jsonl`` or ``.csv`` manifest with the columns ``path`` and, optionally, ``caption``."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file if line.strip()]
    for number, row in enumerate(rows, start=1):
        if "path" not in row:
            raise ValueError(f"{path}: row {number} has no 'path' but {sorted(row)}")
    return [Entry(path=path.parent / row["path"], caption=row.get("caption") or "") for row in rows]


def kind_of(path: Path) -> str:
    """"videos", "photos" or "sprites", by suffix and, for images, by the header's word on an alpha channel."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos"
    header = path.open("rb").read(32)
    png_alpha = header[:8] == b"\x89PNG\r\n\x1a\n" and header[25] in (4, 6)
    webp_alpha = header[8:16] == b"WEBPVP8X" and bool(header[20] & 0x10)
    lossless_webp_alpha = header[8:16] == b"WEBPVP8L" and bool(header[24] & 0x10)
    return "sprites" if png_alpha or webp_alpha or lossless_webp_alpha else "photos"
