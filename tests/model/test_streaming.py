"""Streams give the tokens and the pixels of the whole, go on from saved states, and refuse what is no continuation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from pyratok.config import LaPQConfig, PyraTokConfig, TextHeadConfig
from pyratok.model.base import VideoTokenizer
from pyratok.model.baseline import BaselineConfig, BaselineTokenizer
from pyratok.model.pyratok import PyraTok
from pyratok.model.released import ResidualLatentTokenizer
from pyratok.model.state import StateError, StreamState, load_state, save_state
from pyratok.model.streaming import EncodeStream
from pyratok.nn.carry import Carry
from pyratok.quantization.baselines import QuantizerConfig
from pyratok.types import TokenPyramid, Video
from tiny import CONFIG, LAPQ, VAE, VAES, StubText, random_video, tiny_pyratok, tiny_vae

STEPS, FRAMES, HEIGHT, WIDTH = 8, 26, 20, 30  # the last step is one frame of four
UNREADABLE = r"x\.state: (cannot be read|the file is damaged|not a stream state)"
few = settings(deadline=None, max_examples=6)


def released() -> VideoTokenizer:
    return ResidualLatentTokenizer("released", tiny_vae("plain"), 3).eval()


def baseline() -> VideoTokenizer:
    torch.manual_seed(0)
    quantizer = QuantizerConfig(kind="lfq", dim=4, bits=5)
    head = TextHeadConfig(width=16, num_blocks=1, kernel=3)
    config = BaselineConfig(vae=VAE, quantizer=quantizer, tokens_per_cell=4, text_head=head, text_dim=LAPQ.text_dim)
    return BaselineTokenizer(config).eval()


def wan21() -> VideoTokenizer:
    """Middle attention, a stage that keeps time, levels on the grids of a latent stride of two frames."""
    strides = ((1, 16, 16), (1, 8, 8), (2, 4, 4), (2, 4, 4))
    lapq = LaPQConfig(taps=(0, 1, 2, 3), strides=strides, width=16, num_heads=2, text_dim=12)
    return tiny_pyratok(config=PyraTokConfig(name="wan21", vae=VAES["plain"], lapq=lapq))


TOKENIZERS: dict[str, Callable[[], VideoTokenizer]] = {
    "nano": tiny_pyratok,
    "wan21": wan21,
    "wan22": lambda: tiny_pyratok(config=replace(CONFIG, name="wan22", vae=VAES["residual"])),
    "released": released,
    "baseline": baseline,
}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


@cache
def tokenizer(name: str = "nano") -> VideoTokenizer:
    return TOKENIZERS[name]()


@cache
def whole(name: str = "nano") -> tuple[Video, TokenPyramid]:
    video = Video(random_video(2, FRAMES, HEIGHT, WIDTH), fps=24.0)
    return video, tokenizer(name).encode(video)


def streamed(stream: EncodeStream, pieces: list[Tensor]) -> list[TokenPyramid]:
    with stream:
        parts = [*(stream.push(piece) for piece in pieces), stream.flush()]
    return [part for part in parts if part is not None]


class TestEncoding:
    @every_tokenizer
    def test_frame_by_frame(self, name: str) -> None:
        video, tokens = whole(name)
        parts = streamed(tokenizer(name).stream(fps=24.0), list(video.plain().split(1, dim=2)))
        steps = tokens.geometry.latent_steps
        assert parts == [tokens.time_slice(step, step + 1) for step in range(steps)]
        assert TokenPyramid.concat(parts) == tokens

    @pytest.mark.parametrize("steps", [1, 2, 3, 7])
    def test_chunks_of_steps(self, steps: int) -> None:
        video, tokens = whole()
        first, rest = video.plain().tensor_split([4 * steps - 3], dim=2)
        parts = streamed(tokenizer().stream(fps=24.0), [first, *rest.split(4 * steps, dim=2)])
        assert TokenPyramid.concat(parts) == tokens

    @few
    @given(st.lists(st.integers(1, 14), min_size=1, max_size=5))
    def test_pieces_of_any_length(self, lengths: list[int]) -> None:
        video, total = random_video(1, sum(lengths), 16, 32), sum(lengths)
        parts = streamed(tokenizer().stream(), list(video.split(lengths, dim=2)))
        tokens = tokenizer().encode(video)
        assert TokenPyramid.concat(parts) == tokens
        assert sum(part.geometry.frames for part in parts) == total

    def test_tokens_come_as_soon_as_their_frames_are_there(self) -> None:
        stream, frame = tokenizer().stream(), random_video(frames=1)
        came = [stream.push(frame) is not None for _ in range(9)]
        assert came == [index % 4 == 0 for index in range(9)]

    def test_one_clip_needs_no_batch_and_one_frame_no_time(self) -> None:
        clip = random_video(1, 5, 16, 16)
        tokens = tokenizer().encode(clip)
        assert streamed(tokenizer().stream(), [clip[0]]) == [tokens]
        frames = [clip[0, :, index] for index in range(5)]
        assert TokenPyramid.concat(streamed(tokenizer().stream(), frames)) == tokens

    def test_a_reused_buffer_of_frames(self) -> None:
        """A camera fills the same memory again; frames that wait are not those it holds by then."""
        video, buffer, stream = random_video(1, 5, 16, 16), torch.empty(1, 3, 1, 16, 16), tokenizer().stream()
        parts = [stream.push(buffer.copy_(frame)) for frame in video.split(1, dim=2)]
        assert TokenPyramid.concat([part for part in parts if part]) == tokenizer().encode(video)

    def test_captions_guide_every_part(self) -> None:
        model = tiny_pyratok()
        model.text_encoder = StubText()
        for level in model.lapq.levels:
            nn.init.constant_(level.text.gate, 3.0)  # type: ignore[union-attr,arg-type]
        video, captions = random_video(2, 9, 16, 16), ["a dog", "rain on a roof"]
        parts = streamed(model.stream(caption=captions), list(video.split(3, dim=2)))
        guided = model.encode(video, caption=captions)
        assert TokenPyramid.concat(parts) == guided
        assert guided != model.encode(video)
        with pytest.raises(ValueError, match="2 captions for 1 clips"):
            model.stream(caption=captions).push(video[:1])

    def test_an_image_is_a_stream(self) -> None:
        image = random_video(1, 1, 16, 16)
        assert streamed(tokenizer().stream(), [image]) == [tokenizer().encode(image)]

    def test_results_need_no_gradient(self) -> None:
        stream = tokenizer().stream()
        stream.push(random_video(1, 1, 16, 16).requires_grad_())
        assert stream.state is not None
        assert not any(tail.requires_grad for tail in stream.state.tails)


class TestEnd:
    def test_flush_twice(self) -> None:
        stream = tokenizer().stream()
        stream.push(random_video(frames=3))
        part = stream.flush()
        assert part is not None
        assert part.geometry.frames == 2
        assert stream.flush() is None
        with pytest.raises(ValueError, match="has been flushed"):
            stream.push(random_video())
        stream.close()
        assert stream.flush() is None

    def test_flush_of_nothing(self) -> None:
        assert tokenizer().stream().flush() is None
        stream = tokenizer().stream()
        stream.push(random_video(frames=5))
        assert stream.flush() is None

    def test_push_and_flush_after_close(self) -> None:
        with tokenizer().stream() as stream:
            stream.push(random_video(frames=2))
        with pytest.raises(ValueError, match=r"is closed; open a new one with model.stream\(\)"):
            stream.push(random_video())
        with pytest.raises(ValueError, match="is closed"):
            stream.flush()
        with tokenizer().decode_stream() as mirror:
            pass
        with pytest.raises(ValueError, match=r"is closed; open a new one with model.decode_stream\(\)"):
            mirror.push(whole()[1])

    def test_an_error_closes_without_flushing(self) -> None:
        stream = tokenizer().stream()
        stream.push(random_video(frames=2))
        with pytest.raises(KeyboardInterrupt), stream:
            raise KeyboardInterrupt
        assert stream.steps == 1
        with pytest.raises(ValueError, match="is closed"):
            stream.flush()


class TestBadFrames:
    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            (random_video(2, 1, 16, 32), "is of 1 x 16x32 pixels, got 2 x 16x32; flush it and open a new one"),
            (random_video(1, 1, 32, 32), "is of 1 x 16x32 pixels, got 1 x 32x32"),
            (random_video(1, 1, 16, 31), "got 1 x 16x31"),  # the same size once padded
            (Video(random_video(1, 1, 16, 32), fps=25.0), "has the frame rate 24.0, got 25.0; flush it"),
            (torch.zeros(1, 3, 1, 16, 32, dtype=torch.uint8), "scale uint8 by"),
            (torch.full((1, 3, 1, 16, 32), 1.5), "must lie in"),
            (torch.full((1, 3, 1, 16, 32), float("nan")), "NaN"),
            (torch.zeros(1, 3, 0, 16, 32), "is empty"),
            (torch.zeros(16, 32), r"expected video \[B, 3, T, H, W\], got shape \(16, 32\)"),
            (torch.zeros(4, 3, 16, 32), r"got shape \(1, 4, 3, 16, 32\)"),
            ([[0.0]], "got list"),
        ],
    )
    def test_the_stream_goes_on_after_a_refused_push(self, frames: Tensor, message: str) -> None:
        video = Video(random_video(1, 6, 16, 32), fps=24.0)
        stream = tokenizer().stream(fps=24.0)
        parts = [stream.push(video[:, :, :3])]
        with pytest.raises(ValueError, match=message):
            stream.push(frames)
        parts += [stream.push(video[:, :, 3:]), stream.flush()]
        assert TokenPyramid.concat([part for part in parts if part]) == tokenizer().encode(video)

    def test_the_first_frames_settle_the_rate(self) -> None:
        stream = tokenizer().stream()
        part = stream.push(Video(random_video(frames=1), fps=30.0))
        assert part is not None
        assert part.geometry.fps == 30.0
        stream.push(random_video(frames=1))
        with pytest.raises(ValueError, match=r"has the frame rate 30.0, got 24.0"):
            stream.push(Video(random_video(frames=1), fps=24.0))
        unknown = tokenizer().stream()
        unknown.push(random_video(frames=1))
        with pytest.raises(ValueError, match=r"has the frame rate None, got 24.0"):
            unknown.push(Video(random_video(frames=1), fps=24.0))

    @pytest.mark.parametrize("fps", [0, -1.0, float("nan")])
    def test_rates_that_are_none(self, fps: float) -> None:
        with pytest.raises(ValueError, match="fps must be a positive number"):
            tokenizer().stream(fps=fps)


def cuts(tokens: TokenPyramid, lengths: list[int]) -> Iterator[TokenPyramid]:
    start = 0
    for length in lengths:
        yield tokens.time_slice(start, start + length)
        start += length


class TestDecoding:
    @every_tokenizer
    @pytest.mark.parametrize("lengths", [[1] * STEPS, [3, 1, 4], [STEPS]], ids=str)
    def test_parts_give_the_pixels_of_the_whole(self, name: str, lengths: list[int]) -> None:
        model, (_, tokens) = tokenizer(name), whole(name)
        rest = tokens.geometry.latent_steps - STEPS  # where a latent step is two frames
        lengths = lengths + [rest] * (rest > 0)
        with model.decode_stream() as stream:
            videos = [stream.push(part) for part in cuts(tokens, lengths)]
        expected = model.decode(tokens)
        assert all(video.fps == 24.0 for video in videos)
        torch.testing.assert_close(torch.cat(videos, dim=2), expected.plain(), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("levels", [1, 3])
    def test_the_first_levels_alone(self, levels: int) -> None:
        model, (_, tokens) = tokenizer(), whole()
        stream = model.decode_stream(levels)
        back = torch.cat([stream.push(part) for part in cuts(tokens, [2, 6])], dim=2)
        torch.testing.assert_close(back, model.decode(tokens, levels).plain(), atol=1e-5, rtol=1e-5)

    def test_levels_that_are_not_there(self) -> None:
        for levels in (0, 5):
            with pytest.raises(ValueError, match=f"levels must be 1 to 4, got {levels}"):
                tokenizer().decode_stream(levels)
        with pytest.raises(ValueError, match="has 2 levels, asked for the first 3"):
            tokenizer().decode_stream(3).push(whole()[1].prefix(2))

    def test_parts_may_lose_levels(self) -> None:
        model, (_, tokens) = tokenizer(), whole()
        stream = model.decode_stream()
        first = stream.push(tokens.time_slice(0, 1))
        assert stream.push(tokens.time_slice(1, 3).prefix(1)).shape[2] == 8
        assert first.shape[2:] == (1, HEIGHT, WIDTH)

    def test_parts_that_do_not_continue(self) -> None:
        tokens = whole()[1]
        part = tokens.time_slice(2, 3)
        stream = tokenizer().decode_stream()
        with pytest.raises(ValueError, match=r"begin at latent step 1, the stream is at step 0; .* in order"):
            stream.push(tokens.time_slice(1, 2))
        stream.push(tokens.time_slice(0, 2))
        for wrong, message in (
            (tokens.time_slice(0, 1), "begin at latent step 0, the stream is at step 2"),
            (tokens.time_slice(3, 4), "begin at latent step 3, the stream is at step 2"),
            (part.select(0), r"has the size \(2, 20, 30\), got a part of \(1, 20, 30\)"),
            (replace(part, geometry=replace(part.geometry, width=31)), r"got a part of \(2, 20, 31\)"),
            (replace(part, geometry=replace(part.geometry, fps=25.0)), "has the frame rate 24.0, got a part of 25.0"),
            (tokenizer("wan22").encode(random_video()), "were made by"),
        ):
            with pytest.raises(ValueError, match=message):
                stream.push(wrong)
        stream.push(part)

    def test_nothing_follows_a_part_of_a_step(self) -> None:
        model = tokenizer()
        stream, early = model.decode_stream(), model.encode(random_video(1, 3, 16, 16))
        assert stream.push(early).shape[2] == 3
        later = model.encode(random_video(1, 9, 16, 16)).time_slice(2, 3)
        with pytest.raises(ValueError, match="ended within a latent step, so it was the last"):
            stream.push(later)


class TestState:
    @every_tokenizer
    def test_both_ways_go_on_from_a_file(self, name: str, tmp_path: Path) -> None:
        model, (video, tokens) = tokenizer(name), whole(name)
        stream, mirror = model.stream(fps=24.0), model.decode_stream()
        first = stream.push(video[:, :, :9])
        assert first is not None
        assert stream.state is not None
        pixels = [mirror.push(first)]
        assert mirror.state is not None
        save_state(stream.state, tmp_path / "encode.state")
        save_state(mirror.state, tmp_path / "decode.state")
        later = model.stream(fps=24.0, state=load_state(tmp_path / "encode.state"))
        parts = [first, *streamed(later, [video[:, :, 9:]])]
        assert TokenPyramid.concat(parts) == tokens
        mirror = model.decode_stream(state=load_state(tmp_path / "decode.state"))
        pixels += [mirror.push(part) for part in parts[1:]]
        torch.testing.assert_close(torch.cat(pixels, dim=2), model.decode(tokens).plain(), atol=1e-5, rtol=1e-5)

    def test_two_continuations_are_the_same(self) -> None:
        model, video = tokenizer(), random_video(1, 9, 16, 16)
        _, state = model.encode_chunk(video[:, :, :1])
        before = [tail.clone() for tail in state.tails]
        once, after = model.encode_chunk(video[:, :, 1:], state)
        again, _ = model.encode_chunk(video[:, :, 1:], state)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, state.tails, strict=True))
        assert (state.steps, after.steps) == (1, 3)

    def test_it_does_not_grow(self) -> None:
        stream, sizes = tokenizer().stream(), set()
        for frame in random_video(1, 13, 16, 16).split(1, dim=2):
            stream.push(frame)
            assert stream.state is not None
            sizes.add(sum(tail.untyped_storage().nbytes() for tail in stream.state.tails))
        assert len(sizes) == 1

    def test_a_state_of_another_stream(self) -> None:
        model, video = tokenizer(), random_video(1, 1, 16, 16)
        signs, state = model.encode_chunk(video)
        for call, message in (
            (lambda: model.decode_chunk(signs, state), "state of a stream that encodes; to decode, begin anew"),
            (lambda: tokenizer("wan22").encode_chunk(video, state), r"belongs to tiny \(.*this model is wan22"),
            (lambda: model.encode_chunk(random_video(1, 4, 32, 16), state), "of 1 x 16x16 pixels, got 1 x 32x16"),
            (lambda: model.encode_chunk(random_video(2, 4, 16, 16), state), "got 2 x 16x16"),
            (lambda: model.stream(state=state).push(random_video(1, 4, 32, 16)), "got 1 x 32x16"),
        ):
            with pytest.raises(StateError, match=message):
                call()

    def test_chunks_that_are_none(self) -> None:
        model = tokenizer()
        signs, state = model.encode_chunk(random_video(1, 5, 16, 16))
        with pytest.raises(ValueError, match=r"expected video \[B, 3, T, H, W\]"):
            model.encode_chunk(torch.zeros(3, 1, 16, 16))
        with pytest.raises(ValueError, match="a later chunk of 3x16x16 does not fit"):
            model.encode_chunk(random_video(1, 3, 16, 16), state)
        with pytest.raises(ValueError, match=r"a chunk has 1 \+ 4 k steps of the first level here, got 4"):
            model.decode_chunk([level[:, :, 1:] for level in signs])

    def test_a_renamed_model_goes_on(self, tmp_path: Path) -> None:
        renamed = tiny_pyratok(config=replace(CONFIG, name="other"))
        _, state = tokenizer().encode_chunk(random_video(1, 1, 16, 16))
        renamed.encode_chunk(random_video(1, 4, 16, 16), state)


class TestStateFiles:
    def saved(self, path: Path, dtype: torch.dtype = torch.float32) -> StreamState:
        model = tiny_pyratok().to(dtype)
        _, state = model.encode_chunk(random_video(1, 1, 16, 16))
        save_state(state, path)
        return state

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_comes_back_whole(self, tmp_path: Path, dtype: torch.dtype) -> None:
        state = self.saved(tmp_path / "x.state", dtype)
        back = load_state(tmp_path / "x.state")
        assert replace(back, tails=()).__dict__ == replace(state, tails=()).__dict__
        assert len(back.tails) == len(state.tails) > 0
        for ours, theirs in zip(back.tails, state.tails, strict=True):
            assert ours.dtype == theirs.dtype == dtype
            assert torch.equal(ours, theirs)
            assert ours.is_contiguous(memory_format=torch.channels_last_3d)
        assert [path.name for path in tmp_path.iterdir()] == ["x.state"]

    def test_damage_is_one_clear_error(self, tmp_path: Path) -> None:
        path = tmp_path / "x.state"
        self.saved(path)
        content = path.read_bytes()
        # A bit in the header, in the description of the state, in the first and in the last value; a cut anywhere.
        description = content.index(b"fingerprint")
        for position in (0, 9, description + 20, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            with pytest.raises(StateError, match=UNREADABLE):
                load_state(path)
        for length in (0, 7, 100, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(StateError, match=UNREADABLE):
                load_state(path)
        path.unlink()
        with pytest.raises(StateError, match=UNREADABLE):
            load_state(path)

    @pytest.mark.parametrize(
        "metadata",
        [None, {}, {"pyratok": "{"}, {"pyratok": "[]"}, {"pyratok": json.dumps({"format": "x", "version": 1})}],
        ids=str,
    )
    def test_other_files(self, tmp_path: Path, metadata: dict[str, str] | None) -> None:
        save_file({"0": torch.zeros(1)}, tmp_path / "x.state", metadata)
        with pytest.raises(StateError, match=UNREADABLE):
            load_state(tmp_path / "x.state")


@pytest.mark.slow
def test_the_embedded_default_streams() -> None:
    model = PyraTok.from_pretrained()
    video = random_video(1, 11, 48, 40) * 0.5
    parts = streamed(model.stream(), list(video.split(2, dim=2)))
    tokens = model.encode(video)
    assert TokenPyramid.concat(parts) == tokens
    stream = model.decode_stream()
    back = torch.cat([stream.push(part) for part in parts], dim=2)
    torch.testing.assert_close(back, model.decode(tokens).plain(), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_passes_with_and_without_a_carry_are_one_graph() -> None:
    model, video = tiny_pyratok(), random_video(1, 9, 16, 16)

    def chunk(frames: Tensor, tails: tuple[Tensor, ...] | None) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        carry = Carry(tails)
        return list(model.signs(frames, None, carry)), carry.tails()

    with torch.no_grad():
        forward = torch.compile(model, backend="eager", fullgraph=True)
        # Few frames take another convolution where nothing is compiled.
        torch.testing.assert_close(forward(video).reconstruction, model(video).reconstruction, atol=1e-5, rtol=1e-5)
        compiled = torch.compile(chunk, backend="eager", fullgraph=True)
        first, tails = compiled(video[:, :, :5], None)
        second, _ = compiled(video[:, :, 5:], tails)
        for *parts, together in zip(first, second, model.signs(video, None), strict=True):
            assert torch.equal(torch.cat(parts, dim=2), together)
