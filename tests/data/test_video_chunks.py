"""Reading chunk by chunk is reading at once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.data import video_io
from pyratok.data.video_io import VideoError, VideoWriter, iter_video, load_video
from pyratok.data.video_pixels import Painter

UNEVEN = [0, 40, 80, 400, 440, 700, 740, 780, 790]
"""Times of frames in milliseconds."""


def make_clip(path: Path, times: list[int], degrees: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "4"})
        stream.height, stream.width = 32, 48
        stream.codec_context.time_base = Fraction(1, 1000)
        if degrees:
            stream.set_display_rotation(degrees)
        for index, time in enumerate(times):
            picture = np.random.default_rng(index).integers(0, 256, (32, 48, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of constant rate, one of variable rate, one that is stored on its side, an image."""
    folder = tmp_path_factory.mktemp("clips")
    made = [make_clip(folder / "even.mp4", [40 * index for index in range(9)]), make_clip(folder / "vfr.mkv", UNEVEN)]
    if hasattr(av.VideoStream, "set_display_rotation"):
        made.append(make_clip(folder / "turned.mp4", UNEVEN, degrees=90))
    image = folder / "still.png"
    with VideoWriter(image, fps=None) as writer:
        writer.write(np.zeros((1, 32, 48, 3), np.uint8))
    return [*made, image]


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    which=st.integers(0, 3),
    chunk=st.integers(1, 30),
    size=st.none() | st.integers(8, 40),
    frames=st.none() | st.integers(1, 30),
    start=st.sampled_from([0.0, 0.1, 0.3]),
    fps=st.none() | st.sampled_from([10.0, 30000 / 1001]),
    crop=st.none() | st.just((8, 4)),
)
def test_chunks_together_are_the_whole(clips: list[Path], which: int, chunk: int, **choice: Any) -> None:
    path = clips[which % len(clips)]
    if path.suffix == ".png":
        choice["start"] = 0.0
    whole = load_video(path, **choice)
    parts = list(iter_video(path, chunk=chunk, **choice))
    assert [part.shape[2] for part in parts[:-1]] == [chunk] * (len(parts) - 1)
    assert {part.fps for part in parts} == {whole.fps}
    assert torch.equal(torch.cat(parts, dim=2), whole)


def test_no_more_is_decoded_than_was_asked_for(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    painted, paint = [], Painter.paint
    monkeypatch.setattr(Painter, "paint", lambda self, frame: painted.append(frame.pts) or paint(self, frame))
    next(iter_video(clips[0], chunk=3))
    assert len(painted) == 3


def test_memory_bounds_the_chunk_and_not_the_clip(clips: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_io, "available_memory", lambda: 4 * 32 * 48 * 3 * 5)
    with pytest.raises(VideoError, match="9 frames of 48x32"):
        load_video(clips[0])
    assert sum(part.shape[2] for part in iter_video(clips[0], chunk=4)) == 9
    with pytest.raises(VideoError, match="5 frames of 48x32"):
        next(iter_video(clips[0], chunk=5))


def test_what_cannot_be_read_is_refused(clips: list[Path], tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"even\.mp4: chunk must be at least 1, got 0"):
        iter_video(clips[0], chunk=0)
    with pytest.raises(VideoError, match=r"none\.mp4: no such file"):
        next(iter_video(tmp_path / "none.mp4"))
