"""Display matrices: all eight ways to turn and mirror a picture."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest

from pyratok.data.video_io import load_video, probe, to_uint8
from pyratok.data.video_pixels import matrix_orientation

MATRICES = [
    np.array(rows) * sign
    for rows in ([[1, 0], [0, 1]], [[0, 1], [1, 0]])
    for sign in (np.array(pair) for pair in product((1, -1), repeat=2))
]


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_pixels_land_where_the_matrix_sends_them(matrix: np.ndarray) -> None:
    picture = np.arange(6).reshape(2, 3)
    turns, mirrored = matrix_orientation(matrix << 16)
    shown = np.rot90(picture[:, ::-1] if mirrored else picture, turns)

    points = [(x, y) @ matrix for y in range(2) for x in range(3)]
    left, top = np.min(points, axis=0)
    for (x, y), value in zip(points, picture.flat, strict=True):
        assert shown[y - top, x - left] == value


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write a rotation")
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_video_is_shown_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:8, :8] = 255  # white in the upper left corner
    stored[:8, -8:] = 128
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width = stored.shape[:2]
        stream.set_display_rotation(degrees, hflip=mirrored)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(stored)))
        container.mux(stream.encode(None))
    wanted = np.rot90(stored, degrees // 90)  # counter-clockwise, and mirrored after that
    if mirrored:
        wanted = wanted[:, ::-1]
    shown = to_uint8(load_video(path))[0]
    assert shown.shape == wanted.shape
    assert np.abs(shown.astype(int) - wanted).mean() < 2
    info = probe(path)
    assert (info.height, info.width) == wanted.shape[:2]
    if not mirrored:
        assert info.rotation == -degrees % 360
    assert load_video(path, size=16).shape[-2:] == ((24, 16) if degrees % 180 else (16, 24))
