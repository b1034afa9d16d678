from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyratok.losses.codebook import distinct_words, hierarchical_kl
from pyratok.quantization.entropy import bernoulli_kl, bit_logits, bit_probabilities
from pyratok.types import Stride

DENSE: Stride = (1, 32, 32)
FINE: Stride = (4, 8, 8)


def levels(scale: float = 1.0, batch: int = 2, steps: int = 2) -> tuple[Tensor, Tensor]:
    """Values before the sign of a fine and of a dense level of one video of ``1 + 4 steps`` frames, 64x32."""
    fine = scale * torch.randn(batch, 6, 1 + steps, 8, 4)
    dense = scale * torch.randn(batch, 6, 1 + 4 * steps, 2, 1)
    return fine.requires_grad_(), dense.requires_grad_()


def spread(coarse: Tensor, steps: int, space: int) -> Tensor:
    """A level whose finer tokens repeat those of ``[B, K, t, h, w]``; the first step stays single."""
    wide = coarse.repeat_interleave(space, 3).repeat_interleave(space, 4)
    return torch.cat([wide[:, :, :1], wide[:, :, 1:].repeat_interleave(steps, 2)], 2)


def test_levels_that_say_the_same_cost_nothing() -> None:
    common = 3 * torch.randn(2, 6, 3, 2, 2)
    fine, dense = spread(common, 1, 4), spread(common, 4, 1)
    assert hierarchical_kl(fine, dense, FINE, DENSE).item() == pytest.approx(0, abs=1e-5)
    assert hierarchical_kl(common, common, FINE, FINE).item() == 0
    assert hierarchical_kl(-fine, dense, FINE, DENSE).item() > 1


def test_it_is_the_divergence_of_mean_probabilities() -> None:
    fine, dense = levels(steps=1)
    p = torch.nn.functional.avg_pool3d(bit_probabilities(fine, 0.7), (1, 4, 4))
    first, rest = bit_probabilities(dense, 0.7).split([1, 4], dim=2)
    q = torch.cat([first, rest.mean(2, keepdim=True)], 2)
    expected = bernoulli_kl(p.logit(), q.logit()).mean()
    torch.testing.assert_close(hierarchical_kl(fine, dense, FINE, DENSE, 0.7), expected, atol=1e-5, rtol=1e-5)


def test_on_one_grid_it_is_the_mean_over_tokens() -> None:
    a, b = torch.randn(2, 2, 6, 3, 4, 4)
    expected = bernoulli_kl(bit_logits(a), bit_logits(b)).mean()
    assert torch.equal(hierarchical_kl(a, b, FINE, FINE), expected)


def test_the_first_frame_is_compared_with_the_first_frame_alone() -> None:
    fine, dense = levels()
    changed = dense.detach().clone()
    changed[:, :, 1:5] += 1
    cells = torch.autograd.grad(hierarchical_kl(fine, dense, FINE, DENSE), fine)[0]
    moved = torch.autograd.grad(hierarchical_kl(fine, changed, FINE, DENSE), fine)[0]
    differs = (cells - moved).abs().amax(dim=(0, 1, 3, 4)) > 1e-6
    assert differs.tolist() == [False, True, False]


def test_an_image_is_one_step() -> None:
    fine, dense = levels(steps=0)
    repeated = torch.cat([dense] + [dense] * 4, 2), torch.cat([fine, fine], 2)
    expected = hierarchical_kl(repeated[1], repeated[0], FINE, DENSE)
    torch.testing.assert_close(hierarchical_kl(fine, dense, FINE, DENSE), expected)


@pytest.mark.parametrize("stop_shallow", [False, True])
def test_a_step_against_the_gradient_brings_levels_closer(stop_shallow: bool) -> None:
    fine, dense = levels()
    before = hierarchical_kl(fine, dense, FINE, DENSE, stop_shallow=stop_shallow)
    before.backward()
    assert (dense.grad is None) == stop_shallow
    for level in (fine, dense):
        if level.grad is not None:
            assert hierarchical_kl(*(x - (x.grad if x is level else 0) for x in (fine, dense)), FINE, DENSE) < before


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0, 5), temperature=st.floats(0.1, 3))
def test_never_negative_and_a_mean_over_clips(seed: int, scale: float, temperature: float) -> None:
    torch.manual_seed(seed)
    fine, dense = levels(scale, batch=4)
    whole = hierarchical_kl(fine, dense, FINE, DENSE, temperature)
    assert whole.item() >= -1e-5
    halves = zip(fine.chunk(2), dense.chunk(2), strict=True)
    parts = torch.stack([hierarchical_kl(a, b, FINE, DENSE, temperature) for a, b in halves])
    torch.testing.assert_close(parts.mean(), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3, 1e4])
def test_extremes_are_finite(scale: float) -> None:
    fine, dense = levels(scale)
    loss = hierarchical_kl(fine, dense, FINE, DENSE)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (fine, dense)):
        assert gradient.isfinite().all()


def test_saturated_levels_that_disagree_still_have_a_gradient() -> None:
    fine, dense = torch.full((1, 4, 2, 4, 4), 1e3, requires_grad=True), torch.full((1, 4, 5, 1, 1), -1e3)
    loss = hierarchical_kl(dense.requires_grad_(), fine, DENSE, FINE)
    assert loss.item() == pytest.approx(4 * 2000)
    assert torch.autograd.grad(loss, fine)[0].gt(0).all()


def test_float32_under_autocast() -> None:
    fine, dense = (x.detach().bfloat16() for x in levels())
    expected = hierarchical_kl(fine, dense, FINE, DENSE)
    with torch.autocast("cpu", torch.bfloat16):
        found = hierarchical_kl(fine, dense, FINE, DENSE)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_grids_must_belong_together() -> None:
    fine, dense = levels()
    with pytest.raises(ValueError, match="one stride must divide the other"):
        hierarchical_kl(fine, dense, (3, 8, 8), (2, 32, 32))
    with pytest.raises(ValueError, match="does not fill whole cells"):
        hierarchical_kl(fine, dense[:, :, :-1], FINE, DENSE)
    with pytest.raises(ValueError, match="on one grid"):
        hierarchical_kl(fine, dense[:, :, :5], FINE, DENSE)


def test_distinct_words_are_counted_per_clip() -> None:
    ids = torch.tensor([[[7, 7], [2, 7]], [[2, 65535], [2, 2]]], dtype=torch.int32)
    words, shares = distinct_words(ids)
    assert words.tolist() == [2, 7, 65535]
    assert shares.tolist() == [[0.25, 0.75, 0], [0.75, 0, 0.25]]
