"""The mix that training draws from, made of folders as people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drawings import save_clip, save_drawing, save_photo
from pyratok.data import words
from pyratok.data.mixes import DataConfig, captioned_clips, mixed_clips

SHAPE = {"frames": 5, "size": 32, "length": 12, "seed": 0}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Three videos, two photographs, two drawings, captions for some."""
    folder = tmp_path / "media"
    folder.mkdir()
    for seed in range(3):
        save_clip(folder / f"clip{seed}.mp4", seed)
    for seed in range(2):
        save_photo(folder / f"photo{seed}.jpg", seed)
    for kind, noun in enumerate(("disc", "star")):
        save_drawing(folder / f"{noun}.png", kind)
    rows = [{"path": "disc.png", "caption": "disc"}, {"path": "star.png", "caption": "star"}]
    rows += [{"path": "clip0.mp4", "caption": "rain"}, {"path": "clip1.mp4", "caption": "  "}]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.filterwarnings("ignore:passed over", "ignore:left out")
def test_clips_go_on_without_what_is_broken(media: Path, tmp_path: Path) -> None:
    (media / "text.mp4").write_text("no video")
    (media / "lost.mkv").symlink_to(media / "nowhere.mkv")
    (media / "text.jpg").write_text("no photograph")
    (media / "cut.jpg").write_bytes((media / "photo0.jpg").read_bytes()[:200])
    with pytest.warns(UserWarning, match="left out") as seen:
        clips = captioned_clips(DataConfig(), [media], tmp_path / "cache", **SHAPE, stride=(4, 16, 16))
    told = "\n".join(str(warning.message) for warning in seen)
    assert all(name in told for name in ("2 of 5 videos", "text.mp4", "lost.mkv", "1 of 11 files", "text.jpg"))
    assert {clips[index].video.shape for index in range(12)} == {(3, 5, 32, 32)}
    plain = mixed_clips(DataConfig(), [media], tmp_path / "cache", **SHAPE)
    assert {plain[index].shape for index in range(12)} == {(3, 5, 32, 32)}


def test_more_broken_videos_than_sound_ones_stop_it(media: Path, tmp_path: Path) -> None:
    for number in range(4):
        (media / f"empty{number}.mp4").touch()
    with pytest.raises(ValueError, match=r"4 of 7 videos cannot be used:\n .*empty0.mp4: the file is empty"):
        mixed_clips(DataConfig(), [media], tmp_path / "cache", **SHAPE)


def test_blank_captions_are_none(media: Path, tmp_path: Path) -> None:
    data = DataConfig(scenes=0.0, photos=0.0)
    clips = captioned_clips(data, [media], tmp_path / "cache", **SHAPE, stride=(4, 16, 16))
    assert {clips[index].caption for index in range(12)} == {"rain", ""}


def test_nouns_are_split_once(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather, calls = words.gather_nouns, list[int]()
    monkeypatch.setattr(words, "gather_nouns", lambda entries: (calls.append(1), gather(entries))[1])
    captioned_clips(DataConfig(), [media], tmp_path / "cache", **SHAPE, stride=(4, 16, 16))
    assert len(calls) == 1
