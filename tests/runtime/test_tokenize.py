"""Shards of a manifest: the same rows however often, and by however many processes, the work was begun."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from fakes import FakeTokenizer, moving_video
from pyratok.cli import common
from pyratok.cli.tokenize import tokenize
from pyratok.data.cuts import SCRATCH, CutConfig
from pyratok.data.manifests import LeftOutWarning
from pyratok.data.token_shards import ShardError, TokenShards, shard_facts, shard_path
from pyratok.data.video_io import load_video, save_video
from pyratok.runtime import tokenize as module
from pyratok.runtime.tokenize import TokenizeConfig, slices_of, tokenize_manifest
from tiny import StubText, tiny_pyratok

pytest.importorskip("pyarrow")

CONFIG = TokenizeConfig(frames=5, size=32, text=False, files_per_shard=2)
LENGTHS = (5, 9, 14, 7, 5)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos a.mp4 .. e.mp4, captioned but for the last."""
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in zip("abcde", LENGTHS, strict=True):
        save_video(moving_video(frames, 40, 48), folder / f"{name}.mp4", fps=10.0)
    captions = {"a": "one dog", "b": "two cats", "c": "a bird flies", "d": "rain"}
    rows = [{"path": f"{name}.mp4", "caption": captions.get(name, "")} for name in "abcde"]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "all.jsonl"


@pytest.fixture
def tokenizer() -> FakeTokenizer:
    fake = FakeTokenizer()
    fake.text_encoder = StubText()
    return fake.eval()


def rows(folder: Path) -> list[tuple[object, ...]]:
    data = TokenShards(folder, shuffle=False)
    items = [data[i] for i in range(len(data))]
    return [(item.clip, item.caption, item.fps, *(ids.tolist() for ids in item.levels)) for item in items]


def test_rows_are_what_the_tokenizer_makes_of_the_first_frames(
    manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    done = tokenize_manifest(tokenizer, manifest, tmp_path / "out", CONFIG)
    assert (done.shards, done.made, done.clips, done.left_out) == (3, 3, 5, {})
    data = TokenShards(tmp_path / "out", tokenizer.model_id, shuffle=False)
    assert [data[i].clip for i in range(5)] == [f"{name}.mp4" for name in "abcde"]
    video = load_video(manifest.parent / "c.mp4", size=32, crop=32, frames=5)
    wanted = tokenizer.encode(video)
    found = data.collate([data[2]])
    assert found.captions == ("a bird flies",)
    assert found.text is None
    assert found.tokens == wanted


def test_captions_are_embedded_beside_tokens_that_do_not_know_them(
    manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    plain = tokenize_manifest(tokenizer, manifest, tmp_path / "plain", CONFIG)
    config = TokenizeConfig(frames=5, size=32, files_per_shard=2)
    told = tokenize_manifest(tokenizer, manifest, tmp_path / "told", config)
    assert (plain.header.text_dim, told.header.text_encoder, told.header.text_dim) == (0, "stub", StubText.dim)
    assert rows(tmp_path / "plain") == rows(tmp_path / "told")
    data = TokenShards(tmp_path / "told", shuffle=False)
    wanted = StubText().encode(["two cats"])
    assert data[1].text is not None
    assert torch.equal(data[1].text, wanted.tokens[0][wanted.mask[0]].half())
    assert torch.equal(data[1].pooled, wanted.pooled[0].half())  # type: ignore[arg-type]
    assert data[4].text is not None
    assert data[4].text.shape == (0, StubText.dim)
    assert not data[4].pooled.any()  # type: ignore[union-attr]


def test_several_clips_of_a_video_follow_each_other(manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    config = TokenizeConfig(frames=5, size=32, text=False, clips=2)
    done = tokenize_manifest(tokenizer, manifest, tmp_path, config)
    data = TokenShards(tmp_path, shuffle=False)
    names = ["a.mp4#0", "b.mp4#0", "c.mp4#0", "c.mp4#1", "d.mp4#0", "e.mp4#0"]
    assert [data[i].clip for i in range(done.clips)] == names
    video = load_video(manifest.parent / "c.mp4", size=32, crop=32)[:, :, 5:10]
    wanted = tokenizer.encode(video)
    assert all(torch.equal(a, b[0]) for a, b in zip(data[3].levels, wanted.levels, strict=True))


def test_cut_off_and_resumed_gives_the_same_rows(
    manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize_manifest(tokenizer, manifest, tmp_path / "whole", CONFIG)
    real, calls = module.tokenize_slice, []

    def killed(part: module.ManifestSlice, *rest: object) -> object:
        calls.append(part.number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "tokenize_slice", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize_manifest(tokenizer, manifest, tmp_path / "cut", CONFIG)
    with pytest.raises(ShardError, match="2 of 3 shards are missing"):
        TokenShards(tmp_path / "cut")
    (tmp_path / "cut" / ".0123.tmp").write_bytes(b"half a shard")
    done = tokenize_manifest(tokenizer, manifest, tmp_path / "cut", CONFIG)
    assert (calls, done.made) == ([0, 1, 1, 2], 2)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob("*.tmp"))


def test_finished_shards_are_left_alone_and_changed_or_damaged_ones_made_anew(
    manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tokenize_manifest(tokenizer, manifest, out, CONFIG)
    stamps = [path.stat().st_mtime_ns for path in sorted(out.glob("*.parquet"))]
    assert tokenize_manifest(tokenizer, manifest, out, CONFIG).made == 0
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("*.parquet"))] == stamps
    shard_path(out, 1).write_bytes(b"damage")
    assert tokenize_manifest(tokenizer, manifest, out, CONFIG).made == 1
    fewer = manifest.with_name("fewer.jsonl")
    lines = manifest.read_text().splitlines()
    fewer.write_text("\n".join([*lines[:2], lines[3]]))
    done = tokenize_manifest(tokenizer, fewer, out, CONFIG)
    assert (done.made, done.clips) == (1, 3)
    assert [row[0] for row in rows(out)] == ["a.mp4", "b.mp4", "d.mp4"]


def test_another_model_or_other_settings_are_refused(manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    tokenize_manifest(tokenizer, manifest, tmp_path, CONFIG)
    with pytest.raises(ShardError, match="choose another folder"):
        tokenize_manifest(tokenizer, manifest, tmp_path, TokenizeConfig(frames=9, size=32, text=False))
    with pytest.raises(ShardError, match=r"holds shards of fake .* of tiny"):
        tokenize_manifest(tiny_pyratok(), manifest, tmp_path, CONFIG)
    assert len(rows(tmp_path)) == 5


def test_videos_that_cannot_be_used_are_listed_now_and_when_resumed(
    manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "abc":
        (videos / f"{name}.mp4").write_bytes((manifest.parent / f"{name}.mp4").read_bytes())
    (videos / "broken.mp4").write_bytes(b"no video")
    config = TokenizeConfig(frames=9, size=32, text=False, files_per_shard=2)
    for _ in range(2):
        with pytest.warns(LeftOutWarning, match="2 of 4 videos"):
            done = tokenize_manifest(tokenizer, videos, tmp_path / "out", config)
        assert list(done.left_out) == ["a.mp4", "broken.mp4"]
        assert done.left_out["a.mp4"] == "has 5 frames, a clip needs 9"
        assert [row[0] for row in rows(tmp_path / "out")] == ["b.mp4", "c.mp4"]
    assert list(shard_facts(shard_path(tmp_path / "out", 0)).left_out) == ["a.mp4"]
    with pytest.raises(ValueError, match=r"3 of 4 videos(?s:.*)needs 14"):
        tokenize_manifest(tokenizer, videos, tmp_path / "most", TokenizeConfig(frames=14, size=32, text=False))


def test_random_cuts_in_place_of_clips_in_a_row(manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes((manifest.parent / f"{name}.mp4").read_bytes())
    save_video(moving_video(1, 40, 48, fps=None), folder / "photo.png")
    config = TokenizeConfig(frames=9, size=16, text=False, cuts=CutConfig(videos=3, photos=2))
    with pytest.warns(LeftOutWarning, match="1 of 4 videos"):
        done = tokenize_manifest(tokenizer, folder, tmp_path / "out", config)
    assert (done.shards, done.clips, list(done.left_out)) == (4, 8, ["a.mp4"])
    found = rows(tmp_path / "out")
    assert [row[0] for row in found] == [
        *(f"{name}.mp4#{number}" for name in "bc" for number in range(3)),
        "photo.png#0",
        "photo.png#1",
    ]
    frames = tmp_path / "out" / f"{SCRATCH}left"
    frames.mkdir()
    shard_path(tmp_path / "out", 1).unlink()
    with pytest.warns(LeftOutWarning):
        assert tokenize_manifest(tokenizer, folder, tmp_path / "out", config).made == 1
    assert rows(tmp_path / "out") == found
    assert not frames.exists()
    alone = TokenizeConfig(frames=9, size=16, text=False, cuts=CutConfig(photos=2))
    assert [part.names for part in slices_of(folder, alone)] == [("photo.png",)]


def test_images_are_clips_of_one_frame(tokenizer: FakeTokenizer, tmp_path: Path) -> None:
    save_video(moving_video(1, 40, 48, fps=None), tmp_path / "a.png")
    with pytest.raises(ValueError, match="--frames 1"):
        slices_of(tmp_path, CONFIG)
    done = tokenize_manifest(tokenizer, tmp_path, tmp_path / "out", TokenizeConfig(frames=1, size=32, text=False))
    assert done.clips == 1
    assert rows(tmp_path / "out")[0][2] is None


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size": 0}, {"clips": 0}, {"fps": 0.0}, {"files_per_shard": 0}])
def test_wrong_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TokenizeConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"clips": 2}, {"fps": 10.0}])
def test_cuts_are_made_anywhere_and_at_the_rate_of_the_video(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="neither clips nor fps"):
        TokenizeConfig(cuts=CutConfig(videos=1), **wrong)  # type: ignore[arg-type]


def test_the_command(manifest: Path, tokenizer: FakeTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "load_model", lambda source: tokenizer)
    told = tmp_path / "told.json"
    tokenize(
        manifest, tmp_path / "out", frames=5, size=32, clips=1, fps=None, text=True, workers=1, json_file=str(told)
    )
    numbers = json.loads(told.read_text())
    assert (numbers["clips"], numbers["shards"], numbers["left_out"]) == (5, 1, {})
    assert len(rows(tmp_path / "out")) == 5


@pytest.mark.slow
def test_two_processes_make_what_one_makes(manifest: Path, tmp_path: Path) -> None:
    model = tiny_pyratok()
    model.save_pretrained(tmp_path / "model")
    config = TokenizeConfig(frames=5, size=32, text=False, files_per_shard=1)
    tokenize_manifest(model, manifest, tmp_path / "one", config)
    shared = {"workers": 2, "source": str(tmp_path / "model")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = tokenize_manifest(model, manifest, tmp_path / "two", config, **shared)  # type: ignore[arg-type]
    assert done.made == 5
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    with pytest.raises(ValueError, match="has changed meanwhile"):
        tokenize_manifest(tiny_pyratok(seed=1), manifest, tmp_path / "other", config, **shared)  # type: ignore[arg-type]
