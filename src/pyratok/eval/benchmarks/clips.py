"""Files of a dataset and clips from them, as several benchmarks read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pyratok.data.manifests import VIDEO_SUFFIXES
from pyratok.data.video_io import VideoError, iter_video, load_video
from pyratok.eval.reconstruction import find_clips
from pyratok.types import TokenPyramid, Video

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer

_CHUNK = 32


def videos_by_stem(folder: Path) -> dict[str, Path]:
    """Every video file below a folder by its name without suffix; of several of one name the first, by path."""
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(parent, name) for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                found.setdefault(path.stem, path)
    return found


def videos_of(data: Path) -> list[Path]:
    """The video files below a folder, sorted, or the one that ``data`` is; none where there is none."""
    try:
        found = find_clips(data)
    except ValueError:
        return []
    return [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]


def load_pictures(paths: Sequence[Path], size: int | None, fps: float | None) -> Video:
    """Images as the frames of a clip ``[1, 3, T, H, W]``, the short side scaled to ``size`` pixels.

    Raises: :class:`~pyratok.data.video_io.VideoError`, also where they are not of one size.
    """
    frames = [load_video(path, size=size).plain() for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            sizes = " and ".join("x".join(map(str, shape[:-3:-1])) for shape in (frame.shape, frames[0].shape))
            raise VideoError(f"{path}: not of the size of the first frame of its video, {sizes}")
    return Video(torch.cat(frames, dim=2), fps)


def tokens_of_file(model: VideoTokenizer, path: Path, *, size: int | None, fps: float | None) -> TokenPyramid:
    """Tokens of a video of any length, read piece by piece: those of ``model.encode`` of the whole.

    Raises: :class:`~pyratok.data.video_io.VideoError`.
    """
    with model.stream() as stream:
        parts = [stream.push(piece) for piece in iter_video(path, chunk=_CHUNK, size=size, fps=fps)]
        parts.append(stream.flush())
    return TokenPyramid.concat(part for part in parts if part is not None)
