from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.quantization.lfq import commitment_loss, lfq, quantize

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


@relaxed
@given(st.lists(finite, min_size=1, max_size=30), st.none() | st.floats(0.125, 8))
def test_result_is_exactly_the_word_at_every_scale(values: list[float], limit: float | None) -> None:
    z = torch.tensor(values).requires_grad_()
    bits = quantize(z, limit)
    assert torch.equal(bits, torch.tensor([1.0 if value >= 0 else -1.0 for value in values]))


def test_quantized_equals_words_of_its_ids() -> None:
    bits = lfq(torch.randn(2, 16, 3, 4, 5, requires_grad=True)).bits
    assert torch.equal(ids_to_signs(signs_to_ids(bits), 16), bits)


def test_quantizing_twice_changes_nothing() -> None:
    bits = quantize(torch.randn(100))
    assert torch.equal(quantize(bits), bits)


def test_gradient_passes_straight_through() -> None:
    z, upstream = torch.randn(3, 4).mul(5).requires_grad_(), torch.randn(3, 4)
    quantize(z).backward(upstream)
    assert torch.equal(z.grad, upstream)


def test_gradient_stops_beyond_the_limit() -> None:
    z = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1.0, 1.001], requires_grad=True)
    quantize(z, limit=1.0).sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        quantize(torch.zeros(1), limit)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_float32_also_under_autocast(dtype: torch.dtype) -> None:
    presign = torch.randn(1, 4, 2, 2, 2).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        level = lfq(presign)
        loss = commitment_loss(level.presign, level.bits)
    assert level.presign.dtype == level.bits.dtype == loss.dtype == torch.float32
    (level.bits.sum() + loss).backward()
    assert presign.grad is not None
    assert presign.grad.dtype == dtype


def test_tiny_values_keep_their_sign_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert quantize(torch.tensor([1e-38, -1e-38])).tolist() == [1, -1]


def test_bit_axis_becomes_axis_one() -> None:
    presign_BthwK = torch.randn(2, 3, 4, 5, 16)
    level = lfq(presign_BthwK, dim=-1)
    assert level.presign.shape == level.bits.shape == (2, 16, 3, 4, 5)
    assert torch.equal(level.presign, lfq(presign_BthwK.movedim(-1, 1)).presign)


def test_commitment_pulls_values_to_their_word_and_leaves_the_word_alone() -> None:
    z = torch.tensor([[0.5, -3.0, 0.0]], requires_grad=True)
    bits = torch.tensor([[1.0, -1.0, 1.0]], requires_grad=True)
    loss = commitment_loss(z, bits)
    assert loss.item() == pytest.approx((0.25 + 4 + 1) / 3)
    loss.backward()
    assert bits.grad is None
    assert z.grad is not None
    assert torch.equal(z.grad.sign(), (z - bits).detach().sign())
    assert commitment_loss(bits, bits) == 0
