"""Random cuts: as many as were asked for, different ones, the same every time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fakes import moving_video
from pyratok.data.cuts import SCRATCH, CutConfig, random_cuts
from pyratok.data.manifests import Entry
from pyratok.data.video_io import FALLBACK_FPS, VideoError, save_video

FRAMES, SIZE = 5, 16


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuts") / "a.mp4"
    save_video(moving_video(30, 72, 96), path, fps=10.0)
    return path


def cuts(entry: Entry, scratch: Path, name: str = "a", **config: int) -> list[tuple[np.ndarray, float]]:
    return list(random_cuts(entry, name, CutConfig(**config), frames=FRAMES, size=SIZE, scratch=scratch))


def test_cuts_of_a_video_follow_from_its_name(video: Path, tmp_path: Path) -> None:
    found = cuts(Entry(path=video), tmp_path, videos=6, photos=2)
    assert [(clip.shape, clip.dtype, fps) for clip, fps in found] == [((FRAMES, SIZE, SIZE, 3), np.uint8, 10.0)] * 6
    assert len({clip.tobytes() for clip, _ in found}) == 6
    again, fewer = cuts(Entry(path=video), tmp_path, videos=6), cuts(Entry(path=video), tmp_path, videos=3)
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(found, again, strict=True))
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(found, fewer, strict=False))
    other = cuts(Entry(path=video), tmp_path, name="b", videos=1)
    assert not np.array_equal(other[0][0], found[0][0])
    assert not list(tmp_path.glob(f"{SCRATCH}*"))


def test_what_a_caption_says_of_sides_stays_true(tmp_path: Path) -> None:
    """A video whose left half is bright: mirrored it is not, whatever is drawn."""
    picture = torch.full((1, 3, 12, 72, 72), -1.0)
    picture[..., :36] = 1.0
    path = tmp_path / "half.mp4"
    save_video(picture, path, fps=10.0)

    def sides(caption: str) -> set[bool]:
        clips = cuts(Entry(path=path, caption=caption), tmp_path, videos=24)
        left, right = (np.array([clip[:, :, part].mean() for clip, _ in clips]) for part in (slice(4), slice(-4, None)))
        return set((left > right)[left != right].tolist())

    assert sides("a bright half") == {True, False}
    assert sides("the left half is bright") == {True}


def test_a_camera_moves_over_a_photograph(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8))
    found = cuts(Entry(path=path), tmp_path, videos=3, photos=8)
    assert [(clip.shape, fps) for clip, fps in found] == [((FRAMES, SIZE, SIZE, 3), FALLBACK_FPS)] * 8
    assert any((clip[0] != clip[-1]).any() for clip, _ in found)
    assert not cuts(Entry(path=path), tmp_path, videos=3)


def test_what_cannot_be_cut(video: Path, tmp_path: Path) -> None:
    short, broken, picture = tmp_path / "short.mp4", tmp_path / "broken.mp4", tmp_path / "broken.png"
    save_video(moving_video(3, 32, 32), short, fps=10.0)
    broken.write_bytes(b"no video")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    for path, message in ((short, "has 3 frames, a clip needs 5"), (broken, "broken.mp4"), (picture, "broken.png")):
        with pytest.raises(VideoError, match=message):
            cuts(Entry(path=path), tmp_path, videos=2, photos=2)
    assert not list(tmp_path.glob(f"{SCRATCH}*"))
    with pytest.raises(ValueError, match=r"cuts\.videos"):
        CutConfig(videos=-1)
