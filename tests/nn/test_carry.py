"""A causal convolution over chunks is the one over the whole, and what is handed on is small, new and checked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.nn.carry import Carry, at_start
from pyratok.vae.wan_blocks import CausalConv3d

few = settings(deadline=None, max_examples=20)


def conv(seed: int = 0) -> CausalConv3d:
    torch.manual_seed(seed)
    return CausalConv3d(3, 4, 3, padding=1)


def clip(frames: int, batch: int = 2, side: int = 5) -> Tensor:
    x = torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(frames))
    return x.contiguous(memory_format=torch.channels_last_3d)


@few
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
@torch.no_grad()
def test_chunks_of_any_lengths_are_the_whole(lengths: list[int]) -> None:
    layer, x = conv(), clip(sum(lengths))
    parts, tails = [], None
    for chunk in x.split(lengths, dim=2):
        carry = Carry(tails)
        parts.append(layer(chunk, carry))
        tails = carry.tails()
    torch.testing.assert_close(torch.cat(parts, dim=2), layer(x), atol=1e-6, rtol=0)


def test_the_start_is_zeros_or_as_many_as_asked_for() -> None:
    x = clip(3)
    assert torch.equal(Carry().extend(x, 2)[:, :, 2:], x)
    assert not Carry().extend(x, 2)[:, :, :2].any()
    assert torch.equal(Carry().extend(x, 1, zeros=0), x)
    assert Carry().extend(x[:, :, :0], 2).shape[2] == 2


def test_who_is_at_the_start() -> None:
    assert at_start(None)
    assert at_start(Carry())
    assert not at_start(Carry(()))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [2, 8])
def test_a_tail_holds_on_to_nothing_but_itself(batch: int, frames: int) -> None:
    x, carry = clip(frames, batch), Carry()
    carry.extend(x, 2, zeros=0)
    (tail,) = carry.tails()
    assert torch.equal(tail, x[:, :, -2:])
    assert tail.untyped_storage().nbytes() == tail.numel() * tail.element_size()
    assert tail.data_ptr() != x[:, :, -2:].data_ptr()
    assert tail.is_contiguous(memory_format=torch.channels_last_3d)
    assert Carry((tail,)).extend(x, 2).is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_a_state_can_be_continued_twice() -> None:
    layer, first = conv(), Carry()
    layer(clip(4), first)
    tails = first.tails()
    before = [tail.clone() for tail in tails]
    once, again = (layer(clip(3), Carry(tails)) for _ in range(2))
    assert torch.equal(once, again)
    assert all(torch.equal(a, b) for a, b in zip(before, tails, strict=True))


def test_gradients_pass_from_chunk_to_chunk() -> None:
    layer, x, carry = conv(), clip(4).requires_grad_(), Carry()
    layer(x[:, :, :3], carry)
    layer(x[:, :, 3:], Carry(carry.tails())).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax(dim=(0, 1, 3, 4)).gt(0).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("tails", "message"),
    [
        ((torch.zeros(2, 3, 1, 5, 5),), r"tail 0 of the state has shape \(2, 3, 1, 5, 5\).* need \(2, 3, 2, 5, 5\)"),
        ((torch.zeros(2, 3, 2, 5, 6),), r"tail 0 of the state has shape \(2, 3, 2, 5, 6\)"),
        ((torch.zeros(1, 3, 2, 5, 5),), r"tail 0 of the state has shape \(1, 3, 2, 5, 5\)"),
        ((), "holds 0 tails, this model has more"),
    ],
)
def test_a_tail_of_another_layer(tails: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conv()(clip(2), Carry(tails))


def test_tails_that_nobody_reads() -> None:
    carry = Carry((torch.zeros(2, 3, 2, 5, 5), torch.zeros(1)))
    conv()(clip(2), carry)
    with pytest.raises(ValueError, match="holds 2 tails, this model has 1"):
        carry.tails()
