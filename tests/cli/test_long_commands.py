"""encode, decode and reconstruct on long files: budgets, resuming, spans."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.cli import app, common
from pyratok.codec.container import load_tokens, open_tokens
from pyratok.data.video_io import load_video, probe, save_video
from tiny import tiny_pyratok

Command = Callable[..., int]


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    """Eighty frames at 12 frames per second: more than one segment."""
    path = tmp_path / "long.mp4"
    save_video(moving_video(80), path)
    return path


def test_a_long_file_is_the_same_tokens_in_segments(
    long_clip: Path, tmp_path: Path, pyratok: Command, model: FakeTokenizer
) -> None:
    assert pyratok("encode", long_clip, "-o", tmp_path / "x.pyra") == 0
    assert load_tokens(tmp_path / "x.pyra") == model.encode(load_video(long_clip))
    assert len(open_tokens(tmp_path / "x.pyra").segments) == 2


def test_a_span_is_decoded_alone(long_clip: Path, tmp_path: Path, pyratok: Command) -> None:
    tokens, out, numbers = tmp_path / "x.pyra", tmp_path / "x.mp4", tmp_path / "x.json"
    assert pyratok("encode", long_clip, "-o", tokens) == 0
    assert pyratok("decode", tokens, "-o", out, "--from", 2, "--to", 3.5, "--json", numbers) == 0
    assert probe(out).frames == 18
    found = json.loads(numbers.read_text())
    assert (found["first_frame"], found["written_frames"]) == (24, 18)
    assert pyratok("decode", tokens, "-o", tmp_path / "x.png", "--from", 2, "--to", 2.05) == 0


@pytest.mark.parametrize(
    "options", [["--from", 7], ["--from", 3, "--to", 2], ["--to", 0], ["--from", -1], ["--to", "late"], ["--levels", 9]]
)
def test_a_wrong_span_is_one_error(
    options: list[Any], long_clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("encode", long_clip, "-o", tmp_path / "x.pyra") == 0
    capsys.readouterr()
    assert pyratok("decode", tmp_path / "x.pyra", "-o", tmp_path / "x.mp4", *options) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x.mp4").exists()


def test_interrupted_and_resumed(
    long_clip: Path,
    tmp_path: Path,
    pyratok: Command,
    model: FakeTokenizer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, encode = tmp_path / "x.pyra", model.encode_chunk

    def interrupted(video: Any, state: Any = None, text: Any = None) -> Any:
        if state is not None and state.steps >= 19:
            raise KeyboardInterrupt
        return encode(video, state, text)

    with monkeypatch.context() as patched:
        patched.setattr(model, "encode_chunk", interrupted)
        assert pyratok("encode", long_clip, "-o", path) == app.EXIT_INTERRUPTED
    said = capsys.readouterr().err
    reader = open_tokens(path)
    assert not reader.complete
    assert f"holds the first {reader.geometry.frames} frames; --resume" in said
    for _ in range(2):  # the second time there is nothing left to do
        assert pyratok("encode", long_clip, "-o", path, "--resume") == 0
        assert load_tokens(path) == model.encode(load_video(long_clip))


def test_a_short_clip_that_is_interrupted_leaves_nothing(
    clip: Path, tmp_path: Path, pyratok: Command, model: FakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "encode", interrupted)
    assert pyratok("encode", clip, "-o", tmp_path / "x.pyra", "--resume") == app.EXIT_INTERRUPTED
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize("verb", ["encode", "decode", "reconstruct"])
def test_a_budget_is_kept_or_refused(
    verb: str,
    clip: Path,
    tmp_path: Path,
    pyratok: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_pyratok()
    monkeypatch.setattr(common, "load_model", lambda name: model)
    assert pyratok("encode", clip, "-o", tmp_path / "clip.pyra", "--size", 16) == 0
    source = tmp_path / "clip.pyra" if verb == "decode" else clip
    out = tmp_path / ("x.pyra" if verb == "encode" else "x.mp4")
    options = [] if verb == "decode" else ["--size", 16]
    capsys.readouterr()
    for budget, words in (("1MiB", "smallest budget"), ("plenty", "amount of memory")):
        assert pyratok(verb, source, "-o", out, "--memory", budget, *options) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
        assert not out.exists()
    assert pyratok(verb, source, "-o", out, "--memory", "64GiB", "--json", tmp_path / "n.json", *options) == 0
    memory = json.loads((tmp_path / "n.json").read_text())["memory"]
    assert 0 < memory["predicted"] <= 64 << 30
    assert "planned for" in capsys.readouterr().out
