"""``pyratok evaluate NAME`` and ``--list``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.cli import app, benchmarks, common
from pyratok.data.video_io import save_video
from pyratok.eval.benchmarks.registry import ENTRIES


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "load_model", lambda name_or_path: FakeTokenizer().eval())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "coco" / "val2017"
    folder.mkdir(parents=True)
    for index in range(2):
        save_video(moving_video(1, 48, 48 + 16 * index, fps=None), folder / f"{index}.jpg")
    return folder.parent


SMALL = ["--set", "size=48", "--set", "crop=48", "--set", "perceptual=none"]


def test_the_list_says_what_each_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["evaluate", "--list"]) == 0
    said = capsys.readouterr().out
    for name, entry in ENTRIES.items():
        assert name in said
        assert entry.layout.replace("\\", "") in said
        assert entry.source in said
    for name in ("reconstruction", "codebook-usage", "language"):
        assert f"\n{name}  " in said


def test_a_benchmark_runs_and_goes_on(images: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["evaluate", "coco", "--data", str(images), *SMALL, "--any-revision", "--json", "-"]
    assert app.run([*command, "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["items"]["scored"] == 1
    assert app.run(command) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    assert record["items"] == {"found": 2, "missing": 0, "unreadable": 0, "scored": 2, "limit": None}
    assert "psnr" in said.err
    assert json.loads((tmp_path / "evaluation-coco" / "record.json").read_text()) == record


def test_bad_input_is_one_line_that_names_the_fix(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([], "2 images where coco has 5,000"),
        (["--set", "size"], "--set is NAME=VALUE"),
        (["--set", "sizes=48"], "coco has no setting 'sizes'"),
        (["--network", "i3d=x"], "coco uses no network i3d"),
        (["--any-revision", "--set", "size=49"], "another protocol; choose another --out"),
    ):
        if "another protocol" in words:
            assert app.run(["evaluate", "coco", "--data", str(images), *SMALL, "--any-revision"]) == 0
        assert app.run(["evaluate", "coco", "--data", str(images), *SMALL[2:], *arguments]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("pyratok: error: ")
        assert words in said


def test_check_says_what_is_there(images: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert app.run(["evaluate", "coco", "--data", str(images), "--check", "--any-revision"]) == 0
    said = capsys.readouterr().out
    assert "items found" in said
    assert not (tmp_path / "evaluation-coco").exists()
    assert app.run(["evaluate", "coco", "--data", str(images), "--check"]) == 2


def test_compression_draws_its_curves(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    save_video(moving_video(2, 48, 64), tmp_path / "clips" / "a.mp4", fps=12.0)
    crfs = ["--set", "x264_crf=[20, 40]", "--set", "x265_crf=[]", "--set", "svtav1_crf=[]"]
    command = ["evaluate", "compression", "--data", str(tmp_path / "clips"), "--set", "size=48", *crfs]
    assert app.run(command) == 0
    drawn = (tmp_path / "evaluation-compression" / "curves.svg").read_text()
    assert drawn.count("<polyline") == 4
    assert "x264" in drawn


def test_the_answerer_of_a_model_answers_unless_another_reader_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "answerer").mkdir()
    (tmp_path / "answerer" / "config.json").write_text("{}")
    model, shipped = str(tmp_path), {"reader": tmp_path / "answerer"}
    for name in ("rendered", "mvbench"):
        told = benchmarks.options_of(name, {}, {}, model)
        assert (dict(told.settings), dict(told.networks)) == ({"reader": "answerer"}, shipped)
    alone = benchmarks.options_of("rendered", {"reader": "similarity"}, {}, model)
    assert (dict(alone.settings), dict(alone.networks)) == ({"reader": "similarity"}, {})
    assert not benchmarks.options_of("coco", {}, {}, model).networks
    told = benchmarks.options_of("rendered", {"reader": "answerer"}, {}, model)
    assert dict(told.networks) == shipped
    with pytest.raises(ValueError, match="needs to be told what it is"):
        benchmarks.options_of("rendered", {}, {"reader": "x"}, model)
    (tmp_path / "answerer" / "config.json").unlink()
    assert not benchmarks.options_of("rendered", {}, {}, model).networks
