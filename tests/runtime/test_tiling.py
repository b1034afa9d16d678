"""Tiles and chunks give what the whole clip gives, whatever the sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.config import LaPQConfig, PyraTokConfig, WanVAEConfig
from pyratok.data.video_pixels import from_uint8, to_uint8
from pyratok.metrics.seams import seam_ratio
from pyratok.model.base import pad_video
from pyratok.model.pyratok import PyraTok
from pyratok.runtime.frames import FrameSource
from pyratok.runtime.tiling import Layout, _blend, decode_tiled, encode_tiled, encode_tiled_parts, spans
from pyratok.types import TokenPyramid
from tiny import CONFIG, VAE, StubText, random_video, tiny_pyratok

RESIDUAL = PyraTokConfig(
    name="tiny residual",
    vae=WanVAEConfig(
        base_dim=4,
        dim_mult=(1, 1),
        z_dim=4,
        num_res_blocks=1,
        temporal_downsample=(True,),
        is_residual=True,
        patch_size=2,
        mid_attention=False,
    ),
    lapq=LaPQConfig(taps=(0, 2), strides=((1, 8, 8), (2, 4, 4)), width=8, num_bits=4, num_heads=2, text_dim=12),
)
ATTENTIVE = replace(CONFIG, vae=replace(VAE, mid_attention=True))
MODELS = {"plain": CONFIG, "residual": RESIDUAL}


def assert_same(model: PyraTok, video: Tensor, found: TokenPyramid, wanted: TokenPyramid) -> None:
    """Equal but for signs that rounding decides: at most one bit in 10^6, only where |z| < 1e-4."""
    assert found.geometry == wanted.geometry
    assert found.model == wanted.model
    if found == wanted:
        return
    with torch.no_grad():
        taps = model.vae.encode_taps(pad_video(video, wanted.geometry))
        levels = model.lapq.quantize(taps)
    for level, a, b in zip(levels, found.levels, wanted.levels, strict=True):
        for bit in range(model.num_bits):
            flipped = ((a ^ b) >> bit & 1).bool()
            assert flipped.sum() <= 1
            assert (level.presign[:, bit][flipped].abs() < 1e-4).all()


def decode_to_tensor(model: PyraTok, tokens: TokenPyramid, layout: Layout, **more: Any) -> Tensor:
    g = tokens.geometry
    out = torch.full((tokens.batch_size, 3, g.frames, g.height, g.width), torch.nan)
    decode_tiled(model, tokens, out, layout, **more)
    return out


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_tiles_and_chunks_change_nothing(name: str, data: st.DataObject) -> None:
    model = tiny_pyratok(config=MODELS[name])
    height, width = data.draw(st.tuples(st.integers(20, 90), st.integers(100, 330)))
    video = random_video(1, data.draw(st.sampled_from([1, 4, 9])), height, width, seed=height)
    layout = Layout(
        tile=data.draw(st.tuples(st.integers(16, 100), st.integers(16, 130))),
        chunk_steps=data.draw(st.sampled_from([None, 1, 2])),
        in_order=data.draw(st.booleans()),
    )
    tokens = model.encode(video)
    assert_same(model, video, encode_tiled(model, video, layout), tokens)
    torch.testing.assert_close(decode_to_tensor(model, tokens, layout), model.decode(tokens).plain(), atol=1e-5, rtol=0)


def test_parts_are_those_of_a_stream() -> None:
    model = tiny_pyratok()
    video = random_video(2, 11, 40, 120)
    wanted = model.encode(video)
    parts = list(encode_tiled_parts(model, video, Layout(tile=(32, 48), chunk_steps=2)))
    assert [part.geometry.first_step for part in parts] == [0, 2]
    for part, (start, stop) in zip(parts, [(0, 2), (2, 4)], strict=True):
        assert_same(model, video, part, wanted.time_slice(start, stop))


def test_bytes_on_disk_and_a_caption(tmp_path: Path) -> None:
    """A memory map in, a memory map out; the same as floats in memory."""
    model = tiny_pyratok()
    model.text_encoder = StubText()
    with torch.no_grad():
        for level in model.lapq.levels:
            level.text.gate.fill_(1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 37, 150, 3), np.uint8)
    np.save(tmp_path / "clip.npy", pixels)
    stored = np.load(tmp_path / "clip.npy", mmap_mode="r")
    layout = Layout(tile=(48, 64), chunk_steps=1)
    tokens = model.encode(from_uint8(pixels), "a cat")
    assert_same(model, from_uint8(pixels), encode_tiled(model, stored, layout, caption="a cat", fps=None), tokens)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.uint8, pixels.shape)
    decode_tiled(model, tokens, out, layout, levels=2)
    assert np.abs(out.astype(int) - to_uint8(model.decode(tokens, 2)).astype(int)).max() <= 1


def test_only_crops_are_read() -> None:
    """The source is never asked for a whole frame, and in order for one chunk of frames after the other."""
    model = tiny_pyratok(config=RESIDUAL)
    asked: list[tuple[slice, slice, slice]] = []

    def read(*box: slice) -> Tensor:
        asked.append(box)  # type: ignore[arg-type]
        return torch.zeros(1, 3, *(axis.stop - axis.start for axis in box))

    source = FrameSource(frames=5, height=30, width=400, read=read, fps=25.0)
    tokens = encode_tiled(model, source, Layout(tile=(32, 40), chunk_steps=1, in_order=True))
    assert tokens.geometry.fps == 25.0
    starts = [frames.start for frames, _, _ in asked]
    assert starts == sorted(starts)
    assert max(columns.stop - columns.start for _, _, columns in asked) < 300
    assert max(frames.stop - frames.start for frames, _, _ in asked) == 2


def test_attention_needs_a_halo_and_feathers() -> None:
    model = tiny_pyratok(config=ATTENTIVE)
    video = random_video(1, 1, 32, 192)
    tokens = model.encode(video)
    with pytest.raises(ValueError, match="mixes whole frames"):
        encode_tiled(model, video, Layout(tile=(32, 64)))
    whole = model.decode(tokens).plain()
    off = []
    for halo, feather in ((0, 0), (48, 0), (48, 16)):
        back = decode_to_tensor(model, tokens, Layout(tile=(32, 64), halo=halo, feather=feather))
        assert back.isfinite().all()
        off.append(abs(seam_ratio(back, [], [64, 128], untiled=whole) - 1))
    assert max(off[1:]) < min(off[0], 0.05), off
    # Whole frames need no halo.
    assert encode_tiled(model, video, Layout(chunk_steps=1)) == tokens


def test_feathering_leaves_no_step() -> None:
    """From one tile to the next in equal steps, none larger than the rest."""
    piece, held = _blend(torch.zeros(1, 3, 1, 2, 8), torch.ones(1, 3, 1, 2, 20), -1, 4)
    assert held is not None
    assert (piece.shape[-1], held.shape[-1]) == (16, 4)
    steps = piece[0, 0, 0, 0].diff(prepend=torch.zeros(1))
    torch.testing.assert_close(steps[1:8], torch.full((7,), 1 / 8))
    assert steps.max() <= 1 / 8
    turned, _ = _blend(torch.zeros(1, 3, 1, 8, 2), torch.ones(1, 3, 1, 20, 2), -2, 4)
    torch.testing.assert_close(turned.mT, piece)


def test_feathering_what_is_equal_changes_nothing() -> None:
    """Blending tiles that agree gives what they agree on, in every corner, in whatever order, chunk by chunk."""
    model = tiny_pyratok(config=RESIDUAL)
    tokens = model.encode(random_video(1, 5, 52, 90))
    for in_order in (False, True):
        layout = Layout(tile=(24, 24), halo=128, feather=8, chunk_steps=2, in_order=in_order)
        back = decode_to_tensor(model, tokens, layout)
        torch.testing.assert_close(back, model.decode(tokens).plain(), atol=1e-5, rtol=0)


@given(units=st.integers(1, 60), unit=st.sampled_from([4, 16]), size=st.integers(1, 300), halo=st.integers(0, 100))
def test_spans_cover_an_axis_once(units: int, unit: int, size: int, halo: int) -> None:
    length = units * unit
    parts = spans(length, size, unit, halo, halo)
    assert [part.inner.start for part in parts] == [0, *(part.inner.stop for part in parts[:-1])]
    assert parts[-1].inner.stop == length
    assert max(part.inner.stop - part.inner.start for part in parts) <= max(size, unit)
    for inner, outer in parts:
        assert outer.start == 0 or inner.start - outer.start >= halo
        assert outer.stop == length or outer.stop - inner.stop >= halo
        assert not {side % unit for side in (inner.start, inner.stop, outer.start, outer.stop)} - {0}


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tile": (0, 16)}, "two positive"),
        ({"chunk_steps": 0}, "chunk_steps"),
        ({"halo": -1}, "halo"),
        ({"feather": 8}, "fit without feathering"),
        ({"feather": 8, "halo": 4}, "beyond the halo"),
    ],
)
def test_layouts_that_make_no_sense_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Layout(**fields)


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_pyratok()
    video = random_video(1, 1, 32, 64)
    tokens = model.encode(video)
    with pytest.raises(ValueError, match="at least 16x16"):
        encode_tiled(model, video, Layout(tile=(8, 64)))
    with pytest.raises(ValueError, match="tiles have 16"):
        decode_tiled(model, tokens, torch.empty_like(video), Layout(tile=(16, 16), halo=32, feather=12))
    with pytest.raises(ValueError, match="expected floats"):
        decode_tiled(model, tokens, torch.empty(1, 3, 1, 32, 65))
    with pytest.raises(ValueError, match="expected uint8"):
        decode_tiled(model, tokens, np.zeros((1, 32, 64, 3), np.float32))
    with pytest.raises(ValueError, match="expected uint8 frames"):
        encode_tiled(model, np.zeros((1, 32, 64), np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        encode_tiled(model, torch.full_like(video, torch.nan), Layout(tile=(32, 32)))
    with pytest.raises(ValueError, match="asked for"):
        encode_tiled(model, FrameSource(frames=1, height=32, width=64, read=lambda t, y, x: video[..., :8]))
    with pytest.raises(ValueError, match="made by"):
        decode_tiled(tiny_pyratok(seed=1), tokens, torch.empty_like(video))
