"""Losses that tie tokens to text: the KL terms of the codebook loss, and contrastive ones of our own.

Tokens and words come here as vectors ``[..., D]`` that a learned head has mapped to the text space; text is
``[B, D]``, a pooled caption or a name per object. Only directions count, so lengths need not be 1. The gradient stops
at the text.

A clip without a caption (``mask`` False, text of any finite value) contributes nothing, neither as a clip nor as a
negative; a batch without any caption gives an exact zero with zero gradients. Means over what a mask selects are over
all ranks (:mod:`pyratok.nn.collective`): each rank's value is its part, and averaging values and gradients over ranks
gives those of the whole batch. So every rank must call these together.

Everything is computed in float32, also under autocast. ``temperature`` divides, as is usual for a softmax: smaller is
sharper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pyratok.nn.collective import gather_across_ranks, mean_across_ranks

SAME_TEXT = 1 - 1e-4
"""Texts whose embeddings have at least this cosine count as one text; rounding stays far above it."""


def text_conditioned_alignment(
    tokens: Tensor, text: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """``E_i KL(q_i || sg(e_t))``: every token takes on the meaning of its clip's caption; scalar float32, nats.

    ``tokens`` ``[B, N, D]``, ``text`` ``[B, D]``, ``mask`` bool ``[B]``. Both become distributions over the D
    dimensions, ``softmax(sqrt(D) v / (|v| temperature))``: with sqrt(D), coordinates are of the order of 1 whatever D
    is, and for directions at a small angle, or at a high temperature, the divergence is close to
    ``(1 - cos) / temperature^2``. Mean over the tokens of a clip, then over captioned clips.

    Source: PyraTok (arXiv 2601.16210), sec. 3.2.2, eq. 2, fourth term; the distributions are our reading.

    Raises: ValueError where batch or width of the two differ.
    """
    _check_pairs("tokens", tokens, text)
    q, e = _log_distribution(tokens, temperature), _log_distribution(text.detach(), temperature)
    divergence = (q.exp() * (q - e.unsqueeze(1))).sum(-1).mean(1)
    return _masked_mean(divergence, _all_if_none(mask, text))


def text_codebook_alignment(
    words: Tensor, membership: Tensor, text: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """``E_c KL(c || sg(e_t))``: the words that a clip uses take on the meaning of its caption; scalar float32, nats.

    ``words`` ``[W, D]``: features of the distinct words of the batch, each from its bits alone. ``membership``
    ``[B, W]``, non-negative, no gradient: how much clip b uses word w, as counts or shares
    (:func:`pyratok.losses.codebook.distinct_words`) for a mean over its tokens, as 0 and 1 for a mean over its words;
    rows are scaled to add up to 1. ``text``, ``mask`` and the distributions as in :func:`text_conditioned_alignment`.
    Mean over the words of a clip, then over captioned clips.

    Source: PyraTok (arXiv 2601.16210), sec. 3.2.2, eq. 2, fifth term; the distributions are our reading.

    Raises: ValueError where the shapes do not fit together.
    """
    if membership.shape != (text.shape[0], words.shape[0]) or words.shape[1:] != text.shape[1:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (words, membership, text))
        raise ValueError(f"expected words [W, D], membership [B, W] and text [B, D], got {shapes}")
    with torch.autocast(words.device.type, enabled=False):
        c, e = _log_distribution(words, temperature), _log_distribution(text.detach(), temperature)
        # A matrix product in place of the difference of logarithms: no [B, W, D] table is ever held.
        divergence = (c.exp() * c).sum(-1) - e @ c.exp().T
        divergence = _weighted_mean(divergence, membership.detach().float())
    return _masked_mean(divergence, _all_if_none(mask, text))


def contrastive_alignment(
    pooled: Tensor,
    text: Tensor,
    mask: Tensor | None = None,
    temperature: float = 0.07,
    groups: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE between clips and captions, against those of all ranks; scalar float32, nats.

    ``pooled`` ``[B, D]``: a vector per clip; ``text`` ``[B, D]``; ``mask`` bool ``[B]``. With the positives P of i, the
    clips that have the same caption (and i itself), in both directions

        loss_i = KL( uniform over P || softmax_j( cos(v_i, e_j) / temperature ) )
               = - mean over p in P of log softmax_p - log |P|

    so that it is zero where all positives score alike and far above the rest, also when captions repeat; without
    repetition it is plain InfoNCE. Captions are the same where their embeddings are, or, if given, where ``groups``
    (integers ``[B]``, of one meaning on all ranks) are. A batch with a single caption gives zero.

    Ours, not the paper's: a KL to the one right caption has no negatives, so it can be met by tokens that fit every
    caption alike. The negatives make the value depend on the batch. The loss itself is that of CLIP (arXiv 2103.00020),
    with the targets of UniCL (arXiv 2204.03610).

    Raises: ValueError where the shapes differ.
    """
    _check_pairs("pooled", pooled, text)
    mask = _all_if_none(mask, text)
    with torch.autocast(pooled.device.type, enabled=False):
        clip, text = _unit(pooled), _unit(text.detach())
        all_clips, all_texts, captioned = (gather_across_ranks(x) for x in (clip, text, mask))
        same = _same(text, all_texts) if groups is None else groups.unsqueeze(1) == gather_across_ranks(groups)
        scores = torch.stack([clip @ all_texts.T, text @ all_clips.T]) / temperature
    positives = (same & captioned).float()
    num_positives = positives.sum(1).clamp_min(1)
    log_softmax = _without(scores, captioned).log_softmax(-1)
    divergence = -(positives * log_softmax).sum(-1) / num_positives - num_positives.log()
    return _masked_mean(divergence.mean(0), mask)


def grounding(
    tokens: Tensor,
    masks: Tensor,
    names: Tensor,
    valid: Tensor,
    temperature: float = 0.07,
    background: float | None = None,
    others: Tensor | None = None,
) -> Tensor:
    """Tokens in an object's mask are to point to its name among all names of the batch; scalar float32, nats.

    ``tokens`` ``[B, t, h, w, D]``; ``masks`` ``[B, M, t, h, w]`` in [0, 1], the share of a token that is the object;
    ``names`` ``[B, M, D]``; ``valid`` bool ``[B, M]``, False where there is no object. B and M are the same on every
    rank. For object m and token i

        loss_mi = - log( exp(s_im) / sum over n of exp(s_in) ),    s_in = cos(token_i, name_n) / temperature

    where n runs over the different names of all ranks: a name that occurs often is no stronger negative, and another
    object of the same name none at all. Mean over tokens weighted by the mask, then over the valid objects whose mask
    is not empty. ``others`` ``[V, D]`` are more names to tell from, the same on every rank: a batch alone holds few.

    Tokens outside the masks are left alone, unless ``background`` is given: the cosine, say 0.2, of "none of these",
    which then is one more name in the sum. The tokens outside all valid masks of a clip are one more object of that
    name, for clips that have a valid object at all.

    Ours, not the paper's, whose terms know no places: a caption-wide loss alone spreads a name over the whole frame.

    Raises: ValueError where the shapes do not fit together.
    """
    batch, *grid, width = tokens.shape
    objects = valid.shape[1:]
    if masks.shape != (batch, *objects, *grid) or names.shape != (batch, *objects, width) or len(grid) != 3:
        shapes = ", ".join(str(tuple(x.shape)) for x in (tokens, masks, names, valid))
        raise ValueError(
            f"expected tokens [B, t, h, w, D], masks [B, M, t, h, w], names [B, M, D], valid [B, M], got {shapes}"
        )
    weights = masks.detach().float().flatten(2) * valid.unsqueeze(-1)
    with torch.autocast(tokens.device.type, enabled=False):
        token, name = _unit(tokens).flatten(1, 3), _unit(names.detach())
        all_names, known = (gather_across_ranks(x).flatten(0, 1) for x in (name, valid))
        if others is not None:
            all_names = torch.cat([all_names, _unit(others.detach())])
            known = torch.cat([known, known.new_ones(len(others))])
        copies = (_same(all_names, all_names) & known).sum(1)
        # A share of 1/n for each of n copies, as a logarithm.
        scores = token @ all_names.T / temperature - copies.clamp_min(1).log()
        right = name @ token.mT / temperature
    normalizer = _without(scores, known).logsumexp(-1, keepdim=True).mT
    if background is not None:
        none = torch.full_like(normalizer, background / temperature)
        normalizer = torch.logaddexp(normalizer, none)
        right = torch.cat([right, none], dim=1)
        outside = (1 - weights.sum(1, keepdim=True)).clamp_min(0) * valid.any(1)[:, None, None]
        weights = torch.cat([weights, outside], dim=1)
    return _masked_mean(_weighted_mean(normalizer - right, weights), weights.sum(-1) > 0)


def _unit(v: Tensor) -> Tensor:
    """Unit vectors along the last axis, float32; the floor keeps the gradient at 0 moderate."""
    return F.normalize(v.float(), dim=-1, eps=1e-6)


def _same(a: Tensor, b: Tensor) -> Tensor:
    """Which of the unit vectors ``[A, D]`` and ``[B, D]`` stand for the same text, bool ``[A, B]``."""
    return a @ b.T >= SAME_TEXT


def _log_distribution(v: Tensor, temperature: float) -> Tensor:
    """``log softmax(sqrt(D) v / (|v| temperature))`` over the last axis, float32."""
    return (v.shape[-1] ** 0.5 / temperature * _unit(v)).log_softmax(-1)


def _without(scores: Tensor, kept: Tensor) -> Tensor:
    """Scores with the columns that are not kept taken out of a softmax; finite, so that no gradient is NaN."""
    return scores.masked_fill(~kept, torch.finfo(scores.dtype).min)


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the last axis, 0 where all weights are."""
    return (weights * values).sum(-1) / weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """This rank's part of the mean over the chosen values of all ranks; 0 where none is chosen."""
    count = mean_across_ranks(mask.sum().float())
    # Not 1: the mean count of two ranks, one of them without any, may be 0.5.
    return torch.where(mask, values, 0).sum() / count.clamp_min(1e-6)


def _all_if_none(mask: Tensor | None, text: Tensor) -> Tensor:
    return torch.ones(text.shape[0], dtype=torch.bool, device=text.device) if mask is None else mask


def _check_pairs(name: str, values: Tensor, text: Tensor) -> None:
    if text.ndim != 2 or (values.shape[0], values.shape[-1]) != tuple(text.shape):
        raise ValueError(f"{name} {tuple(values.shape)} and text {tuple(text.shape)} need one batch and one width")
