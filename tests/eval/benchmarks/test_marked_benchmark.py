"""Marks that ship, and what is made of marks on a clip whose every pixel is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colour_words import ColourReader, painted
from pyratok.data.video_io import save_video
from pyratok.eval.benchmarks import marked
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.runner import run_benchmark

MARKS = {
    "clips": {
        "squares": {
            "frames": 30,
            "moments": {"red thing": [[10, 20]]},
            "boxes": {"5": {"green thing": [0, 0, 0.5, 0.5]}, "25": {"red thing": [0.5, 0.5, 1, 1]}},
        },
        "absent": {"frames": 9, "boxes": {"0": {"red thing": [0, 0, 1, 1]}}},
    }
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Blue with a green corner, then red, then blue with a red corner."""
    monkeypatch.setattr(marked, "read_marks", lambda: json.dumps(MARKS).encode())
    video = painted(["blue"] * 30, fps=10.0)
    side = video.shape[-1] // 2
    video[:, :, :10, :side, :side] = painted(["green"] * 10, fps=10.0)[..., :side, :side]
    video[:, :, 10:20] = painted(["red"] * 10, fps=10.0)
    video[:, :, 20:, side:, side:] = painted(["red"] * 10, fps=10.0)[..., side:, side:]
    (tmp_path / "data").mkdir()
    save_video(video, tmp_path / "data" / "squares.mp4", fps=10.0)
    return tmp_path / "data"


def test_the_marks_that_ship_are_well_formed() -> None:
    for name, clip in json.loads(marked.read_marks())["clips"].items():
        assert clip["boxes"], name
        for frame, nouns in clip["boxes"].items():
            assert 0 <= int(frame) < clip["frames"]
            for left, top, right, bottom in nouns.values():
                assert 0 <= left < right <= 1, (name, frame)
                assert 0 <= top < bottom <= 1, (name, frame)
        for moments in clip.get("moments", {}).values():
            bounds = [frame for moment in moments for frame in moment]
            assert bounds == sorted(set(bounds)), name
            assert bounds[-1] <= clip["frames"]


def test_what_is_marked_is_found(data: Path, tmp_path: Path) -> None:
    benchmark = build("marked", data, Options(settings={"size": "64", "window": "1"}))
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out")
    values = record.scores.values
    assert (record.scored, record.missing) == (1, ("absent",))
    assert values["pointing, tokens"] == 1
    assert values["pointing, centre"] == 1  # (0.5, 0.5) lies on the border of both
    assert values["pointing, anywhere"] == 0.25
    assert values["map, tokens"] > 0.5 > values["map, whole clip"]


def test_marks_are_part_of_the_protocol(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build("marked", data).protocol.digest
    assert before == build("marked", data).protocol.digest
    monkeypatch.setattr(marked, "read_marks", lambda: b'{"clips": {}}')
    assert build("marked", data).protocol.digest != before


def test_another_clip_of_that_name_is_told(data: Path, tmp_path: Path) -> None:
    save_video(painted(["red"] * 12, fps=10.0), data / "squares.mp4", fps=10.0)
    with pytest.raises(ValueError, match=r"has 12 frames, the clip that was marked has 30"):
        run_benchmark(build("marked", data), ColourReader, tmp_path / "out")


def test_a_folder_without_the_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no clip of the 5 that were marked \(bikes, carphone"):
        build("marked", tmp_path).load()
