"""Footage cut to the bucket of its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyratok.data.bucketed import BucketedClips, Footage, bucketed_clips, cut, survey
from pyratok.data.buckets import Bucket, BucketConfig
from pyratok.data.captioned import CaptionedBatch, CaptionedItem
from pyratok.data.datasets import batches
from pyratok.data.manifests import Entry
from pyratok.data.mixes import DataConfig
from pyratok.data.video_io import VideoError, save_video

CONFIG = BucketConfig(sides=(32, 64), frames=(5, 9), multiple=16, aspect_ratios=(1.0, 2.0))
SHAPES = ((9, 32, 32), (9, 64, 64), (5, 48, 96), (12, 40, 40), (3, 24, 24))
GREY_STEP = 16
"""Frame t of a video has the grey value 16 t + 8."""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("media")
    for number, (frames, height, width) in enumerate(SHAPES):
        clip = torch.empty(1, 3, frames, height, width)
        for t in range(frames):
            clip[:, :, t] = (GREY_STEP * t + 8) / 127.5 - 1
        save_video(clip, root / f"{number}.mp4", fps=10)
        (root / f"{number}.txt").write_text(f"video {number} goes left")
    return root


def clips(media: Path, *, stride: tuple[int, int, int] | None = (4, 16, 16), length: int = 24) -> BucketedClips:
    return bucketed_clips(DataConfig(), [media], CONFIG, batch_size=2, length=length, seed=3, stride=stride)


def test_a_batch_is_of_one_bucket_and_every_video_is_shown(media: Path) -> None:
    dataset = clips(media)
    shown: set[str] = set()
    shapes = set()
    for batch in batches(dataset, 2, workers=0):
        assert isinstance(batch, CaptionedBatch)
        t, h, w = batch.videos.shape[2:]
        shapes.add((t, h, w))
        assert batch.masks.shape[2:] == (1 + (t - 1) // 4, h // 16, w // 16)
        assert not batch.masks.any()
        shown |= set(batch.captions)
    assert shown == {f"video {number} goes left" for number in range(len(SHAPES))}
    assert shapes == {(b.frames, b.height, b.width) for b in dataset.members}
    assert len(shapes) > 1


def test_clips_follow_from_seed_and_number(media: Path) -> None:
    whole = [batch.videos for batch in batches(clips(media), 2, workers=0)]
    later = [batch.videos for batch in batches(clips(media), 2, start=5, workers=0)]
    assert len(later) == len(whole) - 5
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], later, strict=True))
    parts = [[batch.videos for batch in batches(clips(media), 1, workers=0, rank=rank, world=2)] for rank in (0, 1)]
    for joint, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(joint, torch.cat(halves))


def test_plain_clips_have_no_captions(media: Path) -> None:
    batch = next(iter(batches(clips(media, stride=None), 2, workers=0)))
    assert isinstance(batch, torch.Tensor)
    assert batch.dtype == torch.uint8
    assert batch.shape[:2] == (2, 3)


def test_a_clip_is_a_run_of_frames_of_the_video(media: Path) -> None:
    video = Footage(entry=Entry(path=media / "3.mp4"), frames=12, fps=10.0, height=40, width=40)
    starts = set()
    for seed in range(12):
        clip = cut(video, Bucket(frames=5, height=16, width=32), np.random.default_rng(seed))
        assert clip.shape == (5, 16, 32, 3)
        numbers = [round((float(frame.mean()) - 8) / GREY_STEP) for frame in clip]
        assert numbers == list(range(numbers[0], numbers[0] + 5))
        starts.add(numbers[0])
    assert len(starts) > 2
    assert max(starts) <= 7


def test_a_short_video_repeats_its_last_frame(media: Path) -> None:
    video = Footage(entry=Entry(path=media / "4.mp4"), frames=3, fps=10.0, height=24, width=24)
    clip = cut(video, Bucket(frames=5, height=32, width=32), np.random.default_rng(0))
    assert np.array_equal(clip[2], clip[3])
    assert np.array_equal(clip[3], clip[4])
    assert not np.array_equal(clip[1], clip[2])


def test_sides_are_kept_where_captions_name_them(tmp_path: Path) -> None:
    clip = torch.full((1, 3, 5, 32, 32), -1.0)
    clip[..., :16] = 1
    save_video(clip, tmp_path / "clip.mp4", fps=10)

    def brighter_left(caption: str) -> set[bool]:
        video = Footage(
            entry=Entry(path=tmp_path / "clip.mp4", caption=caption), frames=5, fps=10.0, height=32, width=32
        )
        found = [cut(video, Bucket(frames=5, height=32, width=32), np.random.default_rng(seed)) for seed in range(12)]
        return {bool(c[..., :16, :].mean() > c[..., 16:, :].mean()) for c in found}

    assert brighter_left("bright on the left") == {True}
    assert brighter_left("bright on one side") == {True, False}


def test_a_damaged_video_is_passed_over(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(path=media / f"{number}.mp4") for number in (0, 1, 3)] + [Entry(path=media / "0.txt")]
    with pytest.warns(UserWarning, match=r"1 of 4 videos cannot be used"):
        found = survey(entries)
    assert [video.entry for video in found] == entries[:3]
    with pytest.raises(ValueError, match="2 of 3 videos"):
        survey([*entries[:1], entries[3], Entry(path=media / "absent.mp4")])

    config = BucketConfig(sides=(32,), frames=(5,), multiple=16, aspect_ratios=(1.0,))
    dataset = BucketedClips(found, config, batch_size=1, length=3, stride=(4, 16, 16))
    good = cut

    def damaged(video: Footage, bucket: Bucket, rng: np.random.Generator) -> np.ndarray:
        if video is found[0]:
            raise VideoError(f"{video.entry.path}: cut short")
        return good(video, bucket, rng)

    monkeypatch.setattr("pyratok.data.bucketed.cut", damaged)
    with pytest.warns(UserWarning, match=r"passed over: .*0\.mp4: cut short"):
        assert all(isinstance(dataset[index], CaptionedItem) for index in range(3))
    monkeypatch.setattr("pyratok.data.bucketed.cut", lambda video, bucket, rng: damaged(found[0], bucket, rng))
    with pytest.warns(match="passed over"), pytest.raises(ValueError, match="bucket 5x32x32 cannot be read"):
        dataset[0]


def test_photographs_alone_make_no_buckets(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="buckets are cut from videos"):
        bucketed_clips(DataConfig(), [tmp_path], CONFIG, batch_size=1, length=1, seed=0, stride=None)
