"""Reading: times, rates, sizes, colours, and every kind of file that users bring."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pyratok.data import video_io
from pyratok.data.memory import available_memory
from pyratok.data.video_io import VideoError, iter_frames, load_video, probe, to_uint8
from pyratok.data.video_pixels import Painter

CENTI = Fraction(1, 100)
STEP = 12  # grey levels between the frames of a test clip


def flat(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frame k is the grey of level ``STEP * k``, so that a decoded frame tells its number."""
    return [np.full((height, width, 3), STEP * index, np.uint8) for index in range(count)]


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def encode(
    path: Path,
    pictures: list[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    rate: Fraction | int = 10,
    times: list[int] | None = None,
    clock: Fraction | None = None,
    options: dict[str, str] | None = None,
    source: str = "rgb24",
    prepare: Callable[[av.VideoStream], None] = lambda stream: None,
) -> Path:
    """Encode with PyAV alone; ``times`` in ticks of ``clock`` make a variable rate."""
    is_still = path.suffix in {".png", ".jpg", ".webp", ".bmp", ".tiff"} and codec != "apng"
    muxer = {"format": "image2", "options": {"update": "1"}} if is_still else {}
    with av.open(str(path), "w", **muxer) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = clock or 1 / Fraction(rate)
        prepare(stream)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=source)
            frame = frame.reformat(format=pixels) if pixels != source else frame
            frame.pts = times[index] if times else index
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(frames: list[np.ndarray] | np.ndarray) -> list[int]:
    """Which frames of :func:`flat` these are."""
    return [round(float(frame.mean()) / STEP) for frame in frames]


def load_numbers(path: Path, **arguments: object) -> list[int]:
    return numbers(to_uint8(load_video(path, **arguments)))  # type: ignore[arg-type]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """20 frames at 10 per second, one key frame in front."""
    return encode(tmp_path / "clip.mp4", flat(20))


CONTAINERS = [
    ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.ts", "libx264"),
    ("a.flv", "flv"), ("a.mpg", "mpeg1video"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_every_frame_once_in_order_at_its_time(tmp_path: Path, name: str, codec: str, rate: Fraction) -> None:
    path = encode(tmp_path / name, flat(12), codec, rate=rate)
    times, frames = zip(*iter_frames(path), strict=True)
    assert numbers(frames) == list(range(12))
    clock = 0.001 if path.suffix in {".mkv", ".webm", ".flv"} else 1e-6
    assert times == pytest.approx([float(index / rate) for index in range(12)], abs=clock)
    video = load_video(path)
    assert numbers(to_uint8(video)) == list(range(12))
    assert video.fps == float(rate)


def test_video_is_float32_in_range_with_its_rate(clip: Path) -> None:
    video = load_video(clip)
    assert video.shape == (1, 3, 20, 32, 48)
    assert video.dtype == torch.float32
    assert video.fps == 10.0
    assert -1 <= float(video.min()) <= float(video.max()) <= 1


def test_probe_tells_header_and_first_frame(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.duration, info.frames) == (48, 32, 10.0, 2.0, 20)
    assert (info.codec, info.has_audio, info.is_image, info.bit_depth, info.rotation) == ("h264", False, False, 8, 0)


# Choosing frames


@pytest.mark.parametrize("count", [1, 5, 20, 33, 10**20])
def test_frames_is_the_most_that_is_read(clip: Path, count: int) -> None:
    assert load_numbers(clip, frames=count) == list(range(min(count, 20)))


@pytest.mark.parametrize(
    ("start", "first"), [(0.0, 0), (0.05, 0), (0.1, 1), (0.3, 3), (0.39, 3), (1.9, 19), (1.95, 19)]
)
def test_start_shows_what_is_on_display_then(tmp_path: Path, clip: Path, start: float, first: int) -> None:
    many_keys = encode(tmp_path / "keys.mkv", flat(20), options={"g": "4"})
    for path in (clip, many_keys):
        assert load_numbers(path, start=start) == list(range(first, 20))
        assert next(iter_frames(path, start=start))[0] == pytest.approx(first / 10)


def test_start_in_a_stream_without_index_or_times(tmp_path: Path) -> None:
    for name in ("a.ts", "a.h264"):
        path = encode(tmp_path / name, flat(20), rate=25, options={"g": "6"})  # raw streams are read at 25
        assert load_numbers(path, start=0.28, frames=3) == [7, 8, 9]


def test_fps_takes_the_latest_frame_at_or_before_each_tick(clip: Path) -> None:
    assert load_numbers(clip, fps=5) == list(range(0, 20, 2))
    assert load_numbers(clip, fps=20) == [index // 2 for index in range(40)]
    assert load_numbers(clip, fps=10) == list(range(20))
    assert load_numbers(clip, fps=4) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert load_video(clip, fps=4).fps == 4.0
    ticks = [time for time, _ in iter_frames(clip, fps=4, start=1)]
    assert ticks == pytest.approx([1.0, 1.25, 1.5, 1.75])


def test_variable_rate_keeps_exact_times_raw_and_duration_loaded(tmp_path: Path) -> None:
    times = [0, 40, 80, 400, 440, 1000, 1040, 1080]
    path = encode(tmp_path / "vfr.mkv", flat(8), rate=25, times=times, clock=Fraction(1, 1000))
    read, frames = zip(*iter_frames(path), strict=True)
    assert read == pytest.approx([time / 1000 for time in times])
    assert numbers(frames) == list(range(8))

    video = load_video(path)
    assert video.fps is not None
    assert video.shape[2] / video.fps == pytest.approx(1.12, abs=1 / video.fps)
    for index, number in enumerate(numbers(to_uint8(video))):
        assert abs(times[number] / 1000 - index / video.fps) < 1 / video.fps or number in (2, 4)  # long ones repeat

    assert load_numbers(path, fps=25, frames=12) == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 4]
    assert load_numbers(path, start=0.3, fps=10, frames=2) == [2, 3]


def test_frames_behind_those_asked_for_are_not_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []
    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", lambda self, frame: painted.append(frame.pts) or paint(self, frame))
    load_video(clip, frames=3)
    list(islice(iter_frames(clip), 2))
    assert len(painted) == 5


# Sizes


@pytest.mark.parametrize(("height", "width"), [(30, 54), (54, 30), (33, 100), (16, 16)])
@pytest.mark.parametrize("size", [8, 16, 47])
def test_size_is_the_short_side(tmp_path: Path, height: int, width: int, size: int) -> None:
    path = encode(tmp_path / "a.png", [noise(height, width)], "png", "rgb24")
    video = load_video(path, size=size)
    assert min(video.shape[-2:]) == size
    scale = size / min(height, width)
    assert video.shape[-2] == pytest.approx(height * scale, abs=0.5)
    assert video.shape[-1] == pytest.approx(width * scale, abs=0.5)


def test_shrinking_averages_instead_of_aliasing(tmp_path: Path) -> None:
    checkers = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 48))[..., None].repeat(3, -1)
    path = encode(tmp_path / "a.png", [checkers], "png", "rgb24")
    assert np.abs(to_uint8(load_video(path, size=16)).astype(int) - 127.5).max() < 3


def test_crop_cuts_the_centre(tmp_path: Path) -> None:
    picture = noise(21, 30)
    path = encode(tmp_path / "a.png", [picture], "png", "rgb24")
    assert np.array_equal(to_uint8(load_video(path, crop=11))[0], picture[5:16, 9:20])
    assert np.array_equal(to_uint8(load_video(path, crop=(21, 4)))[0], picture[:, 13:17])
    with pytest.raises(VideoError, match=r"a.png.*22x22.*30x21"):
        load_video(path, crop=22)


def test_clip_beyond_the_memory_is_refused_before_it_is_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame_bytes = 32 * 48 * 3 * 5
    monkeypatch.setattr(video_io, "available_memory", lambda: 10 * frame_bytes)
    assert load_video(clip, frames=10).shape[2] == 10
    assert load_video(clip, size=16).shape[2] == 20
    monkeypatch.setattr(Painter, "paint", lambda self, frame: pytest.fail("decoded"))
    for arguments in ({}, {"fps": 40.0, "frames": 11}, {"size": 64, "frames": 3}):
        with pytest.raises(VideoError, match=r"clip.mp4.*memory"):
            load_video(clip, **arguments)  # type: ignore[arg-type]


def test_available_memory_is_plausible() -> None:
    free = available_memory()
    assert free is None or free > 2**24


# Kinds of pictures


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("a.png", "png", "rgb24"), ("a.bmp", "bmp", "bgr24"), ("a.tiff", "tiff", "rgb24")]
)
def test_image_is_one_exact_frame_without_rate(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    picture = noise(7, 11)
    path = encode(tmp_path / name, [picture], codec, pixels)
    video = load_video(path, fps=30)
    assert video.fps is None
    assert np.array_equal(to_uint8(video), picture[None])
    assert [time for time, _ in iter_frames(path, fps=30)] == [0.0]
    info = probe(path)
    assert (info.is_image, info.frames, info.fps, info.duration) == (True, 1, None, None)


def test_jpeg_and_webp_are_images(tmp_path: Path) -> None:
    picture = np.full((16, 24, 3), (200, 80, 30), np.uint8)
    for path in (
        encode(tmp_path / "a.jpg", [picture], "mjpeg", "yuvj420p"),
        encode(tmp_path / "a.webp", [picture], "libwebp", "yuv420p"),
    ):
        assert probe(path).is_image
        assert np.abs(to_uint8(load_video(path))[0].astype(int) - picture).max() <= 8


def test_alpha_is_composited_over_black_before_scaling(tmp_path: Path) -> None:
    rgba = np.full((16, 16, 4), 255, np.uint8)
    rgba[:, 8:, 3] = 0  # white, but invisible
    rgba[:8, :8, 3] = 51
    png = encode(tmp_path / "a.png", [rgba], "png", "rgba", source="rgba")
    picture = to_uint8(load_video(png))[0]
    assert (picture[:8, :8] == 51).all()
    assert (picture[8:, :8] == 255).all()
    assert (picture[:, 8:] == 0).all()
    assert to_uint8(load_video(png, size=2))[0, ..., 0] == pytest.approx(np.array([[51, 0], [255, 0]]), abs=1)
    for name, codec, pixels in (("a.mkv", "ffv1", "bgra"), ("a.mov", "qtrle", "argb")):
        video = load_video(encode(tmp_path / name, [rgba] * 2, codec, pixels, source="rgba"))
        assert np.array_equal(to_uint8(video)[1], picture)


@pytest.mark.parametrize(("pixels", "depth"), [("yuv420p10le", 10), ("yuv444p12le", 12), ("gray", 8), ("gray10le", 10)])
def test_other_depths_and_grey_become_rgb(tmp_path: Path, pixels: str, depth: int) -> None:
    path = encode(tmp_path / "a.mkv", flat(5), "ffv1", pixels)
    assert probe(path).bit_depth == depth
    for number, frame in enumerate(to_uint8(load_video(path))):
        assert np.abs(frame.astype(int) - STEP * number).max() <= 2


def test_gif_and_apng_are_video_unless_single(tmp_path: Path) -> None:
    for name, codec, pixels in (("a.gif", "gif", "rgb8"), ("a.apng", "apng", "rgb24")):
        five = encode(tmp_path / name, [noise(8, 8, seed=index) for index in range(5)], codec, pixels)
        assert load_video(five).shape == (1, 3, 5, 8, 8)
        assert load_video(five, frames=33).fps == 10.0
        assert not probe(five).is_image
    thirty = encode(
        tmp_path / "thirty.gif",
        flat(20),
        "gif",
        "rgb8",
        rate=30,
        times=[round(k / 0.3) for k in range(20)],
        clock=CENTI,
    )
    assert load_video(thirty).shape[2] == 20  # steps of 3, 3, 4 hundredths
    assert load_video(thirty).fps == pytest.approx(30, rel=0.02)
    one = encode(tmp_path / "one.gif", flat(1), "gif", "rgb8")
    assert probe(one).is_image
    assert load_video(one).fps is None


def test_extreme_sizes(tmp_path: Path) -> None:
    dot = encode(tmp_path / "dot.png", [noise(1, 1)], "png", "rgb24")
    assert load_video(dot).shape == (1, 3, 1, 1, 1)
    assert load_video(dot, size=5).shape == (1, 3, 1, 5, 5)
    wide = noise(16, 16384)
    path = encode(tmp_path / "wide.png", [wide], "png", "rgb24")
    assert np.array_equal(to_uint8(load_video(path))[0], wide)
    assert load_video(path, size=8).shape == (1, 3, 1, 8, 8192)
    assert load_video(encode(tmp_path / "dot.webm", flat(3, 1, 1), "libvpx-vp9")).shape == (1, 3, 3, 1, 1)


def test_wide_pixels_are_made_square(tmp_path: Path) -> None:
    def anamorphic(stream: av.VideoStream) -> None:
        stream.sample_aspect_ratio = Fraction(3, 2)

    path = encode(tmp_path / "a.mp4", flat(2, 32, 48), prepare=anamorphic)
    assert load_video(path).shape[-2:] == (32, 72)
    assert (probe(path).height, probe(path).width) == (32, 72)
    assert load_video(path, size=16).shape[-2:] == (16, 36)


@pytest.mark.parametrize(("height", "tag"), [(720, 1), (64, 6)])
def test_untagged_yuv_is_bt709_when_high_definition(tmp_path: Path, height: int, tag: int) -> None:
    picture = np.full((height, 16, 3), (200, 40, 90), np.uint8)

    def decoded(tagged: bool) -> np.ndarray:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        yuv = frame.reformat(format="yuv444p", dst_colorspace=tag, dst_color_range=1)
        yuv.colorspace = tag if tagged else 2
        return Painter(yuv).paint(yuv)

    assert np.abs(decoded(True).astype(int) - picture).max() <= 2
    assert np.array_equal(decoded(True), decoded(False))


# Names and damage


@pytest.mark.parametrize("name", ["a:b.mp4", "100% real.mp4", "sp ace ü.mp4", "-dash.mp4"])
def test_unusual_names(tmp_path: Path, clip: Path, name: str) -> None:
    path = clip.rename(tmp_path / name)
    assert load_video(str(path), frames=2).shape[2] == 2


def test_bad_arguments_name_file_and_value(clip: Path) -> None:
    for arguments, text in [
        ({"frames": 0}, "frames.*0"), ({"size": 0}, "size.*0"), ({"size": -3}, "size.*-3"), ({"crop": 0}, "crop.*0"),
        ({"fps": 0.0}, "fps.*0"), ({"fps": float("nan")}, "fps.*nan"), ({"start": -1.0}, "start.*-1"),
        ({"start": 2.0}, "start=2 is beyond the end"), ({"start": 99.0}, "lasts 2.00 s"),
        ({"start": float("inf")}, "start.*inf"),
    ]:  # fmt: skip
        with pytest.raises(VideoError, match=f"clip.mp4: .*{text}"):
            load_video(clip, **arguments)  # type: ignore[arg-type]
    with pytest.raises(VideoError, match="fps"):
        iter_frames(clip, fps=-1)  # before the first frame is asked for


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_files_that_are_no_video(tmp_path: Path, clip: Path) -> None:
    whole = clip.read_bytes()
    png = encode(tmp_path / "a.png", [noise(32, 32)], "png", "rgb24").read_bytes()
    jpg = encode(tmp_path / "a.jpg", [noise(64, 64)], "mjpeg", "yuvj420p").read_bytes()
    text, script = b"one line of text\n" * 40, f"ffconcat version 1.0\nfile {clip.name}\n".encode()
    for name, content, cause in [
        ("empty.mp4", b"", "empty"), ("list.mp4", script, "list of files"),
        ("text.mp4", text, "text file"), ("text.txt", text, "text file"),
        ("cut.mp4", whole[: len(whole) // 2], "moov"), ("junk.mp4", bytes(range(256)) * 9, "not a video or image"),
        ("cut.png", png[: len(png) // 2], "damaged"), ("cut.jpg", jpg[: len(jpg) // 2], "damaged"),
        ("head.webp", b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x07\0\0\x07\0\0ANIM" + bytes(80), "animated WebP"),
    ]:  # fmt: skip
        path = tmp_path / name
        path.write_bytes(content)
        for read in (probe, load_video, lambda file: next(iter_frames(file))):
            with pytest.raises(VideoError, match=f"{name}: .*{cause}") as caught:
                read(path)
            assert "\n" not in str(caught.value)
    for path, cause in [
        (tmp_path / "none.mp4", "no such file"), (tmp_path, "folder"), (Path("/dev/null"), "device"),
        (sound_only(tmp_path / "a.wav"), "sound only"),
    ]:  # fmt: skip
        with pytest.raises(VideoError, match=f"{path}: .*{cause}"):
            load_video(path)


def test_track_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = 32, 32
        container.start_encoding()
    with pytest.raises(VideoError, match=r"a.mkv"):
        load_video(path)


def moving(count: int) -> list[np.ndarray]:
    return [np.roll(noise(64, 64), 3 * index, 1) for index in range(count)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damage_matters_only_where_it_is_needed(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a{suffix}", moving(40), options={"g": "10"})
    whole = load_video(path, frames=10)
    content = bytearray(path.read_bytes())
    middle = len(content) * 6 // 10
    content[middle : middle + 1500] = noise(1, 1500, 1).tobytes()
    path.write_bytes(content)
    assert torch.equal(load_video(path, frames=10), whole)
    with pytest.raises(VideoError, match=rf"a{suffix}: damaged at \d.\d+ s"):
        load_video(path)
    before = []
    with pytest.raises(VideoError, match="damaged"):
        before.extend(time for time, _ in iter_frames(path))
    assert 10 <= len(before) < 40


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {}), (".avi", {})])
def test_cut_file_gives_what_is_there_but_never_passes_for_whole(tmp_path: Path, suffix: str, options: dict) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10"})
        stream.width = stream.height = 64
        for picture in moving(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert load_video(path, frames=10).shape[2] == 10
    with pytest.raises(VideoError, match=f"a{suffix}: (damaged|cut short)"):
        load_video(path)


def test_any_damaged_byte_gives_a_video_or_one_clear_line(tmp_path: Path, clip: Path) -> None:
    content, generator = clip.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "hurt.mp4"
    for _ in range(60):
        hurt = bytearray(content)
        for position in generator.integers(0, len(hurt), 3):
            hurt[position] = generator.integers(256)
        path.write_bytes(hurt)
        outcome: object = None
        try:
            outcome = load_video(path, size=16, crop=16).shape[-2:]
        except VideoError as error:
            outcome = str(error)
        assert outcome == (16, 16) or re.fullmatch(rf"{path}: .+", str(outcome))
