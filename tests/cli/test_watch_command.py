"""watch: live video to tokens, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fakes import FakeTokenizer, moving_video
from pyratok.codec.container import load_tokens, open_tokens
from pyratok.data import video_live
from pyratok.data.video_io import VideoError, from_uint8, load_video, save_video, to_uint8
from pyratok.data.video_live import Head, LiveSource
from pyratok.runtime.live import watch
from pyratok.types import TokenPyramid, Video

Command = Callable[..., int]
PICTURES = to_uint8(moving_video(30))


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Iterator[Any]]], None]:
    """Makes every source a camera of 48x64 pixels at 12 frames per second that gives what a function yields."""

    def install(pictures: Callable[[], Iterator[np.ndarray]]) -> None:
        def items(source: LiveSource, container: object) -> Iterator[Head | np.ndarray]:
            yield Head(48, 64, 12.0)
            yield from pictures()

        monkeypatch.setattr(video_live, "_open", lambda *a: contextlib.nullcontext())
        monkeypatch.setattr(LiveSource, "_items", items)

    return install


def transport_stream(path: Path, *sizes: tuple[int, int], frames: int = 10) -> None:
    """Pieces of broadcast one behind the other, each with frames of its own (height, width)."""
    parts = []
    for height, width in sizes:
        part = path.with_suffix(".part")
        with av.open(str(part), "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=Fraction(25))
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for number in range(frames):
                picture = np.full((height, width, 3), 8 * number, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))


def test_a_file_gives_the_tokens_of_encode(
    clip: Path, tmp_path: Path, pyratok: Command, model: FakeTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("watch", clip, "-o", tmp_path / "x.pyra") == 0
    assert load_tokens(tmp_path / "x.pyra") == model.encode(load_video(clip))
    assert open_tokens(tmp_path / "x.pyra").complete
    printed = capsys.readouterr().out
    assert "kbit/s" in printed
    assert "novelty 100%" in printed


def test_without_an_output_nothing_is_written(clip: Path, tmp_path: Path, pyratok: Command) -> None:
    assert pyratok("watch", clip) == 0
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize(("options", "frames"), [(["--frames", 5], 5), (["--seconds", 0.5], 6), (["--frames", 99], 9)])
def test_it_stops_where_it_was_told(
    options: list[Any], frames: int, clip: Path, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pyratok("watch", clip, "-o", tmp_path / "x.pyra", "--json", "-", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == load_tokens(tmp_path / "x.pyra").geometry.frames == frames
    assert found["ended"] == ("with the source" if frames == 9 else "as asked")
    assert sum(pulse["frames"] for pulse in found["pulses"]) == frames


def test_standard_input_is_a_source(tmp_path: Path, pyratok: Command, model: FakeTokenizer) -> None:
    video = tmp_path / "clip.mkv"
    save_video(moving_video(), video)
    kept = os.dup(0)
    try:
        with video.open("rb") as file:
            os.dup2(file.fileno(), 0)
            assert pyratok("watch", "-", "-o", tmp_path / "x.pyra") == 0
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    assert load_tokens(tmp_path / "x.pyra") == model.encode(load_video(video))


def test_a_named_pipe_is_a_source(tmp_path: Path, pyratok: Command) -> None:
    transport_stream(tmp_path / "x.ts", (48, 64), frames=30)
    os.mkfifo(tmp_path / "pipe")
    if os.fork() == 0:  # a writer that is no part of this process
        (tmp_path / "pipe").write_bytes((tmp_path / "x.ts").read_bytes())
        os._exit(0)
    assert pyratok("watch", tmp_path / "pipe", "-o", tmp_path / "x.pyra") == 0
    os.wait()
    assert load_tokens(tmp_path / "x.pyra").geometry.frames == 30


@pytest.mark.parametrize(
    ("source", "words"),
    [("missing.mp4", "no such file"), (".", "folder"), ("text.mp4", "text file"), ("nosuch://x", "cannot be opened")],
)
def test_what_cannot_be_watched_is_one_error(
    source: str, words: str, tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    name = source if "://" in source else tmp_path / source
    assert pyratok("watch", name, "-o", tmp_path / "x.pyra") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert not (tmp_path / "x.pyra").exists()


def assert_ended_well(path: Path, frames: int) -> None:
    assert open_tokens(path).complete
    assert load_tokens(path).geometry.frames == frames


def test_a_change_of_size_ends_with_all_that_was_seen(
    tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    transport_stream(tmp_path / "x.ts", (48, 64), (32, 32))
    assert pyratok("watch", tmp_path / "x.ts", "-o", tmp_path / "x.pyra") == 2
    assert "changed from 64x48 to 32x32" in capsys.readouterr().err
    assert_ended_well(tmp_path / "x.pyra", 9)  # the tenth waits in FFmpeg's decoder, which drops it at the change


def test_a_stalled_source_ends_with_all_that_was_seen(
    tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], camera: Any
) -> None:
    def stalls() -> Iterator[np.ndarray]:
        yield from PICTURES[:14]
        time.sleep(1.5)

    camera(stalls)
    assert pyratok("watch", "camera:", "-o", tmp_path / "x.pyra", "--timeout", 0.5) == 2
    assert "stalled, no frame for 0.5 s" in capsys.readouterr().err
    assert_ended_well(tmp_path / "x.pyra", 14)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """A shell that starts the tests in the background has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_with_all_that_was_seen(
    tmp_path: Path, pyratok: Command, capsys: pytest.CaptureFixture[str], camera: Any
) -> None:
    def endless() -> Iterator[np.ndarray]:
        yield from PICTURES
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            yield PICTURES[0]

    camera(endless)
    assert pyratok("watch", "camera:", "-o", tmp_path / "x.pyra", "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ended"] == "by Ctrl-C"
    assert_ended_well(tmp_path / "x.pyra", found["frames"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestPulses:
    def run(self, pictures: Any, clock: Callable[[], float] = time.perf_counter) -> tuple[list[Any], TokenPyramid]:
        parts: list[TokenPyramid] = []
        pulses = list(watch(FakeTokenizer(), pictures, 12.0, parts.append, clock=clock))
        return pulses, TokenPyramid.concat(parts)

    def test_parts_are_the_whole(self) -> None:
        pulses, tokens = self.run(PICTURES)
        assert tokens == FakeTokenizer().encode(Video(from_uint8(PICTURES), fps=12.0))
        assert pulses[-1].total_frames == 30
        assert [pulse.frames for pulse in pulses] == [13, 12, 5]  # seconds end with a latent step

    def test_nothing_new_has_no_novelty(self) -> None:
        still = np.repeat(PICTURES[:1], 30, axis=0)
        pulses, _ = self.run(still)
        assert pulses[0].novelty == (1.0, 1.0, 1.0)
        assert all(pulse.novelty == (0.0, 0.0, 0.0) for pulse in pulses[1:])
        changed = np.concatenate([still, 255 - still])
        assert [max(pulse.novelty) > 0.5 for pulse in self.run(changed)[0]] == [True, False, True, False, False]

    def test_bits_are_those_of_the_tokens(self) -> None:
        pulses, tokens = self.run(PICTURES)
        total = sum(pulse.bits_per_second * pulse.frames / 12 for pulse in pulses)
        assert total == pytest.approx(16 * tokens.num_tokens)

    def test_rates_and_latencies_are_those_of_the_clock(self) -> None:
        ticks = iter(range(10**6))
        pulses, _ = self.run(PICTURES, clock=lambda: float(next(ticks)))
        assert all(pulse.latency_ms == 1000 for pulse in pulses)
        assert all(0 < pulse.fps <= 1 for pulse in pulses)

    def test_a_failure_comes_behind_the_last_tokens(self) -> None:
        def fails() -> Iterator[np.ndarray]:
            yield from PICTURES[:3]
            raise VideoError("gone")

        parts: list[TokenPyramid] = []
        pulses = watch(FakeTokenizer(), fails(), 12.0, parts.append)
        assert next(pulses).frames == 3
        with pytest.raises(VideoError, match="gone"):
            next(pulses)
        assert TokenPyramid.concat(parts).geometry.frames == 3


class TestTicks:
    @pytest.mark.parametrize(
        ("times", "counts"),
        [
            ([0, 0.1, 0.2, 0.3], [1, 1, 1, 1]),
            ([5, 5.1, 5.2], [1, 1, 1]),  # time begins anywhere
            ([0, 0.3, 0.4], [1, 3, 1]),  # a gap is filled
            ([0, 0.02, 0.04, 0.1], [1, 0, 0, 1]),  # of frames that share a tick the first stays
            ([0, 0.104, 0.196, 0.3], [1, 1, 1, 1]),
            ([0, 100, 100.1], [1, 1, 1]),  # the clock jumped
            ([100, 0, 0.1], [1, 1, 1]),
            ([None, None, None], [1, 1, 1]),
        ],
    )
    def test_frames_go_to_a_constant_rate(self, times: list[float | None], counts: list[int]) -> None:
        ticks = video_live._Ticks(Fraction(10))
        assert [ticks.advance(t) for t in times] == counts

    def test_a_wrong_timeout_is_refused(self) -> None:
        with pytest.raises(VideoError, match="timeout"):
            LiveSource("x", timeout=0)
