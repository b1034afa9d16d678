"""A VAE that walks through a video chunk by chunk gives what it gives for the whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.nn.carry import Carry
from pyratok.vae.wan import WanVAE
from tiny import VAES, random_video, tiny_vae

STEPS = 7
CUTS = {"single": [1] * STEPS, "pairs": [2, 2, 2, 1], "threes": [1, 3, 3], "one": [STEPS]}
few = settings(deadline=None, max_examples=5)
every_variant = pytest.mark.parametrize("name", VAES)
every_cut = pytest.mark.parametrize("cut", CUTS)


def frames_of(vae: WanVAE, steps: Sequence[int]) -> list[int]:
    stride = vae.config.latent_stride[0]
    return [n * stride - (stride - 1) * (index == 0) for index, n in enumerate(steps)]


def encode(vae: WanVAE, chunks: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Taps and moments of every chunk."""
    found, tails = [], None
    for chunk in chunks:
        carry = Carry(tails)
        taps = vae.encode_taps(chunk, carry)
        found.append((*taps, vae.quant_conv(vae.encoder.head(taps[-1], carry))))
        tails = carry.tails()
    return found


def decode(vae: WanVAE, chunks: Sequence[Tensor]) -> Tensor:
    parts, tails = [], None
    for chunk in chunks:
        carry = Carry(tails)
        parts.append(vae.decode(chunk, carry))
        tails = carry.tails()
    return torch.cat(parts, dim=2)


@torch.inference_mode()
def check(name: str, steps: list[int], batch: int = 1) -> None:
    vae = tiny_vae(name)
    frames = frames_of(vae, steps)
    video = random_video(batch, sum(frames), 16, 16)
    parts = encode(vae, video.split(frames, dim=2))
    for whole, cut in zip((*vae.encode_taps(video), vae.encode(video)), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(cut, dim=2), whole, atol=1e-5, rtol=1e-5)
    latent = torch.randn(batch, vae.config.z_dim, sum(steps), 2, 2)
    pixels = decode(vae, latent.split(steps, dim=2))
    torch.testing.assert_close(pixels, vae.decode(latent), atol=1e-5, rtol=1e-5)
    assert pixels.shape[2] == sum(frames)


@every_variant
@every_cut
def test_chunks_are_the_whole(name: str, cut: str) -> None:
    check(name, CUTS[cut], batch=2 if cut == "pairs" else 1)


@every_variant
@few
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_chunks_of_any_lengths(name: str, steps: list[int]) -> None:
    check(name, steps)


@every_variant
@torch.inference_mode()
def test_what_is_handed_on_does_not_grow(name: str) -> None:
    """Nor does it keep activations alive, and a chunk of one step hands on as much as a long one."""
    vae, sizes = tiny_vae(name), []
    for steps in ([1], [4], [1, 1, 1]):
        frames, tails = frames_of(vae, steps), None
        for chunk in random_video(1, sum(frames), 16, 16).split(frames, dim=2):
            carry = Carry(tails)
            vae.encode(chunk, carry)
            tails = carry.tails()
        assert tails is not None
        sizes.append(sum(tail.untyped_storage().nbytes() for tail in tails))
        assert sizes[-1] == sum(tail.numel() * tail.element_size() for tail in tails)
    assert len(set(sizes)) == 1


@torch.inference_mode()
def test_a_later_chunk_has_no_single_frame() -> None:
    vae, carry = tiny_vae("nano"), Carry()
    vae.encode(random_video(1, 1, 16, 16), carry)
    for frames in (0, 1, 5):
        with pytest.raises(ValueError, match=r"a later chunk of \dx16x16 does not fit .* pad it to 4 k frames"):
            vae.encode(random_video(1, frames, 16, 16), Carry(carry.tails()))


@torch.inference_mode()
def test_a_state_of_another_frame_size() -> None:
    vae, carry = tiny_vae("nano"), Carry()
    vae.encode(random_video(1, 1, 16, 16), carry)
    with pytest.raises(ValueError, match=r"tail 0 of the state has shape .* this model and frame size need"):
        vae.encode(random_video(1, 4, 16, 32), Carry(carry.tails()))
