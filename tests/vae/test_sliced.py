"""A VAE that works on a few frames at a time gives what it gives for all of them, in less memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.nn.carry import Carry
from pyratok.runtime.memory import TensorMemory
from pyratok.vae import sliced
from pyratok.vae.sliced import BLOCK_BYTES, is_sliced, norm_silu_into, slices, slices_of
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import CausalConv3d, RMSNorm, Upsample, double_and_convolve
from tiny import VAES, random_video, tiny_vae

ALL_AT_ONCE = 1 << 40
every_variant = pytest.mark.parametrize("name", VAES)


def outputs(vae: WanVAE, video: Tensor, latent: Tensor) -> list[Tensor]:
    return [*vae.encode_taps(video), vae.encode(video), vae.decode(latent)]


def without_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyratok.vae.wan_blocks.is_sliced", lambda x: False)


@every_variant
@pytest.mark.parametrize("slice_bytes", [0, 5_000, 20_000, ALL_AT_ONCE])
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_slices_of_any_size_are_the_whole(
    name: str, slice_bytes: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, video = tiny_vae(name), random_video(batch, 17, 16, 16)
    latent = torch.randn(batch, vae.config.z_dim, 5, 2, 2)
    with slices_of(slice_bytes):
        found = outputs(vae, video, latent)
    without_slices(monkeypatch)
    for ours, whole in zip(found, outputs(vae, video, latent), strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)


@every_variant
@torch.inference_mode()
def test_a_state_goes_from_slices_to_the_whole_and_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pass in slices hands on is what one without hands on."""
    vae, video = tiny_vae(name), random_video(1, 13, 16, 16)
    whole, parts, tails = vae.encode(video), list[Tensor](), None
    for number, (start, stop) in enumerate(pairwise((0, 1, 5, 13))):
        with monkeypatch.context() as patch, slices_of(2_000):
            if number % 2:
                without_slices(patch)
            carry = Carry(tails)
            parts.append(vae.encode(video[:, :, start:stop], carry))
            tails = carry.tails()
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=1e-5)


@every_variant
@torch.inference_mode()
def test_what_goes_in_and_what_has_come_out_stay_as_they_are(name: str) -> None:
    """Blocks work in place where nobody is to see it."""
    vae, video = tiny_vae(name), random_video(1, 9, 16, 16)
    latent = torch.randn(1, vae.config.z_dim, 3, 2, 2)
    inputs = video.clone(), latent.clone()
    with slices_of(0):
        taps = vae.encode_taps(video)
        before = [tap.clone() for tap in taps]
        vae.encoder.head(taps[-1])
        vae.decode(latent)
        for tap, again in zip(taps, vae.encode_taps(video), strict=True):
            assert torch.equal(tap, again)
    assert all(map(torch.equal, taps, before))
    assert torch.equal(video, inputs[0])
    assert torch.equal(latent, inputs[1])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([3, 8, 96]), st.booleans())
@torch.inference_mode()
def test_a_norm_block_by_block_is_the_norm(batch: int, frames: int, channels: int, strided: bool) -> None:
    norm = RMSNorm(channels)
    norm.gamma.uniform_(0.5, 2)
    x = torch.randn(batch, channels, frames, 7, 5)
    x[:, :, 0, 0] = 0  # as in padding: no division by zero
    if not strided:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    out = torch.full_like(x, torch.nan, memory_format=torch.channels_last_3d)
    for slice_bytes in (0, ALL_AT_ONCE):
        with slices_of(slice_bytes):
            norm_silu_into(x, norm.gamma, out)
        torch.testing.assert_close(out, torch.nn.functional.silu(norm(x)), atol=1e-6, rtol=1e-6)


def test_slices_are_all_frames_in_order_within_the_bytes() -> None:
    x = torch.zeros(2, 3, 7, 4, 5)  # 480 bytes a frame
    with slices_of(1_000):
        assert list(slices(x)) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
        assert list(slices(x, channels=6)) == [slice(t, t + 1) for t in range(7)]
    with slices_of(0):
        assert len(list(slices(x))) == 7
    assert len(list(slices(x))) == 1


def test_where_a_gradient_is_wanted_or_types_are_chosen_by_torch_there_are_none() -> None:
    x = torch.zeros(1)
    assert not is_sliced(x)
    with torch.no_grad():
        assert is_sliced(x)
        assert not is_sliced(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_sliced(x)


@torch.no_grad()
def test_bfloat16_is_as_near_to_float32_as_without_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae("plain")
    latent = torch.randn(1, vae.config.z_dim, 3, 4, 4)
    exact = vae.decode(latent)
    vae.bfloat16()
    ours = vae.decode(latent.bfloat16()).float()
    without_slices(monkeypatch)
    theirs = vae.decode(latent.bfloat16()).float()
    assert (ours - exact).square().mean() <= 1.5 * (theirs - exact).square().mean()


@torch.no_grad()
def test_the_peak_of_a_pass_is_lower() -> None:
    vae, video = tiny_vae("plain"), random_video(1, 17, 64, 64)
    peaks = []
    for slice_bytes in (0, ALL_AT_ONCE):
        with slices_of(slice_bytes), TensorMemory() as memory:
            vae.encode(video)
        peaks.append(memory.peak)
    assert peaks[0] < 0.6 * peaks[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_convolution_added_to_what_is_there_is_their_sum(dtype: torch.dtype, batch: int) -> None:
    """Also where that is part of a larger tensor, of one clip or several, with gaps in memory between these."""
    conv = CausalConv3d(6, 4, 3, padding=1).to(dtype)
    x = torch.randn(batch, 6, 5, 7, 9).to(dtype, memory_format=torch.channels_last_3d)
    around = torch.randn(batch, 4, 8, 7, 9).to(dtype, memory_format=torch.channels_last_3d)
    before = around.clone()
    conv.convolve_onto(x, around[:, :, 2:5])
    wanted = before.clone()
    wanted[:, :, 2:5] += conv.convolve(x)
    rounding = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(around, wanted, atol=rounding, rtol=rounding)
    assert torch.equal(around[:, :, :2], before[:, :, :2])
    assert torch.equal(around[:, :, 5:], before[:, :, 5:])


@torch.no_grad()
def test_frames_doubled_in_time_stay_in_channels_last_memory() -> None:
    up = Upsample(4, 2, in_space=False, in_time=True)
    x = torch.randn(2, 4, 3, 5, 6).to(memory_format=torch.channels_last_3d)
    ours = up._double_time(up.time_conv, x, None)
    assert ours.shape == (2, 4, 5, 5, 6)
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_doubling_in_slices_is_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(5, 6, 3, 4), torch.randn(2, 6, 3, 3), torch.randn(2)
    with slices_of(0):
        ours = double_and_convolve(x, weight, bias)
    without_slices(monkeypatch)
    torch.testing.assert_close(ours, double_and_convolve(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_blocks_are_smaller_than_slices() -> None:
    assert sliced.SLICE_BYTES % BLOCK_BYTES == 0
