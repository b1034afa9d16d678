from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pyratok.losses.alignment import (
    contrastive_alignment,
    grounding,
    text_codebook_alignment,
    text_conditioned_alignment,
)
from pyratok.losses.codebook import distinct_words

B, N, D, M, GRID = 4, 6, 16, 2, (2, 3, 3)
MEMBERSHIP = torch.eye(B).repeat(1, 2)[:, :N]


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def halves() -> Tensor:
    """Masks of two objects that share the frame: the left column, and the two others."""
    masks = torch.zeros(B, M, *GRID)
    masks[:, 0, ..., :1] = 1
    masks[:, 1, ..., 1:] = 1
    return masks


def ground(tokens: Tensor, names: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    valid = torch.ones(B, M, dtype=torch.bool) if mask is None else mask.unsqueeze(1).expand(-1, M)
    return grounding(tokens, halves(), names, valid, **options)


Loss = Callable[..., Tensor]
LOSSES: dict[str, tuple[Loss, tuple[int, ...], tuple[int, ...]]] = {
    "tokens": (text_conditioned_alignment, (B, N, D), (B, D)),
    "words": (lambda v, e, mask=None: text_codebook_alignment(v, MEMBERSHIP, e, mask), (N, D), (B, D)),
    "contrast": (contrastive_alignment, (B, D), (B, D)),
    "grounding": (ground, (B, *GRID, D), (B, M, D)),
    "background": (lambda v, e, mask=None: ground(v, e, mask, background=0.2), (B, *GRID, D), (B, M, D)),
}
"""Each loss as a function of features, text and mask ``[B]``, and the shapes of the former."""
each = pytest.mark.parametrize(("loss", "features", "texts"), LOSSES.values(), ids=LOSSES)
Shape = tuple[int, ...]


@each
def test_a_step_against_the_gradient_aligns_and_text_stays(loss: Loss, features: Shape, texts: Shape) -> None:
    v, e = torch.randn(features, requires_grad=True), unit(*texts).requires_grad_()
    before = loss(v, e)
    before.backward()
    assert before > 0
    assert e.grad is None
    assert v.grad.abs().sum() > 0
    assert loss(v - v.grad, e) < before


@each
def test_descending_it_aligns_features_with_their_text(loss: Loss, features: Shape, texts: Shape) -> None:
    v, e = torch.randn(features, requires_grad=True), unit(*texts)
    before = loss(v, e).item()
    optimizer = torch.optim.Adam([v], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(v, e)
        value.backward()
        optimizer.step()
    assert value.item() < before / 3


@each
def test_clips_without_caption_contribute_nothing(loss: Loss, features: Shape, texts: Shape) -> None:
    v, e = torch.randn(features, requires_grad=True), unit(*texts)
    mask = torch.tensor([True, False, True, False])
    value = loss(v, e, mask)
    (gradient,) = torch.autograd.grad(value, v)
    other_text = torch.where(mask.view(-1, *[1] * (e.ndim - 1)), e, 0)
    assert torch.equal(loss(v, other_text, mask), value)
    if features[0] == B:
        assert gradient[~mask].eq(0).all()
        assert gradient[mask].ne(0).any()
        changed = torch.where(mask.view(-1, *[1] * (v.ndim - 1)), v, 1.0)
        assert torch.equal(loss(changed, e, mask), value)


@each
def test_a_batch_without_captions_is_an_exact_zero(loss: Loss, features: Shape, texts: Shape) -> None:
    v = torch.randn(features, requires_grad=True)
    value = loss(v, torch.zeros(texts), torch.zeros(B, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert v.grad.eq(0).all()


@each
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3, 1e6])
def test_extremes_are_finite(loss: Loss, features: Shape, texts: Shape, scale: float) -> None:
    v = (scale * torch.randn(features)).requires_grad_()
    value = loss(v, unit(*texts))
    value.backward()
    assert value.isfinite()
    assert v.grad.isfinite().all()


@each
def test_float32_under_autocast(loss: Loss, features: Shape, texts: Shape) -> None:
    v, e = torch.randn(features).bfloat16(), unit(*texts).bfloat16()
    expected = loss(v.float(), e.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(v, e)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@each
def test_shapes_must_fit(loss: Loss, features: Shape, texts: Shape) -> None:
    with pytest.raises(ValueError, match=r"need one batch|expected"):
        loss(torch.zeros(features), torch.zeros(texts)[:1])
    with pytest.raises(ValueError, match=r"need one batch|expected"):
        loss(torch.zeros(features), torch.zeros(texts)[..., 1:])


def test_tokens_in_the_direction_of_the_caption_cost_nothing() -> None:
    e = unit(B, D)
    assert text_conditioned_alignment(7 * e.unsqueeze(1).expand(-1, N, -1), e).item() == pytest.approx(0, abs=1e-5)
    words, membership = 7 * e, torch.eye(B)
    assert text_codebook_alignment(words, membership, e).item() == pytest.approx(0, abs=1e-5)
    assert text_codebook_alignment(words, membership.flip(0), e).item() > 0.1


def test_the_divergence_is_close_to_the_cosine_distance_at_high_temperature() -> None:
    tokens, e = unit(B, N, 64), unit(B, 64)
    distance = 1 - torch.einsum("bnd,bd->bn", tokens, e).mean()
    found = 10**2 * text_conditioned_alignment(tokens, e, temperature=10)
    torch.testing.assert_close(found, distance, atol=0.1, rtol=0)


def test_tokens_mean_over_clips() -> None:
    tokens, e = torch.randn(B, N, D), unit(B, D)
    whole = text_conditioned_alignment(tokens, e)
    parts = [text_conditioned_alignment(*half) for half in zip(tokens.chunk(2), e.chunk(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_words_weighted_by_their_tokens_equal_the_tokens() -> None:
    """Where a token's feature is that of its word, both terms of eq. 2 are the same mean."""
    table, ids, e = torch.randn(10, D), torch.randint(10, (B, 3, 2)), unit(B, D)
    words, shares = distinct_words(ids)
    expected = text_conditioned_alignment(table[ids.flatten(1)], e)
    torch.testing.assert_close(text_codebook_alignment(table[words], shares, e), expected)
    torch.testing.assert_close(text_codebook_alignment(table[words], 6 * shares, e), expected)


def test_contrast_is_zero_at_best_and_without_negatives() -> None:
    e = torch.eye(B, D)
    assert contrastive_alignment(3 * e, e, temperature=0.02).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_alignment(e.roll(1, 0), e, temperature=0.02).item() > 10
    assert contrastive_alignment(torch.ones(B, D), e).item() == pytest.approx(math.log(B), rel=1e-5)
    one = torch.arange(B) == 2
    assert contrastive_alignment(torch.randn(B, D), e, one).item() == 0


def test_clips_of_one_caption_are_positives() -> None:
    e = torch.eye(2, D).repeat_interleave(2, 0)
    assert contrastive_alignment(e, e, temperature=0.02).item() == pytest.approx(0, abs=1e-6)
    groups = torch.tensor([5, 5, -3, -3])
    v = torch.randn(B, D)
    assert torch.equal(contrastive_alignment(v, e, groups=groups), contrastive_alignment(v, e))
    assert contrastive_alignment(e, e, groups=torch.arange(B)).item() == pytest.approx(math.log(2), rel=1e-3)


def test_without_repetition_contrast_is_plain_infonce() -> None:
    v, e = torch.randn(B, D), unit(B, D)
    scores = F.normalize(v, dim=-1) @ e.T / 0.07
    expected = (F.cross_entropy(scores, torch.arange(B)) + F.cross_entropy(scores.T, torch.arange(B))) / 2
    torch.testing.assert_close(contrastive_alignment(v, e), expected)


def painted(names: Tensor, masks: Tensor) -> Tensor:
    """Tokens that are the names of the objects they lie in."""
    return torch.einsum("bmthw,bmd->bthwd", masks, names)


def test_tokens_that_are_their_names_cost_nothing() -> None:
    names, masks, valid = torch.eye(B * M, D).view(B, M, D), halves(), torch.ones(B, M, dtype=torch.bool)
    good = grounding(painted(names, masks), masks, names, valid, temperature=0.02)
    swapped = grounding(painted(names.flip(1), masks), masks, names, valid, temperature=0.02)
    assert good.item() == pytest.approx(0, abs=1e-6)
    assert swapped.item() == pytest.approx(50, rel=1e-3)
    undecided = grounding(torch.ones(B, *GRID, D), masks, names, valid)
    assert undecided.item() == pytest.approx(math.log(B * M), rel=1e-5)


def test_a_name_counts_once_however_often_it_occurs() -> None:
    names, valid = torch.eye(M, D).expand(B, M, D), torch.ones(B, M, dtype=torch.bool)
    tokens = torch.randn(B, *GRID, D)
    together = grounding(tokens, halves(), names, valid)
    alone = [grounding(*(x[i : i + 1] for x in (tokens, halves(), names, valid))) for i in range(B)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_masks_weigh_tokens_and_empty_ones_are_left_out() -> None:
    names, valid, masks = unit(B, M, D), torch.ones(B, M, dtype=torch.bool), halves()
    tokens = torch.randn(B, *GRID, D, requires_grad=True)
    torch.testing.assert_close(grounding(tokens, masks / 4, names, valid), grounding(tokens, masks, names, valid))
    masks[:, 1] = 0
    (gradient,) = torch.autograd.grad(grounding(tokens, masks, names, valid), tokens)
    assert gradient[..., 1:, :].eq(0).all()
    assert gradient[..., 0, :].ne(0).any()


def test_more_names_to_tell_from_count_as_those_of_the_batch_do() -> None:
    tokens, names, others = torch.randn(B, *GRID, D), unit(B, M, D), unit(5, D)
    alone = ground(tokens, names)
    told = ground(tokens, names, others=others)
    assert told > alone
    # A name that the batch has already, or that is given twice, is no stronger for it.
    repeated = torch.cat([others, others[:2], names[0]])
    torch.testing.assert_close(ground(tokens, names, others=repeated), told)
    # They are there where no object is, and change nothing then.
    assert ground(tokens, names, torch.zeros(B, dtype=torch.bool), others=others) == 0


def test_background_is_pushed_only_on_request() -> None:
    names, masks = unit(B, M, D), halves()
    masks[..., 2] = 0
    valid = torch.ones(B, M, dtype=torch.bool)
    valid[0] = False
    tokens = (names[:, :1, None, None] + 0.1 * torch.randn(B, *GRID, D)).requires_grad_()
    for background in (None, 0.1):
        (gradient,) = torch.autograd.grad(grounding(tokens, masks, names, valid, background=background), tokens)
        assert gradient[1:, ..., 2, :].ne(0).any() == (background is not None)
        # A clip of which no object is known has no known background either.
        assert gradient[0].eq(0).all()
    before, after = (F.cosine_similarity(x, names[:, :1, None, None], dim=-1) for x in (tokens, tokens - gradient))
    assert (after < before)[1:, ..., 2].all()
