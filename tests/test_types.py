from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyratok.types import Geometry, LossTerms, ModelId, TokenPyramid, Video

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODEL = ModelId(name="nano", fingerprint="0123abcd")


@st.composite
def geometries(draw: st.DrawFn, max_frames: int = 20) -> Geometry:
    latent_stride = draw(st.sampled_from([1, 2, 4, 8]))
    divisors = [step for step in (1, 2, 4, 8) if latent_stride % step == 0]
    spatial = st.sampled_from([1, 2, 3, 4, 8])
    strides = draw(st.lists(st.tuples(st.sampled_from(divisors), spatial, spatial), max_size=3))
    strides.insert(draw(st.integers(0, len(strides))), (latent_stride, draw(spatial), draw(spatial)))
    return Geometry(
        frames=draw(st.integers(1, max_frames)),
        height=draw(st.integers(1, 20)),
        width=draw(st.integers(1, 20)),
        strides=tuple(strides),
        fps=draw(st.none() | st.floats(1, 240)),
        first_step=draw(st.sampled_from([0, 0, 1, 5])),
    )


def fill(geometry: Geometry, num_levels: int, batch: int = 1, num_bits: int = 16, seed: int = 0) -> TokenPyramid:
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(
        torch.randint(0, 1 << num_bits, (batch, *geometry.grid(i)), generator=generator).to(torch.int32)
        for i in range(num_levels)
    )
    return TokenPyramid(levels, geometry, MODEL, num_bits)


@st.composite
def pyramids(draw: st.DrawFn) -> TokenPyramid:
    geometry = draw(geometries())
    num_levels = draw(st.integers(1, len(geometry.strides)))
    return fill(geometry, num_levels, draw(st.integers(1, 3)), draw(st.integers(1, 30)), draw(st.integers(0, 99)))


SMALL = Geometry(frames=5, height=8, width=8, strides=((1, 8, 8), (4, 4, 4)), fps=25.0)


class TestGeometry:
    @relaxed
    @given(geometries())
    def test_padding_is_the_least_that_every_grid_fits(self, geometry: Geometry) -> None:
        frames, height, width = geometry.padded
        lcm_h = math.lcm(*(h for _, h, _ in geometry.strides))
        lcm_w = math.lcm(*(w for _, _, w in geometry.strides))
        first = 0 if geometry.first_step else 1
        assert 0 <= frames - geometry.frames < geometry.latent_stride
        assert (frames - first) % geometry.latent_stride == 0
        assert 0 <= height - geometry.height < lcm_h
        assert 0 <= width - geometry.width < lcm_w
        for level, (t, h, w) in enumerate(geometry.strides):
            assert geometry.grid(level) == (first + (frames - first) // t, height // h, width // w)

    @relaxed
    @given(geometries())
    def test_padding_again_changes_nothing(self, geometry: Geometry) -> None:
        frames, height, width = geometry.padded
        whole = Geometry(
            frames=frames, height=height, width=width, strides=geometry.strides, first_step=geometry.first_step
        )
        assert whole.padded == geometry.padded
        assert whole.latent_steps == geometry.latent_steps

    @relaxed
    @given(geometries())
    def test_deepest_time_grid_counts_latent_steps(self, geometry: Geometry) -> None:
        for level, (t, _, _) in enumerate(geometry.strides):
            if t == geometry.latent_stride:
                assert geometry.grid(level)[0] == geometry.latent_steps

    @relaxed
    @given(geometries())
    def test_level_steps_tile_every_level(self, geometry: Geometry) -> None:
        for level in range(len(geometry.strides)):
            ranges = [geometry.level_steps(level, j, j + 1) for j in range(geometry.latent_steps)]
            assert [step for start, stop in ranges for step in range(start, stop)] == list(
                range(geometry.grid(level)[0])
            )

    def test_an_image_is_one_step_of_every_level(self) -> None:
        image = Geometry(frames=1, height=9, width=7, strides=SMALL.strides)
        assert image.padded == (1, 16, 8)
        assert [image.grid(level) for level in range(2)] == [(1, 2, 1), (1, 4, 2)]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"frames": 0}, "at least one frame"),
            ({"height": 0}, "at least one frame"),
            ({"width": -3}, "at least one frame"),
            ({"strides": ()}, "at least one level"),
            ({"strides": ((1, 8),)}, "three positive integers"),
            ({"strides": ((1, 0, 8),)}, "three positive integers"),
            ({"strides": ((3, 8, 8), (4, 8, 8))}, "divide the largest one 4"),
            ({"fps": 0.0}, "fps must be"),
            ({"fps": math.inf}, "fps must be"),
            ({"fps": math.nan}, "fps must be"),
            ({"first_step": -1}, "first_step must be"),
        ],
    )
    def test_nonsense_is_refused(self, change: dict[str, Any], said: str) -> None:
        fields: dict[str, Any] = {"frames": 5, "height": 8, "width": 8, "strides": SMALL.strides}
        with pytest.raises(ValueError, match=said):
            Geometry(**fields | change)


class TestSequence:
    @relaxed
    @given(pyramids())
    def test_round_trip(self, tokens: TokenPyramid) -> None:
        sequence = tokens.to_sequence()
        held = len(tokens.levels)
        assert sequence.dtype == torch.int32
        assert sequence.shape == (tokens.batch_size, 1 + tokens.num_tokens + held - 1)
        assert int((sequence == tokens.soi_id).sum()) == tokens.batch_size
        assert int((sequence == tokens.separator_id).sum()) == tokens.batch_size * (held - 1)
        for dtype in (torch.int32, torch.int64):
            assert TokenPyramid.from_sequence(sequence.to(dtype), tokens.geometry, MODEL, tokens.num_bits) == tokens

    @relaxed
    @given(pyramids(), st.data())
    def test_cut_at_a_separator_is_the_prefix(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        prefix = tokens.prefix(data.draw(st.integers(1, len(tokens.levels))))
        length = prefix.to_sequence().shape[1]
        cut = tokens.to_sequence()[:, :length]
        assert torch.equal(cut, prefix.to_sequence())
        assert TokenPyramid.from_sequence(cut, tokens.geometry, MODEL, tokens.num_bits) == prefix

    @relaxed
    @given(pyramids(), st.data())
    def test_any_other_length_is_refused(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        sequence = tokens.to_sequence()
        whole = {tokens.prefix(n + 1).to_sequence().shape[1] for n in range(len(tokens.levels))}
        length = data.draw(st.integers(0, sequence.shape[1] - 1))
        assume(length not in whole)
        with pytest.raises(ValueError, match=r"."):
            TokenPyramid.from_sequence(sequence[:, :length], tokens.geometry, MODEL, tokens.num_bits)

    @pytest.mark.parametrize(
        ("position", "value", "said"),
        [
            (0, 3, r"starts with <SOI> = 65536"),
            (0, 65537, r"starts with <SOI> = 65536"),
            (6, 7, r"expected <Q-SEP> = 65537 at position 6"),
            (6, 65536, r"expected <Q-SEP> = 65537 at position 6"),
            (3, 65536, r"level 1 holds ids outside"),
            (7, -1, r"level 2 holds ids outside"),
            pytest.param(3, 1 << 32, r"outside", id="beyond int32"),
            pytest.param(3, (1 << 32) + 5, r"outside", id="wraps to a valid id"),
        ],
    )
    def test_wrong_values_are_refused(self, position: int, value: int, said: str) -> None:
        sequence = fill(SMALL, 2, batch=2).to_sequence().to(torch.int64)
        sequence[1, position] = value
        with pytest.raises(ValueError, match=said):
            TokenPyramid.from_sequence(sequence, SMALL, MODEL)

    def test_wrong_shapes_are_refused(self) -> None:
        sequence = fill(SMALL, 2).to_sequence()
        with pytest.raises(ValueError, match=r"2 values follow the last level"):
            TokenPyramid.from_sequence(torch.nn.functional.pad(sequence, (0, 2)), SMALL, MODEL)
        for bad in (sequence[0], sequence[:, :0], sequence[None]):
            with pytest.raises(ValueError, match=r"is \[B, n\]"):
                TokenPyramid.from_sequence(bad, SMALL, MODEL)

    def test_fractions_are_not_ids(self) -> None:
        sequence = fill(SMALL, 2).to_sequence().float()
        sequence[0, 1] = 0.5
        with pytest.raises(ValueError, match=r"."):
            TokenPyramid.from_sequence(sequence, SMALL, MODEL)

    def test_tokens_run_in_t_h_w_order(self) -> None:
        ids = torch.arange(8, dtype=torch.int32).reshape(1, 2, 2, 2)
        tokens = TokenPyramid((ids,), Geometry(frames=2, height=2, width=2, strides=((1, 1, 1),)), MODEL)
        assert tokens.to_sequence().tolist() == [[65536, 0, 1, 2, 3, 4, 5, 6, 7]]


class TestPrefix:
    @relaxed
    @given(pyramids(), st.data())
    def test_prefix_of_a_prefix(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        outer = data.draw(st.integers(1, len(tokens.levels)))
        inner = data.draw(st.integers(1, outer))
        assert tokens.prefix(outer).prefix(inner) == tokens.prefix(inner)
        assert tokens.prefix(len(tokens.levels)) == tokens
        assert tokens.prefix(inner).geometry == tokens.geometry

    @pytest.mark.parametrize("count", [0, -1, 3])
    def test_levels_that_are_not_there(self, count: int) -> None:
        with pytest.raises(ValueError, match=f"has 2 levels, asked for the first {count}"):
            fill(SMALL, 2).prefix(count)


class TestTimeSlice:
    @settings(relaxed, max_examples=200)
    @given(pyramids(), st.data())
    def test_slices_compose(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        steps = tokens.geometry.latent_steps
        a = data.draw(st.integers(0, steps - 1))
        b = data.draw(st.integers(a + 1, steps))
        c = data.draw(st.integers(0, b - a - 1))
        d = data.draw(st.integers(c + 1, b - a))
        outer = tokens.time_slice(a, b)
        assert outer.geometry.latent_steps == b - a
        assert outer.time_slice(c, d) == tokens.time_slice(a + c, a + d)
        assert tokens.time_slice(0, steps) == tokens

    @relaxed
    @given(pyramids(), st.data())
    def test_slices_cover_every_id_and_frame_once(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        steps = tokens.geometry.latent_steps
        cuts = sorted(data.draw(st.sets(st.integers(1, steps - 1))) if steps > 1 else set())
        slices = [tokens.time_slice(a, b) for a, b in zip([0, *cuts], [*cuts, steps], strict=True)]
        for level, ids in enumerate(tokens.levels):
            assert torch.equal(torch.cat([part.levels[level] for part in slices], dim=1), ids)
        assert sum(part.geometry.frames for part in slices) == tokens.geometry.frames
        assert sum(part.geometry.padded[0] for part in slices) == tokens.geometry.padded[0]

    @relaxed
    @given(pyramids(), st.data())
    def test_slicing_commutes_with_prefix_and_select(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, tokens.geometry.latent_steps - 1))
        stop = data.draw(st.integers(start + 1, tokens.geometry.latent_steps))
        assert tokens.time_slice(start, stop).prefix(1) == tokens.prefix(1).time_slice(start, stop)
        assert tokens.time_slice(start, stop).select(-1) == tokens.select(-1).time_slice(start, stop)

    def test_first_step_is_the_first_frame(self) -> None:
        tokens = fill(Geometry(frames=9, height=8, width=8, strides=SMALL.strides), 2)
        first, rest = tokens.time_slice(0, 1), tokens.time_slice(1, 3)
        assert (first.geometry.frames, first.geometry.first_step) == (1, 0)
        assert (rest.geometry.frames, rest.geometry.first_step) == (8, 1)
        assert rest.levels[0].shape[1] == 8
        assert rest.levels[1].shape[1] == 2

    @pytest.mark.parametrize(("start", "stop"), [(0, 0), (1, 1), (-1, 1), (0, 3), (2, 3)])
    def test_empty_and_outer_ranges_are_refused(self, start: int, stop: int) -> None:
        with pytest.raises(ValueError, match=f"latent steps {start}:{stop} are not within 0:2"):
            fill(SMALL, 2).time_slice(start, stop)


class TestConcat:
    @settings(relaxed, max_examples=200)
    @given(pyramids(), st.data())
    def test_is_the_inverse_of_slicing(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        steps = tokens.geometry.latent_steps
        cuts = sorted(data.draw(st.sets(st.integers(1, steps - 1))) if steps > 1 else set())
        parts = [tokens.time_slice(a, b) for a, b in zip([0, *cuts], [*cuts, steps], strict=True)]
        assert TokenPyramid.concat(parts) == tokens
        assert TokenPyramid.concat(iter([TokenPyramid.concat(parts[:1]), *parts[1:]])) == tokens
        assert reduce(Geometry.join, (part.geometry for part in parts)) == tokens.geometry

    @relaxed
    @given(pyramids(), st.data())
    def test_gaps_overlaps_and_wrong_order_are_refused(self, tokens: TokenPyramid, data: st.DataObject) -> None:
        steps = tokens.geometry.latent_steps
        assume(steps > 1)
        step = st.integers(0, steps - 1)
        a, c = data.draw(step), data.draw(step)
        assume(c != a + 1)
        with pytest.raises(ValueError, match=f"begin at latent step {tokens.geometry.first_step + a + 1}"):
            TokenPyramid.concat([tokens.time_slice(a, a + 1), tokens.time_slice(c, c + 1)])

    def test_only_the_last_part_may_be_padded(self) -> None:
        short = fill(replace(SMALL, frames=4), 2)
        rest = fill(replace(SMALL, frames=4, first_step=2), 2)
        with pytest.raises(ValueError, match="nothing can follow latent step 1: the video ends in the middle"):
            TokenPyramid.concat([short, rest])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"fps": 30.0}, "fps 25.0 and 30.0"),
            ({"height": 16, "width": 16}, "height 8 and 16, width 8 and 16"),
            ({"strides": ((2, 8, 8), (4, 4, 4))}, "strides .* and "),
        ],
    )
    def test_parts_of_different_videos_are_refused(self, change: dict[str, Any], said: str) -> None:
        first, rest = fill(SMALL, 2), fill(replace(SMALL, frames=4, first_step=2, **change), 2)
        with pytest.raises(ValueError, match=said):
            TokenPyramid.concat([first, rest])

    def test_parts_of_different_kinds_are_refused(self) -> None:
        first, after = fill(SMALL, 2), replace(SMALL, frames=4, first_step=2)
        stranger = replace(fill(after, 2), model=ModelId(name="other", fingerprint="9"))
        for part, said in (
            (stranger, r"model nano \(0123abcd\) and other \(9\)"),
            (fill(after, 2, num_bits=8), "num_bits 16 and 8"),
            (fill(after, 2, batch=2), "batch_size 1 and 2"),
            (fill(after, 1), "1 levels cannot follow one with 2"),
        ):
            with pytest.raises(ValueError, match=said):
                TokenPyramid.concat([first, part])
        with pytest.raises(ValueError, match="no parts"):
            TokenPyramid.concat([])


class TestPyramid:
    @relaxed
    @given(pyramids())
    def test_equality_looks_at_everything(self, tokens: TokenPyramid) -> None:
        twin = TokenPyramid(tuple(ids.clone() for ids in tokens.levels), tokens.geometry, tokens.model, tokens.num_bits)
        assert twin == tokens
        twin.levels[-1].view(-1)[-1] ^= 1
        assert twin != tokens
        other_model = ModelId(name=MODEL.name, fingerprint="another")
        assert TokenPyramid(tokens.levels, tokens.geometry, other_model, tokens.num_bits) != tokens
        if tokens.num_bits < 30:
            assert TokenPyramid(tokens.levels, tokens.geometry, tokens.model, tokens.num_bits + 1) != tokens
        assert tokens != "tokens"
        if len(tokens.levels) > 1:
            assert tokens.prefix(1) != tokens

    def test_pyramids_are_not_hashable(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(fill(SMALL, 2))

    @relaxed
    @given(pyramids())
    def test_bits_per_pixel_counts_the_true_video(self, tokens: TokenPyramid) -> None:
        g = tokens.geometry
        bits = sum(math.prod(g.grid(i)) for i in range(len(tokens.levels))) * tokens.num_bits
        assert tokens.bits_per_pixel == pytest.approx(bits / (g.frames * g.height * g.width))
        assert f"{tokens.bits_per_pixel:.4f} bpp" in repr(tokens)

    def test_select_keeps_the_batch_axis(self) -> None:
        tokens = fill(SMALL, 2, batch=3)
        for index in (0, 2, -1, -3):
            clip = tokens.select(index)
            assert clip.batch_size == 1
            assert torch.equal(clip.levels[1][0], tokens.levels[1][index])
        for index in (3, -4):
            with pytest.raises(IndexError, match="batch of 3"):
                tokens.select(index)

    @pytest.mark.parametrize(
        ("shapes", "said"),
        [
            ([], "expected 1 to 2 levels"),
            ([(1, 5, 1, 1), (1, 2, 2, 2), (1, 2, 2, 2)], "expected 1 to 2 levels"),
            ([(1, 4, 1, 1)], r"level 1 should have shape \(1, 5, 1, 1\), got \(1, 4, 1, 1\)"),
            ([(5, 1, 1)], "level 1 should have shape"),
            ([(1, 5, 1, 1), (2, 2, 2, 2)], r"level 2 should have shape \(1, 2, 2, 2\)"),
            pytest.param([()], "level 1 should have shape", id="scalar"),
        ],
    )
    def test_shapes_are_checked(self, shapes: list[tuple[int, ...]], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            TokenPyramid(tuple(torch.zeros(shape, dtype=torch.int32) for shape in shapes), SMALL, MODEL)

    def test_types_and_values_are_checked(self) -> None:
        for dtype in (torch.int64, torch.uint8, torch.float32):
            with pytest.raises(ValueError, match="should be int32"):
                TokenPyramid((torch.zeros(1, 5, 1, 1, dtype=dtype),), SMALL, MODEL)
        for value in (-1, 1 << 16):
            with pytest.raises(ValueError, match=r"level 1 holds ids outside \[0, 2\*\*16\)"):
                TokenPyramid((torch.full((1, 5, 1, 1), value, dtype=torch.int32),), SMALL, MODEL)

    @pytest.mark.parametrize("num_bits", [0, -1, 32])
    def test_words_that_do_not_fit_an_id_are_refused(self, num_bits: int) -> None:
        with pytest.raises(ValueError, match="bits"):
            TokenPyramid((torch.zeros(1, 5, 1, 1, dtype=torch.int32),), SMALL, MODEL, num_bits)

    def test_empty_batch_is_refused_or_works_throughout(self) -> None:
        try:
            tokens = fill(SMALL, 2, batch=0)
        except ValueError:
            return
        assert tokens.num_tokens == 5 + 8
        repr(tokens)


class TestVideo:
    @pytest.fixture
    def video(self) -> Video:
        return Video(torch.rand(1, 3, 5, 4, 6) * 2 - 1, fps=25.0)

    def test_remembers_its_rate_and_shares_memory(self, video: Video) -> None:
        assert video.fps == 25.0
        assert isinstance(video, torch.Tensor)
        assert type(video.plain()) is torch.Tensor
        assert video.plain().data_ptr() == video.data_ptr()
        assert torch.equal(video.plain(), video)
        assert Video(torch.zeros(1, 3, 1, 2, 2)).fps is None

    def test_operations_give_plain_tensors(self, video: Video) -> None:
        weight = torch.rand(2, 3, 1, 1, 1)
        results = [
            video + 1,
            1 - video,
            video[:, :, :1],
            video.clone(),
            video.double(),
            video.detach(),
            torch.cat([video, video]),
            torch.nn.functional.conv3d(video, weight),
            next(iter(video)),
        ]
        assert all(type(result) is torch.Tensor for result in results)

    def test_works_with_numpy_and_models(self, video: Video) -> None:
        assert video.numpy().shape == (1, 3, 5, 4, 6)
        assert type(torch.nn.Conv3d(3, 4, 1)(video)) is torch.Tensor

    def test_survives_pickle_and_copies(self, video: Video) -> None:
        for twin in (pickle.loads(pickle.dumps(video)), copy.copy(video), copy.deepcopy(video)):
            assert isinstance(twin, Video)
            assert twin.fps == 25.0
            assert torch.equal(twin, video)

    def test_rewrapping_changes_the_rate_alone(self, video: Video) -> None:
        slow = Video(video, fps=5.0)
        assert (slow.fps, video.fps) == (5.0, 25.0)
        assert slow.data_ptr() == video.data_ptr()


def test_total_loss_is_the_weighted_sum_of_terms() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    terms = {"a": x * x, "b": (3 * x).bfloat16()}
    losses = LossTerms(terms=terms, weights={"a": 0.5, "b": 2.0}, metrics={"watched": torch.tensor(7.0)})
    assert losses.total.dtype == torch.float32
    assert losses.scalars() == {"a": 4.0, "b": 6.0, "watched": 7.0, "total": 14.0}
    losses.total.backward()
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(0.5 * 4 + 2 * 3)


def test_every_loss_term_needs_a_weight() -> None:
    with pytest.raises(ValueError, match=r"without one: \['b'\]"):
        LossTerms(terms={"a": torch.ones(()), "b": torch.ones(())}, weights={"a": 1.0})
    with pytest.raises(ValueError, match="no terms"):
        LossTerms(terms={}, weights={})
