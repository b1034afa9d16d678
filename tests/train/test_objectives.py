"""Terms of a step that look at the words of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyratok.quantization.lfq import lfq
from pyratok.train.objectives import LossWeights, codebook_terms

NUM_BITS = 16
SPREAD = LossWeights(commitment=0.0, batch_entropy=1.0)


def words(values: Tensor) -> Tensor:
    """``[N, 16]`` as one clip of N tokens."""
    return values.T.reshape(1, NUM_BITS, -1, 1, 1)


def batch_entropy_term(presign: Tensor, seed: int = 0) -> Tensor:
    order = torch.randperm(NUM_BITS, generator=torch.Generator().manual_seed(seed))
    terms, _ = codebook_terms([lfq(presign)], SPREAD, order)
    return terms["batch_entropy"]


@pytest.fixture
def values() -> Tensor:
    return torch.randn(2048, NUM_BITS, generator=torch.Generator().manual_seed(3))


def test_batch_entropy_rewards_words_whose_bits_do_not_repeat_one_another(values: Tensor) -> None:
    repeating = values[:, :1] * torch.tensor([1.0, -1.0]).repeat(NUM_BITS // 2)
    # One by one the bits of both are even; the term is negated.
    assert all(batch_entropy_term(words(values), s) < batch_entropy_term(words(repeating), s) - 1 for s in range(4))


def test_a_pair_of_equal_bits_is_seen_in_some_order(values: Tensor) -> None:
    values[:, -1] = values[:, 0]
    found = [float(batch_entropy_term(words(values), seed)) for seed in range(8)]
    assert max(found) - min(found) > 0.1


def test_batch_entropy_does_not_rise_by_smaller_values(values: Tensor) -> None:
    presign = words(values)
    assert batch_entropy_term(presign) == batch_entropy_term(presign / 100)


def test_along_its_gradient_bits_that_repeat_one_another_begin_to_differ(values: Tensor) -> None:
    values[:, 1] = values[:, 0].sign() * values[:, 1].abs()
    presign = words(values)
    for seed in range(25):
        presign.requires_grad_()
        (gradient,) = torch.autograd.grad(batch_entropy_term(presign, seed), presign)
        presign = (presign - 100 * gradient).detach()
    first, second = presign.flatten(2)[0, :2] > 0
    assert first.eq(second).float().mean() < 0.9
