"""Files of any length: the same tokens and pixels as in one pass, in the memory of one piece, from wherever one was cut
off."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import FakeTokenizer, moving_video
from pyratok.codec.container import PyraFileError, load_tokens, open_tokens, save_tokens
from pyratok.data.video_io import VideoError, from_uint8, load_video, save_video
from pyratok.model.pyratok import PyraTok
from pyratok.runtime import long, pieces
from pyratok.runtime.frames import as_source
from pyratok.runtime.long import decode_file, encode_file, frame_span, reconstruct_file
from pyratok.runtime.pieces import Pieces, beginning_at, restart_step
from pyratok.runtime.planner import MemoryBudgetError
from pyratok.runtime.tiled_streams import TiledDecoder, TiledEncoder
from pyratok.runtime.tiling import Layout
from pyratok.types import TokenPyramid, Video
from tiny import random_video, tiny_pyratok

FRAMES = 150  # 39 latent steps, the last one not full: three segments, and the past of the last one begins later
TILES = Pieces(layout=Layout(tile=(32, 32), chunk_steps=2, in_order=True), steps=2, predicted=1)


@pytest.fixture(scope="module")
def model() -> PyraTok:
    return tiny_pyratok()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "clip.mp4"
    save_video(moving_video(FRAMES, 32, 48), path)
    return path


@pytest.fixture(scope="module")
def whole(model: PyraTok, clip: Path) -> TokenPyramid:
    return model.encode(load_video(clip))


@pytest.fixture(scope="module")
def stored(whole: TokenPyramid, model: PyraTok, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "clip.pyra"
    encode_file(model, clip, path)
    return path


class Collected:
    """Stands in for a video writer; frames as floats ``[1, 3, T, H, W]``."""

    frames: ClassVar[list[Tensor]] = []

    def __init__(self, path: Path, **options: Any) -> None:
        type(self).frames = []

    def __enter__(self) -> Collected:
        return self

    def __exit__(self, *failure: object) -> None:
        pass

    def write(self, frames: Tensor | np.ndarray) -> None:
        self.frames.append(frames if isinstance(frames, Tensor) else from_uint8(frames))

    @property
    def num_frames(self) -> int:
        return sum(part.shape[2] for part in self.frames)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> type[Collected]:
    monkeypatch.setattr(long, "VideoWriter", Collected)
    return Collected


def assert_same(tokens: TokenPyramid, wanted: TokenPyramid) -> None:
    """Ids equal but for what rounding may flip."""
    assert (tokens.geometry, tokens.model) == (wanted.geometry, wanted.model)
    different = sum(int((a != b).sum()) for a, b in zip(tokens.levels, wanted.levels, strict=True))
    assert different <= 1e-4 * wanted.num_tokens


class TestEncode:
    def test_the_tokens_are_those_of_one_pass(self, stored: Path, whole: TokenPyramid) -> None:
        assert_same(load_tokens(stored), whole)
        assert open_tokens(stored).complete
        assert len(open_tokens(stored).segments) == 3

    def test_a_short_clip_is_stored_whole(self, model: PyraTok, clip: Path, tmp_path: Path) -> None:
        encode_file(model, clip, tmp_path / "short.pyra", frames=61)
        save_tokens(model.encode(load_video(clip, frames=61)), tmp_path / "wanted.pyra")
        assert (tmp_path / "short.pyra").read_bytes() == (tmp_path / "wanted.pyra").read_bytes()

    def test_tiles_give_the_same_tokens(
        self, model: PyraTok, clip: Path, whole: TokenPyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(long, "choose_pieces", lambda *a, **k: TILES)
        encode_file(model, clip, tmp_path / "x.pyra", frames=22)
        assert_same(load_tokens(tmp_path / "x.pyra"), model.encode(load_video(clip, frames=22)))

    def test_a_budget_changes_no_token(self, model: PyraTok, clip: Path, tmp_path: Path) -> None:
        done = encode_file(model, clip, tmp_path / "x.pyra", frames=22, memory="64GiB")
        assert_same(load_tokens(tmp_path / "x.pyra"), model.encode(load_video(clip, frames=22)))
        assert done.predicted is not None

    def test_a_budget_that_is_too_small_is_refused_with_the_one_that_would_do(
        self, model: PyraTok, clip: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(MemoryBudgetError, match="smallest budget") as refusal:
            encode_file(model, clip, tmp_path / "x.pyra", memory="1MiB")
        assert refusal.value.minimum > 1 << 20
        assert not list(tmp_path.iterdir())

    def test_progress_ends_with_all_frames(self, model: PyraTok, clip: Path, tmp_path: Path) -> None:
        told: list[tuple[int, int | None]] = []
        encode_file(model, clip, tmp_path / "x.pyra", progress=lambda *done: told.append(done))
        assert told == sorted(told)
        assert told[-1] == (FRAMES, FRAMES)

    def test_damage_midway_keeps_what_was_encoded(
        self, model: PyraTok, clip: Path, whole: TokenPyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = pieces.iter_video

        def damaged(*arguments: Any, **options: Any) -> Iterator[Video]:
            for number, frame in enumerate(read(*arguments, **options)):
                if number == 140:
                    raise VideoError("damaged at 11.67 s")
                yield frame

        with monkeypatch.context() as patched:
            patched.setattr(pieces, "iter_video", damaged)
            with pytest.raises(VideoError, match="damaged"):
                encode_file(model, clip, tmp_path / "x.pyra")
            with pytest.raises(VideoError, match="damaged"):
                encode_file(model, clip, tmp_path / "short.pyra", frames=141, resume=True)
        assert not open_tokens(tmp_path / "x.pyra").complete
        encode_file(model, clip, tmp_path / "x.pyra", resume=True)
        assert_same(load_tokens(tmp_path / "x.pyra"), whole)


class TestMemory:
    """Frames alive at once, counted at a source that never repeats itself."""

    class Source:
        def __init__(self) -> None:
            self.alive = self.most = 0

        def __call__(self, path: Path, *, frames: int, **options: Any) -> Iterator[Video]:
            for number in range(frames):
                frame = Video(torch.full((1, 3, 1, 32, 32), number / frames), fps=25.0)
                # The storage: the reader hands on another tensor over the same memory.
                weakref.finalize(frame.plain().untyped_storage(), self._gone)
                self.alive += 1
                self.most = max(self.most, self.alive)
                yield frame

        def _gone(self) -> None:
            self.alive -= 1

    @pytest.mark.parametrize("frames", [150, 450])
    def test_frames_in_memory_do_not_grow_with_the_file(
        self, frames: int, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = self.Source()
        monkeypatch.setattr(pieces, "iter_video", source)
        monkeypatch.setattr(long, "_shape", lambda *a: (32, 32, frames))
        encode_file(FakeTokenizer(), clip, tmp_path / "x.pyra", frames=frames)
        assert load_tokens(tmp_path / "x.pyra").geometry.frames == frames
        assert source.most <= 2 * 4 * pieces.PIECE_STEPS + 1


class TestResume:
    @pytest.mark.parametrize("kept", ["no bytes", "header", "first segment", "half of the third", "all but the index"])
    def test_killed_and_resumed_is_uninterrupted(
        self, kept: str, model: PyraTok, clip: Path, whole: TokenPyramid, stored: Path, tmp_path: Path
    ) -> None:
        reader, path = open_tokens(stored), tmp_path / "x.pyra"
        first, second, third = reader.segments
        cut = {
            "no bytes": 0,
            "header": reader.header_size + 5,
            "first segment": first.end(),
            "half of the third": (second.end() + third.end()) // 2,
            "all but the index": third.end(),
        }[kept]
        path.write_bytes(stored.read_bytes()[:cut])
        done = encode_file(model, clip, path, resume=True)
        assert_same(load_tokens(path), whole)
        there = sum(segment.geometry.frames for segment in reader.segments if segment.end() <= cut)
        assert done.frames == FRAMES - there

    def test_only_what_the_next_tokens_depend_on_is_computed_again(
        self, model: PyraTok, clip: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, seen, encode = tmp_path / "x.pyra", list[int](), model.encode_chunk
        path.write_bytes(stored.read_bytes()[: open_tokens(stored).segments[1].end()])

        def counted(video: Tensor, *rest: Any) -> Any:
            seen.append(video.shape[2])
            return encode(video, *rest)

        monkeypatch.setattr(model, "encode_chunk", counted)
        encode_file(model, clip, path, resume=True)
        begin = restart_step(model, "encode", 31)
        assert begin > 0
        assert sum(seen) == 1 + 4 * 38 - 4 * begin

    def test_a_complete_file_is_left_as_it_is(self, model: PyraTok, clip: Path, stored: Path, tmp_path: Path) -> None:
        path, content = tmp_path / "x.pyra", stored.read_bytes()
        path.write_bytes(content)
        assert encode_file(model, clip, path, resume=True).frames == 0
        assert path.read_bytes() == content

    def test_another_video_is_refused_and_nothing_lost(
        self, model: PyraTok, clip: Path, stored: Path, tmp_path: Path
    ) -> None:
        path, other = tmp_path / "x.pyra", tmp_path / "other.mp4"
        content = stored.read_bytes()[: open_tokens(stored).segments[0].end()]
        path.write_bytes(content)
        save_video(moving_video(FRAMES, 32, 48).plain().flip(-1), other, fps=12)
        with pytest.raises(ValueError, match="not made from"):
            encode_file(model, other, path, resume=True)
        with pytest.raises(ValueError, match="not made from"):
            encode_file(model, clip, path, size=16, resume=True)
        with pytest.raises(ValueError, match="ends before"):
            encode_file(model, clip, path, frames=9, resume=True)
        with pytest.raises(ValueError, match="this model is"):
            encode_file(tiny_pyratok(seed=1), clip, path, resume=True)
        assert path.read_bytes() == content

    def test_what_is_no_token_file_is_refused(self, model: PyraTok, clip: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.pyra"
        path.write_text("something else")
        with pytest.raises(PyraFileError, match=r"not a \.pyra"):
            encode_file(model, clip, path, resume=True)
        assert path.read_text() == "something else"


class TestDecode:
    @pytest.mark.parametrize("levels", [None, 2])
    @pytest.mark.parametrize(("first", "last"), [(0, 150), (0, 3), (128, 131), (137, 150), (149, 150), (20, 66)])
    def test_a_span_is_the_cut_of_the_whole(
        self,
        first: int,
        last: int,
        levels: int | None,
        model: PyraTok,
        whole: TokenPyramid,
        stored: Path,
        tmp_path: Path,
        collected: type[Collected],
    ) -> None:
        decode_file(model, stored, tmp_path / "x.mp4", levels=levels, start=first / 12, stop=last / 12)
        wanted = model.decode(load_tokens(stored), levels).plain()[:, :, first:last]
        torch.testing.assert_close(torch.cat(collected.frames, dim=2), wanted, atol=1e-5, rtol=0)

    def test_tiles_give_the_same_pixels(
        self,
        model: PyraTok,
        stored: Path,
        tmp_path: Path,
        collected: type[Collected],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(long, "choose_pieces", lambda *a, **k: TILES)
        decode_file(model, stored, tmp_path / "x.mp4", start=132 / 12, stop=140 / 12)
        wanted = model.decode(load_tokens(stored)).plain()[:, :, 132:140]
        torch.testing.assert_close(torch.cat(collected.frames, dim=2), wanted, atol=1.01 / 255, rtol=0)

    def test_only_the_segments_of_a_span_are_read(self, model: PyraTok, whole: TokenPyramid, tmp_path: Path) -> None:
        # Long enough that what a late span depends on begins behind the first segment.
        path, clip = tmp_path / "x.pyra", tmp_path / "clip.mp4"
        save_video(moving_video(200, 16, 16), clip)
        encode_file(model, clip, path)
        data = bytearray(path.read_bytes())
        data[open_tokens(path).segments[0].offset + 3] ^= 1
        path.write_bytes(data)
        assert restart_step(model, "decode", 49) > 16
        decode_file(model, path, tmp_path / "late.mp4", start=195 / 12)
        assert load_video(tmp_path / "late.mp4").shape[2] == 5
        with pytest.raises(PyraFileError, match="damaged"):
            decode_file(model, path, tmp_path / "all.mp4")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["clip.mp4", "late.mp4", "x.pyra"]

    @pytest.mark.parametrize(
        ("start", "stop", "frames"),
        [
            (None, None, (0, 150)),
            (1.0, None, (12, 150)),
            (None, 1.0, (0, 12)),
            (0.99, 1.01, (12, 13)),
            (5 / 12, 99.0, (5, 150)),
            (0.4167, 0.5, (5, 6)),  # rounded up from 5 / 12
        ],
    )
    def test_seconds_to_frames(
        self, start: float | None, stop: float | None, frames: tuple[int, int], stored: Path
    ) -> None:
        assert frame_span(open_tokens(stored), start, stop) == range(*frames)

    @pytest.mark.parametrize(
        ("start", "stop"), [(13.0, None), (2.0, 1.0), (1.0, 1.0), (-1.0, None), (None, -1.0), (float("nan"), None)]
    )
    def test_a_span_without_frames_is_refused(self, start: float | None, stop: float | None, stored: Path) -> None:
        with pytest.raises(ValueError, match=r"seconds|holds no frame"):
            frame_span(open_tokens(stored), start, stop)

    def test_an_unfinished_file_gives_what_is_there(self, model: PyraTok, stored: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.pyra"
        path.write_bytes(stored.read_bytes()[:-1])
        with pytest.warns(UserWarning, match="unfinished"):
            decode_file(model, path, tmp_path / "x.mp4")
        assert load_video(tmp_path / "x.mp4").shape[2] == FRAMES

    def test_a_slice_without_its_beginning_is_refused(
        self, model: PyraTok, whole: TokenPyramid, tmp_path: Path
    ) -> None:
        save_tokens(whole.time_slice(3, 5), tmp_path / "x.pyra")
        with pytest.raises(ValueError, match="latent step 3"):
            decode_file(model, tmp_path / "x.pyra", tmp_path / "x.mp4")


class TestReconstruct:
    def test_it_is_encoding_and_decoding(
        self, model: PyraTok, clip: Path, stored: Path, tmp_path: Path, collected: type[Collected]
    ) -> None:
        done = reconstruct_file(model, clip, tmp_path / "x.mp4", side_by_side=True)
        both = torch.cat(collected.frames, dim=2)
        assert done.geometry == load_tokens(stored).geometry
        torch.testing.assert_close(both[..., :48], load_video(clip).plain())
        torch.testing.assert_close(both[..., 48:], model.decode(load_tokens(stored)).plain(), atol=1e-4, rtol=0)
        assert len(done.psnr) == len(done.ssim) == FRAMES

    def test_a_short_clip_and_tiles_measure_the_same(
        self, model: PyraTok, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short = reconstruct_file(model, clip, tmp_path / "a.mp4", frames=11, levels=3)
        monkeypatch.setattr(long, "choose_pieces", lambda *a, **k: TILES)
        tiled = reconstruct_file(model, clip, tmp_path / "b.mp4", frames=11, levels=3)
        assert tiled.psnr == pytest.approx(short.psnr, abs=0.05)
        assert tiled.geometry == short.geometry


class TestStreams:
    def test_tiles_of_other_frames_are_refused(self, model: PyraTok) -> None:
        encoder = TiledEncoder(model, 32, 32, Layout())
        with pytest.raises(ValueError, match="32x32"):
            encoder.push(as_source(random_video(frames=1, height=32, width=48)))

    def test_a_stream_that_begins_anywhere_counts_from_there(self, model: PyraTok) -> None:
        tokens = model.encode(random_video(frames=29))
        for start in (0, 1, 4):
            part = beginning_at(tokens.time_slice(start, 8), start)
            assert part.geometry.first_step == 0
            assert part.geometry.latent_steps == 8 - start
            for ids, all_ids in zip(part.levels, tokens.levels, strict=True):
                assert torch.equal(ids, all_ids[:, -ids.shape[1] :])
            (frames,) = TiledDecoder(model, part.geometry, Layout()).push(part)
            assert frames.shape[2] == 29 - 4 * start
