"""Writing: what is saved comes back, at its rate, size and colours, with its sound, or not at all."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from zlib import crc32

import av
import numpy as np
import pytest
import torch

from pyratok.data.video_io import (
    VideoError,
    VideoWriter,
    exact_rate,
    from_uint8,
    load_video,
    probe,
    save_video,
    to_uint8,
)
from pyratok.types import Video

NTSC = 30000 / 1001


def smooth(frames: int, height: int, width: int) -> np.ndarray:
    """Slowly moving colour waves, uint8 ``[T, H, W, 3]``, that any codec takes well."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + 2 * t) / 13), np.cos((y - t) / 17), np.sin((x + y + t) / 19)]
    return (127.5 + 110 * np.stack(waves, -1)).astype(np.uint8)


def error(path: Path, frames: np.ndarray) -> float:
    """Mean absolute difference in levels to what is read back, shapes being equal."""
    back = to_uint8(load_video(path))
    assert back.shape == frames.shape
    return float(np.abs(back.astype(int) - frames).mean())


# Pixels and tensors


def test_uint8_and_float_are_exact_inverses() -> None:
    values = np.arange(256, dtype=np.uint8)
    frames = np.stack([values, values[::-1], np.roll(values, 7)], -1).reshape(2, 8, 16, 3)
    video = from_uint8(frames)
    assert video.shape == (1, 3, 2, 8, 16)
    assert (float(video.min()), float(video.max())) == (-1, 1)
    assert np.array_equal(to_uint8(video), frames)
    assert np.array_equal(to_uint8(video[0]), frames)
    assert torch.equal(from_uint8(to_uint8(video)), video)


def test_to_uint8_clamps_and_refuses_what_is_no_video() -> None:
    assert to_uint8(torch.tensor([-1.5, 0.0, 1.5]).reshape(1, 3, 1, 1, 1)).tolist() == [[[[0, 128, 255]]]]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN"):
            to_uint8(torch.tensor([0.0, value]).reshape(1, 1, 2, 1, 1).expand(1, 3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"\[2, 3, 1, 4, 4\]"):
        to_uint8(torch.zeros(2, 3, 1, 4, 4))
    with pytest.raises(ValueError, match="float32"):
        from_uint8(np.zeros((1, 2, 2, 3), np.float32))


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25, 2)])
def test_exact_rate_recovers_the_fraction(rate: Fraction) -> None:
    assert exact_rate(float(rate)) == rate


def test_exact_rate_of_extremes() -> None:
    assert exact_rate(1e-5) == Fraction(1, 100_000)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive"):
            exact_rate(bad)


# Round trips


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [NTSC, 12.5])
def test_video_comes_back(tmp_path: Path, suffix: str, fps: float) -> None:
    frames = smooth(9, 32, 48)
    path = tmp_path / f"a{suffix}"
    save_video(Video(from_uint8(frames), fps), path, crf=4)
    assert error(path, frames) < (8 if suffix == ".gif" else 2)
    if suffix != ".gif":  # whose clock has steps of 1/100 s
        assert load_video(path).fps == fps
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rate_is_kept_as_its_fraction(tmp_path: Path, suffix: str) -> None:
    save_video(from_uint8(smooth(40, 16, 16)), tmp_path / f"a{suffix}", fps=NTSC)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 1001)
        assert [frame.time for frame in container.decode(stream)] == pytest.approx(
            [index * 1001 / 30000 for index in range(40)], abs=0.001 if suffix == ".mkv" else 1e-9
        )
        if suffix == ".mp4":
            assert stream.duration * stream.time_base == 40 * Fraction(1001, 30000)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_colours_do_not_shift(tmp_path: Path, suffix: str) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (6, 8, 3))
    patches[0] = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0] * 3, [255] * 3, [128] * 3, [16] * 3, [235] * 3])
    chart = patches.repeat(16, 0).repeat(16, 1).astype(np.uint8)[None]
    path = tmp_path / f"a{suffix}"
    save_video(from_uint8(chart), path, crf=1)
    difference = to_uint8(load_video(path)).astype(int) - chart
    inner = difference.reshape(6, 16, 8, 16, 3)[:, 4:12, :, 4:12]  # 4:2:0 blends the edges of the patches
    assert np.abs(inner).max() <= 5
    assert np.abs(inner.mean((0, 1, 2, 3))).max() < 0.5
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (2, 5), (33, 31), (64, 113)])
def test_odd_sizes_come_back_as_they_were(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    frames = smooth(3, height, width)
    path = tmp_path / f"a{suffix}"
    save_video(from_uint8(frames), path, fps=10, crf=2)
    assert error(path, frames) < (12 if suffix == ".gif" else 5)
    assert (probe(path).height, probe(path).width) == (height, width)
    short = min(height, width)
    assert min(load_video(path, size=2 * short).shape[-2:]) == 2 * short


def test_wide_video(tmp_path: Path) -> None:
    save_video(from_uint8(smooth(2, 16, 16384)), tmp_path / "a.mp4", fps=10)
    assert load_video(tmp_path / "a.mp4").shape == (1, 3, 2, 16, 16384)


@pytest.mark.parametrize(("suffix", "levels"), [(".png", 0), (".bmp", 0), (".webp", 0), (".jpg", 3), (".jpeg", 3)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 30)])
def test_image_comes_back(tmp_path: Path, suffix: str, levels: float, height: int, width: int) -> None:
    frames = smooth(1, height, width)
    path = tmp_path / f"a:b 100%{suffix}"
    save_video(from_uint8(frames), path)
    assert error(path, frames) <= levels
    assert probe(path).is_image
    assert load_video(path).fps is None


def test_single_frame_needs_no_rate_but_a_video_does(tmp_path: Path) -> None:
    save_video(from_uint8(smooth(1, 8, 8)), tmp_path / "a.mp4")
    assert load_video(tmp_path / "a.mp4").shape == (1, 3, 1, 8, 8)
    with pytest.raises(VideoError, match=r"b.mp4: .*fps="):
        save_video(from_uint8(smooth(2, 8, 8)), tmp_path / "b.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
def test_frames_written_in_parts_give_the_same_file(tmp_path: Path, suffix: str) -> None:
    frames = smooth(40, 64, 32)  # the size at which x264, left to itself, hardly ever repeats itself
    whole = tmp_path / f"whole{suffix}"
    save_video(from_uint8(frames), whole, fps=25)
    for number in range(3):
        parts = tmp_path / f"parts{number}{suffix}"
        with VideoWriter(parts, fps=25) as writer:
            writer.write(frames[:1])
            writer.write(from_uint8(frames[1:30])[0])
            writer.write(from_uint8(frames[30:]))
            assert writer.num_frames == 40
        assert parts.read_bytes() == whole.read_bytes()
    assert load_video(whole).shape[2] == 40


def test_frames_may_be_overwritten_once_they_are_handed_over(tmp_path: Path) -> None:
    frames = smooth(40, 64, 32)
    save_video(from_uint8(frames), tmp_path / "kept.mp4", fps=25)
    canvas = np.empty_like(frames[:1])
    with VideoWriter(tmp_path / "reused.mp4", fps=25) as writer:
        for frame in frames:
            canvas[0] = frame
            writer.write(canvas)
            canvas[:] = 0
    assert (tmp_path / "reused.mp4").read_bytes() == (tmp_path / "kept.mp4").read_bytes()


# Failure leaves nothing behind


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif", "a.png"])
@pytest.mark.parametrize("frames_before", [0, 1])
def test_interrupted_writing_leaves_the_folder_as_it_was(tmp_path: Path, name: str, frames_before: int) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def interrupted() -> None:
        with VideoWriter(path, fps=10) as writer:
            writer.write(smooth(frames_before, 16, 16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with VideoWriter(path, fps=10) as writer:
        writer.write(smooth(30, 16, 16))
        assert path.read_bytes() == b"old"
    assert load_video(path).shape[2] == 30
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    two = from_uint8(smooth(2, 8, 8))
    (tmp_path / "folder.mp4").mkdir()
    for name, cause in [
        ("a.xyz", "cannot write .xyz; use one of .mp4"), ("a", "without a suffix"), ("a.png", "one frame.*mp4"),
        ("none/a.mp4", "no folder"), ("folder.mp4", "is a folder"),
    ]:  # fmt: skip
        with pytest.raises(VideoError, match=f"{name}: .*{cause}") as caught:
            save_video(two, tmp_path / name, fps=10)
        assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match=r"a.mp4: .*positive"):
        save_video(two, tmp_path / "a.mp4", fps=-1)
    with pytest.raises(VideoError, match=r"a.mp4: no frame"):
        save_video(two[:, :, :0], tmp_path / "a.mp4", fps=10)
    with pytest.raises(VideoError, match=r"crf.*99"):
        save_video(two, tmp_path / "a.mp4", fps=10, crf=99)
    with pytest.raises(VideoError, match=r"a.mp4: cannot be written"):
        save_video(from_uint8(smooth(1, 2, 17000)), tmp_path / "a.mp4", fps=10)  # H.264 ends at 16384
    assert [file.name for file in tmp_path.iterdir()] == ["folder.mp4"]


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=10) as writer:
        writer.write(smooth(1, 8, 8))
        with pytest.raises(VideoError, match="8x9 after frames of 8x8"):
            writer.write(smooth(1, 9, 8))
    assert load_video(tmp_path / "a.mp4").shape == (1, 3, 1, 8, 8)


def test_tensors_that_are_no_video_are_refused(tmp_path: Path) -> None:
    two = from_uint8(smooth(2, 8, 8))
    with pytest.raises(ValueError, match="one clip"):
        save_video(two.repeat(2, 1, 1, 1, 1), tmp_path / "a.mp4", fps=10)
    with pytest.raises(ValueError, match="NaN"):
        save_video(two * float("nan"), tmp_path / "a.mp4", fps=10)
    assert not list(tmp_path.iterdir())


# Sound


def with_sound(path: Path, codec: str, seconds: float = 2.0) -> Path:
    """A clip of 10 frames a second with a sweep of sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width = video.height = 16
        audio = container.add_stream(codec, rate=48000, layout="mono")
        for picture in smooth(round(10 * seconds), 16, 16):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(video.encode(None))
        sweep = np.sin(np.arange(int(48000 * seconds)) ** 1.3 / 400)
        resampler = av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=48000)
        for start in range(0, len(sweep), 960):
            samples = (20000 * sweep[None, start : start + 960]).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            for ready in resampler.resample(frame):
                container.mux(audio.encode(ready))
        container.mux(audio.encode(None))
    return path


def sound_packets(path: Path) -> list[tuple[float, int]]:
    with av.open(str(path)) as container:
        audio = container.streams.audio[0]
        return [(float(p.pts * p.time_base), crc32(bytes(p))) for p in container.demux(audio) if p.pts is not None]


COPIES = [
    ("s.mp4", "aac", "a.mp4"), ("s.mp4", "aac", "a.mkv"), ("s.mkv", "libopus", "a.webm"), ("s.mkv", "libopus", "a.mp4"),
    ("s.mkv", "ac3", "a.mp4"), ("s.mkv", "flac", "a.mkv"), ("s.mkv", "pcm_s16le", "a.mkv"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "codec", "name"), COPIES)
@pytest.mark.parametrize("start", [0.0, 0.7])
def test_sound_is_copied_untouched_and_cut_to_the_video(
    tmp_path: Path, source: str, codec: str, name: str, start: float
) -> None:
    original = with_sound(tmp_path / source, codec)
    path = tmp_path / name
    save_video(from_uint8(smooth(10, 16, 16)), path, fps=10, audio_from=original, audio_start=start)
    assert probe(path).has_audio
    assert load_video(path).shape[2] == 10

    times = {content: time for time, content in sound_packets(original)}
    copied = sound_packets(path)
    shifts = [times[content] - time for time, content in copied]
    assert shifts == pytest.approx([start] * len(shifts), abs=0.09)
    assert np.ptp(shifts) < 0.003
    assert copied[0][0] < 0.03
    assert 0.9 < copied[-1][0] < 1.02


def test_sound_stays_in_step_with_the_pictures(tmp_path: Path) -> None:
    original = with_sound(tmp_path / "s.mp4", "aac")
    path = tmp_path / "a.mp4"
    save_video(load_video(original, start=0.5), path, audio_from=original, audio_start=0.5)

    def decoded(file: Path) -> tuple[float, np.ndarray]:
        with av.open(str(file)) as container:
            first = next(container.decode(video=0)).time
        with av.open(str(file)) as container:
            frames = list(container.decode(audio=0))
        return frames[0].time - first, np.concatenate([frame.to_ndarray()[0] for frame in frames])

    (source_time, source), (time, copy) = decoded(original), decoded(path)
    wanted = source[round((0.5 + 0.3 - source_time) * 48000) :][:4800]  # 0.3 s into the new file
    at = round((0.3 - time) * 48000)
    assert np.abs(copy[at : at + 4800] - wanted).max() < 0.02


def test_sound_that_does_not_fit_is_dropped_with_a_warning(tmp_path: Path) -> None:
    original = with_sound(tmp_path / "s.mp4", "aac")
    for name in ("a.webm", "a.gif"):
        with pytest.warns(UserWarning, match=f"{name}: written without sound.*aac"):
            save_video(from_uint8(smooth(3, 16, 16)), tmp_path / name, fps=10, audio_from=original)
        assert not probe(tmp_path / name).has_audio
        assert load_video(tmp_path / name).shape[2] == 3


@pytest.mark.parametrize("codec", ["libopus", "flac"])
def test_sound_that_the_header_refuses_is_dropped_as_well(tmp_path: Path, codec: str) -> None:
    original = with_sound(tmp_path / "s.mkv", codec)
    with pytest.warns(UserWarning, match=r"a\.mov: written without sound.*(opus|flac)"):
        save_video(from_uint8(smooth(3, 16, 16)), tmp_path / "a.mov", fps=10, audio_from=original)
    assert not probe(tmp_path / "a.mov").has_audio
    assert load_video(tmp_path / "a.mov").shape[2] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mov", "s.mkv"]


def test_silent_or_missing_source_of_sound(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    video = from_uint8(smooth(3, 16, 16))
    save_video(video, tmp_path / "silent.mp4", fps=10)
    save_video(video, tmp_path / "a.mp4", fps=10, audio_from=tmp_path / "silent.mp4")
    assert not probe(tmp_path / "a.mp4").has_audio
    assert not recwarn
    with pytest.raises(VideoError, match=r"none.mp4: no such file"):
        save_video(video, tmp_path / "b.mp4", fps=10, audio_from=tmp_path / "none.mp4")
    assert not (tmp_path / "b.mp4").exists()
