"""encode, decode and reconstruct: what they write and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fakes import FakeTokenizer
from pyratok.codec.container import load_tokens
from pyratok.data.video_io import load_video, probe

Command = Callable[..., int]


def test_encode_stores_what_the_model_says(clip: Path, tmp_path: Path, pyratok: Command, model: FakeTokenizer) -> None:
    out = tmp_path / "clip.pyra"
    assert pyratok("encode", clip, "-o", out) == 0
    assert load_tokens(out) == model.encode(load_video(clip))


def test_decode_gives_frames_size_and_rate_back(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("encode", clip, "-o", tmp_path / "clip.pyra") == 0
    assert pyratok("decode", tmp_path / "clip.pyra", "-o", tmp_path / "back.mp4") == 0
    before, after = probe(clip), probe(tmp_path / "back.mp4")
    assert (before.frames, before.height, before.width, before.fps) == (
        after.frames,
        after.height,
        after.width,
        after.fps,
    )


def test_encode_then_decode_equals_reconstruct(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    pyratok("encode", clip, "-o", tmp_path / "clip.pyra")
    pyratok("decode", tmp_path / "clip.pyra", "-o", tmp_path / "a.mp4", "--levels", 2)
    pyratok("reconstruct", clip, "-o", tmp_path / "b.mp4", "--levels", 2)
    assert torch.equal(load_video(tmp_path / "a.mp4").plain(), load_video(tmp_path / "b.mp4").plain())


def test_size_and_frames_apply_before_encoding(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("encode", clip, "-o", tmp_path / "x.pyra", "--size", 24, "--frames", 5) == 0
    geometry = load_tokens(tmp_path / "x.pyra").geometry
    assert (geometry.frames, geometry.height, geometry.width) == (5, 24, 32)


def test_side_by_side_is_twice_as_wide_and_starts_with_the_original(
    clip: Path, tmp_path: Path, pyratok: Command
) -> None:
    out = tmp_path / "out.mp4"
    assert pyratok("reconstruct", clip, "-o", out, "--side-by-side") == 0
    both, original = load_video(out).plain(), load_video(clip).plain()
    assert both.shape[-1] == 2 * original.shape[-1]
    assert float((both[..., : original.shape[-1]] - original).abs().mean()) < 0.05


def test_reconstruct_measures_every_frame(clip: Path, tmp_path: Path, pyratok: Command, model: FakeTokenizer) -> None:
    numbers = tmp_path / "numbers.json"
    assert pyratok("reconstruct", clip, "-o", tmp_path / "out.mp4", "--json", numbers) == 0
    found = json.loads(numbers.read_text())
    assert len(found["psnr_per_frame"]) == len(found["ssim_per_frame"]) == found["frames"] == 9
    assert found["psnr"] == pytest.approx(sum(found["psnr_per_frame"]) / 9)
    assert found["model"]["fingerprint"] == model.model_id.fingerprint


def test_more_levels_cost_more_and_look_better(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    scores = []
    for levels in (1, 2, 3):
        numbers = tmp_path / f"{levels}.json"
        pyratok("reconstruct", clip, "-o", tmp_path / "out.mp4", "--levels", levels, "--json", numbers)
        found = json.loads(numbers.read_text())
        scores.append((found["bits_per_pixel"], found["psnr"]))
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


@pytest.mark.parametrize("verb", ["encode", "decode", "reconstruct", "info"])
def test_json_on_stdout_is_the_whole_of_stdout(
    verb: str, clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    pyratok("encode", clip, "-o", tmp_path / "clip.pyra")
    source = tmp_path / "clip.pyra" if verb == "decode" else clip
    target = {"encode": "x.pyra", "decode": "x.mp4", "reconstruct": "x.mp4"}.get(verb)
    capsys.readouterr()
    assert pyratok(verb, source, *(["-o", tmp_path / target] if target else []), "--json", "-") == 0
    printed = capsys.readouterr()
    assert isinstance(json.loads(printed.out), dict)
    assert printed.err, "the table for people moves to stderr"


def test_an_image_is_a_clip_of_one_frame(image: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("encode", image, "-o", tmp_path / "image.pyra") == 0
    assert load_tokens(tmp_path / "image.pyra").geometry.frames == 1
    assert pyratok("decode", tmp_path / "image.pyra", "-o", tmp_path / "back.png") == 0
    assert pyratok("reconstruct", image, "-o", tmp_path / "again.png") == 0
    assert (tmp_path / "back.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_one_frame_of_a_video_may_become_an_image(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("reconstruct", clip, "-o", tmp_path / "x.png", "--frames", 1) == 0
    assert probe(tmp_path / "x.png").is_image


def test_any_number_of_frames_may_be_asked_for(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("encode", clip, "-o", tmp_path / "x.pyra", "--frames", 10**20) == 0
    assert load_tokens(tmp_path / "x.pyra").geometry.frames == 9


def test_an_existing_output_is_replaced(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    out = tmp_path / "out.pyra"
    out.write_text("old")
    assert pyratok("encode", clip, "-o", out) == 0
    assert load_tokens(out).geometry.frames == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.pyra"]


@pytest.mark.parametrize(("subject", "kind"), [("clip.mp4", "video"), ("clip.pyra", "tokens"), ("", "model")])
def test_info_knows_files_and_models(
    subject: str, kind: str, clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    pyratok("encode", clip, "-o", tmp_path / "clip.pyra")
    capsys.readouterr()
    assert pyratok("info", tmp_path / subject, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == kind
