"""Decoded frames on disk: random access to training footage without decoding it again.

One ``.npy`` of uint8 ``[T, H, W, 3]`` per video, memory-mapped. Decoding a random short clip from H.264 costs a seek
and up to a whole group of pictures; a memory-mapped slice costs a page fault, which on two cores is the difference
between the loader and the model being the bottleneck.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pyratok.data.manifests import why_absent
from pyratok.data.opencv import opencv
from pyratok.data.video_io import VideoError, iter_frames
from pyratok.files import replacing


class FrameStore:
    """Frames of a video file, decoded once into ``cache`` and mapped from there.

    ``max_side``: frames whose short side is larger are stored with that short side.
    """

    def __init__(self, cache: str | os.PathLike[str], max_side: int = 288) -> None:
        self.cache = Path(cache)
        self.max_side = max_side
        self._open: dict[Path, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is sent this store maps the files itself; pickled, the maps would be whole videos.
        return self.__dict__ | {"_open": {}}

    def path_of(self, video: Path) -> Path:
        """Where the frames of ``video`` are kept; changes when the file does."""
        if cause := why_absent(video):
            raise VideoError(f"{video}: {cause}")
        stat = video.stat()
        key = f"{video.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{self.max_side}"
        # A name may be as long as names can be, and need not be text.
        return self.cache / f"{video.stem[:40]}-{hashlib.sha1(os.fsencode(key)).hexdigest()[:12]}.npy"

    def frames(self, video: Path) -> np.ndarray:
        """Read-only uint8 ``[T, H, W, 3]``, T >= 1. Raises VideoError where the video cannot be read to its end."""
        if video not in self._open:
            path = self.path_of(video)
            if not path.exists():
                self._decode(video, path)
            try:
                self._open[video] = np.load(path, mmap_mode="r")
            except (ValueError, EOFError):  # cut short by a full disk or a crash
                self._decode(video, path)
                self._open[video] = np.load(path, mmap_mode="r")
        return self._open[video]

    def _decode(self, video: Path, path: Path) -> None:
        """Write the frames one by one: a film does not fit in memory."""
        self.cache.mkdir(parents=True, exist_ok=True)
        count = 0
        with replacing(path) as temporary, open(temporary, "wb") as file:
            for _, frame in iter_frames(video):
                frame = self._shrink(frame)
                if not count:
                    _write_header(file, 0, frame)
                file.write(np.ascontiguousarray(frame).data)
                count += 1
            file.seek(0)
            # numpy leaves room for the number of frames to grow, so this is as long as the first one.
            _write_header(file, count, frame)

    def _shrink(self, frame: np.ndarray) -> np.ndarray:
        cv2 = opencv()

        scale = self.max_side / min(frame.shape[:2])
        if scale >= 1:
            return frame
        height, width = (round(side * scale) for side in frame.shape[:2])
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def _write_header(file: BinaryIO, count: int, frame: np.ndarray) -> None:
    """The ``.npy`` header of ``count`` such frames."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *frame.shape)}
    np.lib.format.write_array_header_1_0(file, header)
