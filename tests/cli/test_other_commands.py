"""demo, evaluate, train and doctor as a person calls them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import FakeTokenizer, moving_video
from pyratok.cli import common, doctor
from pyratok.cli.evaluate import parse_levels, score_table
from pyratok.cli.train import build_plan, parse_settings
from pyratok.codec.container import PyraWriter, load_tokens
from pyratok.config import to_dict
from pyratok.data.video_io import load_video, probe
from pyratok.eval.reconstruction import ClipScore, EvalProtocol, PrefixScore, ReconstructionRecord
from pyratok.train.optim import OptimConfig
from pyratok.train.stages import Plan
from pyratok.types import ModelId

Command = Callable[..., int]


def test_demo_writes_report_tokens_and_video(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # a second run replaces the first
        assert pyratok("demo", "--input", clip, "--out", out, "--size", 48) == 0
    assert sorted(path.name for path in out.iterdir()) == ["clip-reconstructed.mp4", "clip.pyra", "report.html"]
    assert load_tokens(out / "clip.pyra").geometry.frames == probe(out / "clip-reconstructed.mp4").frames == 9


def test_demo_takes_an_image(image: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("demo", "--input", image, "--out", tmp_path / "out", "--size", 48) == 0
    assert load_video(tmp_path / "out" / "image-reconstructed.png").shape == (1, 3, 1, 48, 64)
    assert "<video" not in (tmp_path / "out" / "report.html").read_text()


def test_demo_has_a_sample_of_its_own(tmp_path: Path, pyratok: Command) -> None:
    numbers = tmp_path / "numbers.json"
    assert pyratok("demo", "--out", tmp_path / "out", "--size", 32, "--frames", 5, "--json", numbers) == 0
    found = json.loads(numbers.read_text())
    assert found["source"] == "sample.mp4"
    assert [prefix["levels"] for prefix in found["prefixes"]] == [1, 2, 3]


def test_demo_never_overwrites_its_input(tmp_path: Path, clip: Path, pyratok: Command) -> None:
    out = tmp_path / "out"
    out.mkdir()
    taken = clip.rename(out / "x-reconstructed.mp4")
    content = taken.read_bytes()
    (out / "x.mp4").symlink_to(taken)
    assert pyratok("demo", "--input", out / "x.mp4", "--out", out) == 2
    assert taken.read_bytes() == content


def test_demo_that_fails_leaves_nothing(
    clip: Path, tmp_path: Path, pyratok: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(result: object) -> str:
        raise ValueError("no page")

    monkeypatch.setattr("pyratok.report.page.render", fail)
    (tmp_path / "old").mkdir()
    for out in ("new", "old"):
        assert pyratok("demo", "--input", clip, "--out", tmp_path / out, "--size", 48) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["clip.mp4", "old"]


def test_demo_takes_a_video_of_one_frame(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("demo", "--input", clip, "--out", tmp_path / "out", "--size", 48, "--frames", 1) == 0
    assert not probe(tmp_path / "out" / "clip-reconstructed.mp4").is_image


def test_info_shows_segments_and_whether_the_file_is_complete(
    tmp_path: Path, model: FakeTokenizer, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "live.pyra"
    tokens = model.encode(moving_video(frames=18))  # six latent steps
    with PyraWriter(path, segment_steps=4) as writer:
        writer.append(tokens)
    assert pyratok("info", path, "--json", "-") == 0
    found = capsys.readouterr()
    facts, shown = json.loads(found.out), " ".join(found.err.split())
    assert "2 of up to 4 latent steps; complete" in shown
    assert "18 frames of 64x48 at 12 fps" in shown
    assert facts["complete"]
    assert [segment["steps"] for segment in facts["segments"]] == [4, 2]
    assert [segment["frames"] for segment in facts["segments"]] == [13, 5]
    assert (facts["tokens"], facts["bits_per_pixel"]) == (tokens.num_tokens, tokens.bits_per_pixel)
    path.write_bytes(path.read_bytes()[:-1])
    assert pyratok("info", path) == 0
    assert "2 of up to 4 latent steps; unfinished" in " ".join(capsys.readouterr().out.split())
    damaged = bytearray(path.read_bytes())
    damaged[facts["segments"][1]["offset"]] ^= 1
    path.write_bytes(damaged)
    assert pyratok("info", path) == 2
    assert "damaged in level 1 of segment 2" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_demo_takes_a_name_that_is_no_text(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    odd = clip.rename(tmp_path / os.fsdecode(b"caf\xe9.mp4"))
    assert pyratok("demo", "--input", odd, "--out", tmp_path / "out", "--size", 48, "--json", tmp_path / "n.json") == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert "caf\N{REPLACEMENT CHARACTER}.mp4" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_demo_wants_the_parent_of_its_folder(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("demo", "--input", clip, "--out", tmp_path / "no" / "out") == 2
    assert pyratok("demo", "--input", clip, "--out", clip) == 2


def test_evaluate_prints_a_row_per_clip_and_the_mean(
    clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.mp4").write_bytes(clip.read_bytes())
    numbers = tmp_path / "numbers.json"
    options = ["--size", 48, "--crop", 32, "--frames", 5, "--levels", "1,3"]
    assert pyratok("evaluate", "reconstruction", "--data", tmp_path, *options, "--json", numbers) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("clip.mp4", "other.mp4", "mean", "levels 1-3"))
    found = json.loads(numbers.read_text())
    assert [row["clip"] for row in found["clips"]] == ["clip.mp4", "other.mp4"]
    assert [score["levels"] for score in found["mean"]] == [1, 3]


def test_evaluate_crops_no_more_than_there_is(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    numbers = tmp_path / "numbers.json"
    assert pyratok("evaluate", "reconstruction", "--data", clip, "--size", 32, "--json", numbers) == 0
    protocol = json.loads(numbers.read_text())["protocol"]
    assert (protocol["size"], protocol["crop"]) == (32, 32)


def test_evaluate_shows_whole_names_in_a_pipe(clip: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]) -> None:
    named = clip.rename(clip.with_name(f"{'long_' * 12}name.mp4"))
    assert pyratok("evaluate", "reconstruction", "--data", named, "--size", 32, "--frames", 1) == 0
    assert named.name in capsys.readouterr().out


def test_nouns_are_seen_or_unseen(tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert pyratok("evaluate", "predictability", "--lm", tmp_path, "--data", tmp_path, "--nouns", "both") == 2
    assert capsys.readouterr().err == "pyratok: error: --nouns is seen or unseen, got 'both'\n"


def test_a_row_of_x265_is_shown_also_where_it_reaches_no_rate() -> None:
    score = PrefixScore(levels=1, bits_per_pixel=0.01, psnr=20.0, ssim=0.5)
    clips = (ClipScore(clip="a.mp4", frames=1, height=8, width=8, prefixes=(score,)),)
    record = ReconstructionRecord(protocol=EvalProtocol(), model=ModelId(name="m", fingerprint="f"), clips=clips)
    _, rows = score_table(record, with_x265=True)
    assert [row[0] for row in rows] == ["a.mp4\n  x265 at this rate", "mean\n  x265 at this rate"]
    assert rows[0][-1].split() == ["20.00", "0.500", "-"]
    assert "x265" not in str(score_table(record, with_x265=False))


def test_levels_are_all_or_a_list() -> None:
    assert parse_levels("all") is None
    assert parse_levels("3,1,3") == [1, 3]
    for text in ("", "0", "1,x", "-1"):
        with pytest.raises(ValueError, match="--levels"):
            parse_levels(text)


def test_settings_are_json_where_they_can_be() -> None:
    found = parse_settings(["optim.lr=1e-4", "steps=10", "name=nano", "grid=[1,2]", "note=a=b", "ema=true"])
    assert found == {"optim.lr": 1e-4, "steps": 10, "name": "nano", "grid": [1, 2], "note": "a=b", "ema": True}
    with pytest.raises(ValueError, match="name=value"):
        parse_settings(["=1"])


def test_settings_reach_into_one_stage_or_all() -> None:
    settings = {"train.steps": 3, "train.optim": to_dict(OptimConfig()), "alignment.train.steps": 5}
    plan = build_plan("nano", settings)
    assert [stage.train.steps for stage in plan.stages] == [3, 5, 3, 3, 3]
    assert all(stage.train.optim == OptimConfig() for stage in plan.stages)
    assert [stage.name for stage in build_plan("nano", {}, ["finetuning"]).stages] == ["finetuning"]


@pytest.mark.parametrize(
    ("name", "settings", "stages", "message"),
    [
        ("nano", {"train.step": 3}, None, r"did you mean 'train\.steps'"),
        ("nano", {"alignment.train.step": 3}, None, r"has no field 'alignment.train.step'; did you mean"),
        ("nano", {}, ["alinment"], "has no stage 'alinment'; did you mean 'alignment'"),
        ("nanoo", {}, None, "did you mean 'nano'"),
    ],
)
def test_what_a_recipe_does_not_know_is_refused(
    name: str, settings: dict[str, Any], stages: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_plan(name, settings, stages)


def test_train_hands_everything_to_the_run(tmp_path: Path, pyratok: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def run_plan(
        plan: Plan,
        *arguments: Any,
        on_stage: Callable[[int], None],
        on_log: Callable[[dict[str, Any]], None],
        **options: Any,
    ) -> Path:
        on_stage(0)
        on_log({"stage": plan.stages[0].name, "step": 1, "total": 0.5, "clips_per_second": 8.0})
        calls.append((plan.stages[0].train.steps, arguments, options))
        return tmp_path / "model"

    monkeypatch.setattr("pyratok.train.stages.run_plan", run_plan)
    options = ["--out", tmp_path / "run", "--data", tmp_path, "--set", "train.steps=3", "--resume"]
    assert pyratok("train", "nano", *options) == 0
    assert calls == [(3, ([tmp_path], tmp_path / "run"), {"init": None, "resume": True})]


def test_doctor_is_content_with_a_sound_installation(tmp_path: Path, pyratok: Command) -> None:
    numbers = tmp_path / "doctor.json"
    assert pyratok("doctor", "--json", numbers) == 0
    found = json.loads(numbers.read_text())
    assert found["healthy"]
    assert {"torch", "video", "model", "memory"} <= {check["name"] for check in found["checks"]}


def test_doctor_names_what_is_broken_and_how_to_mend_it(
    pyratok: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(name: str | None) -> None:
        raise ValueError("weights do not match their checksum")

    monkeypatch.setattr(common, "load_model", damaged)
    assert pyratok("doctor") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "weights do not match their checksum" in printed
    assert "fix:" in printed


def test_every_finding_that_is_not_fine_comes_with_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CORE", ("no_such_package",))
    monkeypatch.setattr(doctor, "EXTRAS", {"none": ("no_such_module",)})
    monkeypatch.setattr(doctor, "available_memory", lambda: 10)
    monkeypatch.setattr(doctor, "LOW_DISK", 1 << 62)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    checks = {check.name: check for check in doctor.examine()}
    assert {checks[name].status for name in ("no_such_package",)} == {"fail"}
    assert {checks[name].status for name in ("[none]", "memory", "disk", "bf16")} == {"note"}
    assert all(check.fix for check in checks.values() if check.status != "ok")
