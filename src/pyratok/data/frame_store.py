"""Decoded frames on disk: random access to training footage without decoding it again.

One ``.npy`` of uint8 ``[T, H, W, 3]`` per video, memory-mapped. Decoding a random short clip from H.264 costs a seek
and up to a whole group of pictures; a memory-mapped slice costs a page fault, which on two cores is the difference
between the loader and the model being the bottleneck.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from pyratok.data.video_io import iter_frames


class FrameStore:
    """Frames of a video file, decoded once into ``cache`` and mapped from there.

    ``max_side``: frames whose short side is larger are stored with that short side.
    """

    def __init__(self, cache: str | os.PathLike[str], max_side: int = 288) -> None:
        self.cache = Path(cache)
        self.max_side = max_side
        self._open: dict[Path, np.ndarray] = {}

    def path_of(self, video: Path) -> Path:
        """Where the frames of ``video`` are kept; changes when the file does."""
        stat = video.stat()
        key = f"{video.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{self.max_side}"
        return self.cache / f"{video.stem}-{hashlib.sha1(key.encode()).hexdigest()[:12]}.npy"

    def frames(self, video: Path) -> np.ndarray:
        """Read-only uint8 ``[T, H, W, 3]``."""
        if video not in self._open:
            path = self.path_of(video)
            if not path.exists():
                self._decode(video, path)
            self._open[video] = np.load(path, mmap_mode="r")
        return self._open[video]

    def _decode(self, video: Path, path: Path) -> None:
        import cv2

        shrunk: list[np.ndarray] = []
        for _, frame in iter_frames(video):
            scale = self.max_side / min(frame.shape[:2])
            if scale < 1:
                height, width = (round(side * scale) for side in frame.shape[:2])
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            shrunk.append(frame)
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp.npy")
        try:
            np.save(temporary, np.stack(shrunk))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
