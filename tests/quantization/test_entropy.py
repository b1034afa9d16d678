from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.quantization.bits import ids_to_signs
from pyratok.quantization.entropy import (
    batch_entropy,
    bernoulli_kl,
    bit_logits,
    bit_probabilities,
    sample_entropy,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def word_distribution(presign_NK: Tensor, temperature: float) -> Tensor:
    """Brute force: softmax over all 2**K words of tau <z, c>, float64 [N, 2**K]."""
    num_bits = presign_NK.shape[1]
    words = ids_to_signs(torch.arange(1 << num_bits), num_bits, dtype=torch.float64)
    return torch.softmax(temperature * presign_NK.double() @ words.T, dim=1)


def entropy(distribution: Tensor) -> Tensor:
    return torch.special.entr(distribution).sum(-1)


def sample(num_tokens: int, num_bits: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(num_tokens, num_bits, generator=torch.Generator().manual_seed(seed))


settings_of_case = {
    "num_tokens": st.integers(1, 20),
    "num_bits": st.integers(1, 7),
    "seed": st.integers(0, 1000),
    "temperature": st.floats(0.01, 5),
}


@relaxed
@given(**settings_of_case)
def test_factorised_entropies_equal_brute_force_over_words(
    num_tokens: int, num_bits: int, seed: int, temperature: float
) -> None:
    z = sample(num_tokens, num_bits, seed)
    q = word_distribution(z, temperature)
    assert sample_entropy(z, temperature).item() == pytest.approx(entropy(q).mean().item(), abs=1e-4)
    joint = batch_entropy(z, temperature, group_bits=num_bits)
    assert joint.item() == pytest.approx(entropy(q.mean(0)).item(), abs=1e-4)


@relaxed
@given(**settings_of_case, group_bits=st.integers(1, 7))
def test_groups_equal_brute_force_and_bound_the_joint(
    num_tokens: int, num_bits: int, seed: int, temperature: float, group_bits: int
) -> None:
    z = sample(num_tokens, num_bits, seed)
    grouped = batch_entropy(z, temperature, group_bits=group_bits).item()
    parts = z.split(group_bits, dim=1)
    assert grouped == pytest.approx(
        sum(entropy(word_distribution(p, temperature).mean(0)).item() for p in parts), abs=1e-4
    )
    joint = entropy(word_distribution(z, temperature).mean(0)).item()
    factorised = batch_entropy(z, temperature).item()
    assert joint - 1e-4 <= grouped <= factorised + 1e-4 <= num_bits * math.log(2) + 2e-4
    assert sample_entropy(z, temperature).item() <= joint + 1e-4


@relaxed
@given(**settings_of_case)
def test_kl_over_bits_equals_kl_over_words(num_tokens: int, num_bits: int, seed: int, temperature: float) -> None:
    a, b = sample(num_tokens, num_bits, seed), sample(num_tokens, num_bits, seed + 1)
    p, q = word_distribution(a, temperature), word_distribution(b, temperature)
    expected = (p * (p / q).log()).sum(1)
    kl = bernoulli_kl(bit_logits(a, temperature), bit_logits(b, temperature))
    torch.testing.assert_close(kl.double(), expected, atol=1e-4, rtol=1e-4)
    assert bool((kl >= -1e-5).all())


def test_probabilities_are_those_of_the_words() -> None:
    z = sample(6, 4)
    ones = ids_to_signs(torch.arange(16), 4, dtype=torch.float64) > 0
    expected = word_distribution(z, 0.7) @ ones.double()
    torch.testing.assert_close(bit_probabilities(z, 0.7).double(), expected, atol=1e-6, rtol=1e-6)


def test_extremes_of_the_entropies() -> None:
    undecided = torch.zeros(10, 16)
    most = 16 * math.log(2)
    assert sample_entropy(undecided).item() == pytest.approx(most)
    assert batch_entropy(undecided, group_bits=8).item() == pytest.approx(most, abs=1e-4)

    every_word = 100 * ids_to_signs(torch.arange(1 << 8), 8)
    assert sample_entropy(every_word).item() == pytest.approx(0, abs=1e-6)
    assert batch_entropy(every_word, group_bits=8).item() == pytest.approx(8 * math.log(2), abs=1e-4)

    one_word = 100 * torch.ones(50, 16)
    for group_bits in (1, 8):
        assert batch_entropy(one_word, group_bits=group_bits).item() == pytest.approx(0, abs=1e-6)


def test_only_groups_see_bits_that_repeat_one_another() -> None:
    repeated = 100 * sample(4000, 1).sign().expand(-1, 8)
    assert batch_entropy(repeated).item() == pytest.approx(8 * math.log(2), abs=1e-2)
    assert batch_entropy(repeated, group_bits=8).item() == pytest.approx(math.log(2), abs=1e-3)


def test_higher_temperature_is_sharper() -> None:
    z = sample(100, 16)
    values = [sample_entropy(z, tau).item() for tau in (0.1, 1, 10, 100)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 90.0, 1e4, 1e30])
def test_values_and_gradients_stay_finite(scale: float) -> None:
    z = sample(32, 16, scale=scale).requires_grad_()
    other = sample(32, 16, seed=1, scale=scale)
    for loss in (
        sample_entropy(z),
        batch_entropy(z),
        batch_entropy(z, group_bits=8),
        bernoulli_kl(z, other).mean(),
        bernoulli_kl(other, z).mean(),
    ):
        (gradient,) = torch.autograd.grad(loss, z)
        assert loss.isfinite()
        assert loss >= -1e-5
        assert bool(gradient.isfinite().all())


def test_saturated_bits_keep_their_exact_divergence() -> None:
    logits = torch.tensor([[80.0]]), torch.tensor([[-80.0]])
    assert bernoulli_kl(*logits).item() == pytest.approx(80)
    assert bernoulli_kl(logits[0], logits[0]).item() == 0


def test_descending_the_loss_sharpens_and_spreads() -> None:
    z = (sample(256, 6, scale=0.1) + 0.5).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(100):
        loss = sample_entropy(z) - batch_entropy(z, group_bits=6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sample_entropy(z).item() < 0.1
    assert batch_entropy(z, group_bits=6).item() > 5.5 * math.log(2)


def test_layout_of_bits_does_not_matter() -> None:
    presign = torch.randn(2, 16, 3, 4, 5)
    last = presign.movedim(1, -1)
    for function in (sample_entropy, batch_entropy):
        torch.testing.assert_close(function(presign), function(last, dim=-1))
    torch.testing.assert_close(bernoulli_kl(presign, presign + 1), bernoulli_kl(last, last + 1, dim=-1))
    assert bernoulli_kl(presign, presign + 1).shape == (2, 3, 4, 5)


def test_float32_under_autocast_with_the_same_values() -> None:
    z = torch.randn(2, 16, 3, 4, 5).bfloat16()
    plain = [sample_entropy(z), batch_entropy(z, group_bits=8), bernoulli_kl(z, -z), bit_probabilities(z)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = [sample_entropy(z), batch_entropy(z, group_bits=8), bernoulli_kl(z, -z), bit_probabilities(z)]
    for a, b in zip(plain, cast, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="group_bits must be from 1 to 12, got 16"):
        batch_entropy(torch.zeros(2, 16), group_bits=16)
    with pytest.raises(ValueError, match="on one grid"):
        bernoulli_kl(torch.zeros(1, 16, 2), torch.zeros(1, 16, 3))


def test_in_one_process_the_batch_of_all_ranks_is_the_batch() -> None:
    """Two processes: tests/nn/test_collective.py."""
    z = torch.randn(20, 10)
    for group_bits in (1, 4):
        whole = batch_entropy(z, group_bits=group_bits, across_ranks=True)
        assert torch.equal(whole, batch_entropy(z, group_bits=group_bits))
