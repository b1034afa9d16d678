from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyratok.codec.container import load_tokens, save_tokens
from pyratok.model.base import pad_video
from pyratok.model.pyratok import PyraTok
from pyratok.types import Geometry, LevelOutput, ModelId, TokenPyramid, Video
from tiny import CONFIG, LAPQ, StubText, random_video, tiny_pyratok

few = settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def model() -> PyraTok:
    return tiny_pyratok()


@torch.inference_mode()
def levels_of(model: PyraTok, video: Tensor) -> tuple[LevelOutput, ...]:
    """What the quantizer says of a clip of any size, with the values before the sign."""
    frames, height, width = video.shape[2:]
    geometry = Geometry(frames=frames, height=height, width=width, strides=model.strides)
    return model.lapq.quantize(model.vae.encode_taps(pad_video(video, geometry)))


def assert_same_words(ours: Sequence[LevelOutput], theirs: Sequence[LevelOutput]) -> None:
    """The same up to rounding: at most one bit in a million differs, and only where the value is nearly zero."""
    flips = bits = 0
    for a, b in zip(ours, theirs, strict=True):
        flipped = a.bits != b.bits
        assert bool((a.presign[flipped].abs() < 1e-4).all())
        assert bool((b.presign[flipped].abs() < 1e-4).all())
        flips, bits = flips + int(flipped.sum()), bits + flipped.numel()
    assert flips * 1_000_000 <= max(bits, 1_000_000)


class TestShapes:
    @few
    @given(st.integers(1, 11), st.integers(1, 40), st.integers(1, 40), st.integers(1, 2))
    def test_any_clip_comes_back_in_its_size(self, frames: int, height: int, width: int, batch: int) -> None:
        model = tiny_pyratok()
        video = random_video(batch, frames, height, width)
        tokens = model.encode(Video(video, fps=24.0))
        assert len(tokens.levels) == LAPQ.num_levels
        assert (tokens.geometry.frames, tokens.geometry.height, tokens.geometry.width) == (frames, height, width)
        for count in range(1, LAPQ.num_levels + 1):
            back = model.decode(tokens, levels=count)
            assert back.shape == video.shape
            assert back.dtype == torch.float32
            assert back.fps == 24.0
            assert float(back.abs().max()) <= 1

    @pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (1, 255, 3), (34, 1, 1)])
    def test_extremes(self, model: PyraTok, shape: tuple[int, int, int]) -> None:
        tokens = model.encode(random_video(1, *shape))
        assert tokens.geometry.fps is None
        assert model.decode(tokens).shape == (1, 3, *shape)

    def test_padding_repeats_the_border(self, model: PyraTok) -> None:
        video = random_video(1, 6, 20, 30)
        index = [torch.arange(n).clamp(max=size - 1) for n, size in ((9, 6), (32, 20), (32, 30))]
        padded = video[:, :, index[0]][:, :, :, index[1]][..., index[2]]
        for ours, theirs in zip(model.encode(video).levels, model.encode(padded).levels, strict=True):
            assert torch.equal(ours, theirs)


def test_results_are_ordinary_tensors(model: PyraTok) -> None:
    """They may be changed in place and take part in training."""
    tokens = model.encode(random_video())
    words = nn.Embedding(1 << tokens.num_bits, 2)
    words(tokens.levels[0]).sum().backward()
    assert words.weight.grad is not None
    tokens.levels[0].bitwise_xor_(1)
    video = model.decode(model.encode(random_video()))
    assert not video.requires_grad
    gain = torch.ones((), requires_grad=True)
    (video.plain().mul_(0.5) * gain).sum().backward()
    assert gain.grad is not None


class TestIdentity:
    def test_file_and_memory_decode_alike(self, model: PyraTok, tmp_path: Path) -> None:
        tokens = model.encode(Video(random_video(2, 6, 20, 30), fps=29.97))
        save_tokens(tokens, tmp_path / "x.pyra")
        assert load_tokens(tmp_path / "x.pyra") == tokens
        assert torch.equal(model.decode(load_tokens(tmp_path / "x.pyra")), model.decode(tokens))
        first = load_tokens(tmp_path / "x.pyra", levels=2)
        assert torch.equal(model.decode(first), model.decode(tokens, levels=2))

    def test_batch_of_three_equals_singles(self, model: PyraTok) -> None:
        video = random_video(3, 17, 64, 64)
        both = levels_of(model, video)
        for index in range(3):
            clip = tuple(
                LevelOutput(presign=o.presign[index : index + 1], bits=o.bits[index : index + 1]) for o in both
            )
            assert_same_words(clip, levels_of(model, video[index : index + 1]))
        tokens = model.encode(video)
        back = torch.cat([model.decode(tokens.select(index)) for index in range(3)])
        torch.testing.assert_close(back, model.decode(tokens).plain(), atol=1e-5, rtol=0)

    def test_layout_and_type_of_the_input_do_not_matter(self, model: PyraTok) -> None:
        video = random_video(1, 5, 32, 32).bfloat16().float()
        tokens = model.encode(video)
        strided = video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
        for same in (strided, video.double(), video.bfloat16(), Video(video)):
            assert model.encode(same) == tokens

    def test_prefix_decodes_without_the_rest(self, model: PyraTok) -> None:
        tokens = model.encode(random_video())
        decoded = [model.decode(tokens.prefix(n)) for n in range(1, LAPQ.num_levels + 1)]
        for count, video in enumerate(decoded, start=1):
            assert torch.equal(model.decode(tokens, levels=count), video)
        assert all(not torch.equal(a, b) for a, b in pairwise(decoded))
        with pytest.raises(ValueError, match="has 2 levels, asked for the first 3"):
            model.decode(tokens.prefix(2), levels=3)


@few
@given(st.integers(1, 16), st.integers(0, 3))
def test_no_token_knows_a_later_frame(frame: int, seed: int) -> None:
    model, video = tiny_pyratok(), random_video(1, 17, 32, 32, seed)
    changed = video.clone()
    changed[:, :, frame:] = random_video(1, 17 - frame, 32, 32, seed + 100)
    before, after = levels_of(model, video), levels_of(model, changed)
    for (stride, _, _), a, b in zip(model.strides, before, after, strict=True):
        step = -(-frame // stride)  # the first one that covers the frame
        assert torch.equal(a.presign[:, :, :step], b.presign[:, :, :step])
        assert not torch.equal(a.presign[:, :, step], b.presign[:, :, step])


class TestRefusal:
    def test_foreign_tokens_with_both_names(self, model: PyraTok) -> None:
        stranger = tiny_pyratok(seed=1, config=replace(CONFIG, name="stranger"))
        tokens = stranger.encode(random_video())
        with pytest.raises(ValueError, match="were made by") as error:
            model.decode(tokens)
        for identity in (stranger.model_id, model.model_id):
            assert str(identity) in str(error.value)

    def test_a_renamed_model_is_the_same_model(self, model: PyraTok) -> None:
        renamed = tiny_pyratok(config=replace(CONFIG, name="renamed"))
        tokens = renamed.encode(random_video())
        assert tokens.model.name == "renamed"
        assert torch.equal(model.decode(tokens), renamed.decode(tokens))

    def test_tokens_that_only_claim_to_be_of_this_model(self, model: PyraTok) -> None:
        geometry = Geometry(frames=1, height=8, width=8, strides=((1, 8, 8),))
        forged = TokenPyramid((torch.zeros(1, 1, 1, 1, dtype=torch.int32),), geometry, model.model_id)
        with pytest.raises(ValueError, match="other grids or words"):
            model.decode(forged)

    def test_tokens_cut_at_the_front(self, model: PyraTok) -> None:
        tokens = model.encode(random_video(1, 9))
        assert model.decode(tokens.time_slice(0, 2)).shape[2] == 5
        with pytest.raises(ValueError, match="begin at latent step 1"):
            model.decode(tokens.time_slice(1, 3))

    @pytest.mark.parametrize(
        ("video", "message"),
        [
            (torch.full((1, 3, 1, 8, 8), float("nan")), "NaN"),
            (torch.zeros(1, 3, 1, 8, 8).index_fill(4, torch.tensor(2), float("nan")), "NaN"),
            (torch.full((1, 3, 1, 8, 8), float("inf")), r"must lie in \[-1, 1\], got \[inf, inf\]"),
            (torch.full((1, 3, 1, 8, 8), 1.5), r"got \[1.5, 1.5\]; scale"),
            (torch.full((1, 3, 1, 8, 8), 200, dtype=torch.uint8), "torch.uint8; scale uint8 by"),
            (torch.zeros(3, 1, 8, 8), r"expected video \[B, 3, T, H, W\], got shape \(3, 1, 8, 8\)"),
            (torch.zeros(1, 1, 1, 8, 8), r"got shape \(1, 1, 1, 8, 8\)"),
            (torch.zeros(1, 3, 0, 8, 8), "is empty"),
            (torch.zeros(0, 3, 1, 8, 8), "is empty"),
            (np.zeros((1, 3, 1, 8, 8)), "got ndarray"),
        ],
    )
    def test_what_is_no_video(self, model: PyraTok, video: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model.encode(video)

    def test_rounding_past_the_range_is_no_error(self, model: PyraTok) -> None:
        model.encode(torch.full((1, 3, 1, 8, 8), 1.005))


class TestCaptions:
    def guided(self, gate: float) -> PyraTok:
        model = tiny_pyratok()
        model.text_encoder = StubText()
        for level in model.lapq.levels:
            nn.init.constant_(level.text.gate, gate)  # type: ignore[union-attr,arg-type]
        return model

    def test_nothing_changes_while_the_gate_is_closed(self) -> None:
        model, video = self.guided(0.0), random_video(2)
        assert model.encode(video, caption="a dog") == model.encode(video, caption=["rain", ""]) == model.encode(video)

    def test_an_open_gate_lets_the_caption_guide(self) -> None:
        model, video = self.guided(3.0), random_video(2)
        dog, rain = model.encode(video, caption="a dog"), model.encode(video, caption="rain on a roof")
        assert len({str(tokens.to_sequence().tolist()) for tokens in (dog, rain, model.encode(video))}) == 3
        each = model.encode(video, caption=["a dog", "rain on a roof"])
        assert each.select(0) == dog.select(0)
        assert each.select(1) == rain.select(1)

    def test_decoding_needs_no_text(self) -> None:
        model = self.guided(3.0)
        tokens = model.encode(random_video(), caption="a dog")
        model.text_encoder = None
        assert model.decode(tokens).shape == (1, 3, 5, 32, 32)

    def test_one_caption_per_clip(self) -> None:
        with pytest.raises(ValueError, match="3 captions for 2 clips"):
            self.guided(0.0).encode(random_video(2), caption=["a", "b", "c"])


class TestModelId:
    def test_every_weight_decides_who_the_model_is(self, model: PyraTok) -> None:
        seen = {model.fingerprint()}
        for name in ("vae.encoder.conv_in.bias", "lapq.levels.0.text.gate", "vae.decoder.conv_out.weight"):
            other = tiny_pyratok()
            with torch.no_grad():
                other.get_parameter(name).view(-1)[0] += 1e-3
            seen.add(other.fingerprint())
        assert len(seen) == 4

    def test_follows_the_weights_while_training(self) -> None:
        model = tiny_pyratok().train()
        before: ModelId = model.encode(random_video()).model
        nn.init.ones_(model.get_parameter("lapq.out.bias"))
        assert model.encode(random_video()).model != before
        assert model.eval().model_id != before

    def test_follows_weights_that_are_loaded(self) -> None:
        model, other = tiny_pyratok(), tiny_pyratok(seed=1)
        assert model.model_id != other.model_id
        model.load_state_dict(other.state_dict())
        assert model.model_id == other.model_id
        assert model.bfloat16().model_id == other.model_id, "a later change of type makes no other model"

    def test_describes_itself(self, model: PyraTok) -> None:
        facts = model.describe()
        assert facts["fingerprint"] == model.model_id.fingerprint
        assert facts["parameters"] == sum(p.numel() for p in model.parameters())
        assert facts["bits_per_pixel_asymptotic"] == 16 * (1 / 256 + 1 / 128 + 2 / 256)
