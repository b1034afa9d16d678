"""The reconstruction benchmark: protocol, clips, scores and means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.data.video_io import VideoError, load_video, save_video
from pyratok.eval import reconstruction
from pyratok.eval.reconstruction import EvalProtocol, evaluate_reconstruction, find_clips
from pyratok.metrics.reconstruction import psnr

SMALL = EvalProtocol(size=48, crop=32, frames=5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clips of different length and size, a file that is none, and one more clip in a folder."""
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    save_video(moving_video(9, 48, 64), folder / "b.mp4", fps=12.0)
    save_video(moving_video(3, 96, 64), folder / "a.mp4", fps=25.0)
    save_video(moving_video(1, 64, 64, fps=None), folder / "more" / "c.png")
    (folder / "notes.txt").write_text("not a clip")
    return folder


def test_clips_are_found_in_a_fixed_order(data: Path) -> None:
    assert [path.name for path in find_clips(data)] == ["a.mp4", "b.mp4", "c.png"]
    assert find_clips(data / "b.mp4") == [data / "b.mp4"]


def test_hidden_files_are_no_clips(data: Path) -> None:
    (data / "._b.mp4").write_bytes(b"what a Mac leaves on foreign disks")
    (data / ".thumbnails").mkdir()
    (data / "a.mp4").rename(data / ".thumbnails" / "a.mp4")
    assert [path.name for path in find_clips(data)] == ["b.mp4", "c.png"]


def test_clips_of_one_name_are_told_apart(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "a.mp4").rename(data / "more" / "b.mp4")
    monkeypatch.chdir(data.parent)
    record = evaluate_reconstruction(FakeTokenizer(), find_clips(Path("data")), SMALL, levels=[1])
    assert [score.clip for score in record.clips] == ["b.mp4", "more/b.mp4", "more/c.png"]


def test_no_clips_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no video or image"):
        find_clips(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        find_clips(tmp_path / "nowhere")


def test_the_digest_is_of_every_field() -> None:
    changed = {"size": 512, "crop": 128, "frames": 17, "caption": "a dog", "psnr": "x", "ssim": "x", "x265": "x"}
    digests = {dataclasses.replace(EvalProtocol(), **{name: value}).digest for name, value in changed.items()}
    digests |= {dataclasses.replace(EvalProtocol(), benchmark="x").digest}
    assert len(digests | {EvalProtocol().digest}) == len(dataclasses.fields(EvalProtocol)) + 1
    assert EvalProtocol().digest == EvalProtocol().digest


@pytest.mark.parametrize("fields", [{"crop": 0}, {"crop": 257}, {"frames": 0}])
def test_a_protocol_that_cannot_be_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EvalProtocol(**fields)


def test_clips_are_scaled_cropped_and_cut_as_the_protocol_says(data: Path) -> None:
    record = evaluate_reconstruction(FakeTokenizer(), find_clips(data), SMALL)
    assert [(c.clip, c.frames, c.height, c.width) for c in record.clips] == [
        ("a.mp4", 3, 32, 32),
        ("b.mp4", 5, 32, 32),
        ("more/c.png", 1, 32, 32),
    ]


def test_scores_are_those_of_the_decoded_prefix(data: Path) -> None:
    tokenizer = FakeTokenizer()
    record = evaluate_reconstruction(tokenizer, [data / "b.mp4"], SMALL)
    video = load_video(data / "b.mp4", size=48, crop=32, frames=5)
    tokens = tokenizer.encode(video)
    for count, score in enumerate(record.clips[0].prefixes, start=1):
        held = tokens.prefix(count)
        assert score.levels == count
        assert score.bits_per_pixel == held.bits_per_pixel
        assert score.psnr == pytest.approx(psnr(tokenizer.decode(held), video).item())
    assert record.model == tokenizer.model_id


def test_the_mean_is_over_clips(data: Path) -> None:
    record = evaluate_reconstruction(FakeTokenizer(), find_clips(data), SMALL, levels=[1, 3])
    assert [score.levels for score in record.mean] == [1, 3]
    for index, mean in enumerate(record.mean):
        assert mean.psnr == pytest.approx(sum(clip.prefixes[index].psnr for clip in record.clips) / 3)
        assert mean.x265_psnr is None


def test_x265_is_told_apart_from_what_it_cannot_reach(data: Path) -> None:
    protocol = EvalProtocol(size=48, crop=48, frames=9)
    record = evaluate_reconstruction(FakeTokenizer(), [data / "b.mp4"], protocol, levels=[1, 3], with_x265=True)
    coarse, fine = record.clips[0].prefixes
    assert coarse.x265_psnr is None, "the headers alone cost more than this rate"
    assert fine.x265_psnr is not None
    assert record.mean[1].x265_psnr == fine.x265_psnr


def test_a_fault_of_x265_is_not_a_rate_it_cannot_reach(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("Invalid argument")  # as av.ArgumentError, which is one

    monkeypatch.setattr(reconstruction, "x265_at_bpp", fail)
    with pytest.raises(ValueError, match="Invalid argument"):
        evaluate_reconstruction(FakeTokenizer(), [data / "b.mp4"], SMALL, with_x265=True)


def test_progress_is_told_clip_by_clip(data: Path) -> None:
    seen: list[str] = []
    evaluate_reconstruction(FakeTokenizer(), find_clips(data), SMALL, on_clip=lambda score: seen.append(score.clip))
    assert seen == ["a.mp4", "b.mp4", "more/c.png"]


def test_a_damaged_clip_is_never_skipped(data: Path) -> None:
    (data / "d.mp4").write_bytes((data / "b.mp4").read_bytes()[:500])
    with pytest.raises(VideoError, match=r"d\.mp4"):
        evaluate_reconstruction(FakeTokenizer(), find_clips(data), SMALL)


def test_the_record_is_json_and_names_its_protocol(data: Path) -> None:
    record = evaluate_reconstruction(FakeTokenizer(), [data / "b.mp4"], SMALL)
    found = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    assert found["protocol"]["digest"] == SMALL.digest
    assert found["model"] == {"name": "fake", "fingerprint": FakeTokenizer().model_id.fingerprint}
    assert len(found["clips"]) == 1
