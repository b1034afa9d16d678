"""Entropies and divergences of binary words, as sums over bits.

The distribution over the 2^K words c in {-1, +1}^K that a token with values z stands for is

    q(c | z) = softmax_c( tau <z, c> ) = prod_i Bernoulli(c_i = +1; p_i),    p_i = sigmoid(2 tau z_i)

so it is a product of K Bernoullis and no table over words is needed. ``temperature`` is tau: it *multiplies*,
so larger is sharper. From this (H in nats):

    sample entropy   E[ H(q) ]  = mean over tokens of sum_i H(p_i)           to be made small: sharp words
    batch entropy    H( E[q] ) <= sum over groups of bits of H( E[q_group] ) to be made large: all words used

Sources: MAGVIT-v2 (arXiv 2310.05737), eq. 4-5, whose entropy loss is the first minus the second; PyraTok
(arXiv 2601.16210), eq. 2, entropy and hierarchical consistency terms, which names only the first.

All results are float32, computed in float32 from logits also under autocast; inputs are finite. The bits
lie along ``dim`` (default 1, as in ``[B, K, t, h, w]``), every other axis counts tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pyratok.nn.collective import mean_across_ranks

MAX_GROUP_BITS = 12


def bit_logits(presign: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits ``2 tau z`` of the bits, float32, shape of ``presign``."""
    return 2 * temperature * presign.float()


def bit_probabilities(presign: Tensor, temperature: float = 1.0) -> Tensor:
    """``p = sigmoid(2 tau z)``: how likely each bit is +1, float32 in [0, 1], shape of ``presign``."""
    return bit_logits(presign, temperature).sigmoid()


def sample_entropy(presign: Tensor, temperature: float = 1.0, dim: int = 1) -> Tensor:
    """``E[H(q)]``: mean over tokens of the sum over bits of H(p), scalar in [0, K log 2] nats.

    Source: MAGVIT-v2 eq. 5, first term; PyraTok eq. 2, entropy term.
    """
    size = bit_logits(presign, temperature).abs()
    # H(p) is even in the logit a; -log p and -log(1 - p) from |a| never subtract large numbers.
    entropy = F.softplus(-size) + size * torch.sigmoid(-size)
    return entropy.sum(dim).mean()


def batch_entropy(
    presign: Tensor, temperature: float = 1.0, dim: int = 1, group_bits: int = 1, *, across_ranks: bool = False
) -> Tensor:
    """``H(E[q])`` factorised over groups of ``group_bits`` neighbouring bits, scalar in [0, K log 2] nats.

    A group's distribution over its ``2**group_bits`` partial words is averaged over the tokens exactly, and the
    entropies of the groups are added: an upper bound of the joint entropy of the mean, tighter for wider
    groups and equal to it when one group holds all bits. With ``group_bits=1`` it is the sum over bits of
    ``H(mean p)``, which is blind to bits that merely repeat one another; with 8 such bits are seen within
    their group, at the price of two ``[tokens, 16]`` tables per group.

    With ``across_ranks`` the batch is that of all ranks, which hold equally many tokens and must call this together:
    the entropy of a part of the batch is lower than that of the whole, and no mean over ranks makes up for it. The
    value is the same on every rank, and averaging gradients over ranks gives that of the whole batch.

    Source: MAGVIT-v2 eq. 5, second term.

    Raises: ValueError for ``group_bits`` outside [1, 12].
    """
    if not 1 <= group_bits <= MAX_GROUP_BITS:
        raise ValueError(f"group_bits must be from 1 to {MAX_GROUP_BITS}, got {group_bits}")
    with torch.autocast(presign.device.type, enabled=False):
        logits_NK = bit_logits(presign, temperature).movedim(dim, -1).flatten(0, -2)
        means = [_mean_distribution(group) for group in logits_NK.split(group_bits, dim=1)]
        if across_ranks:
            means = list(mean_across_ranks(torch.cat(means)).split([len(mean) for mean in means]))
        # entr has an infinite slope at 0, where the probability of a word may underflow.
        tiny = torch.finfo(torch.float32).tiny
        return torch.stack([torch.special.entr(mean.clamp_min(tiny)).sum() for mean in means]).sum()


def _mean_distribution(logits_NG: Tensor) -> Tensor:
    """Token mean of a product of G Bernoullis, ``[2**G]``."""
    num_tokens, num_bits = logits_NG.shape
    low, high = (_words(part) for part in logits_NG.split([num_bits // 2, num_bits - num_bits // 2], dim=1))
    # The mean over tokens of an outer product is a matrix product: no [N, 2**G] table is ever held.
    return (high.T @ low / num_tokens).flatten()


def _words(logits_NG: Tensor) -> Tensor:
    """Probabilities ``[N, 2**G]`` of all partial words, bit i of the column index being bit i."""
    table = logits_NG.new_ones(logits_NG.shape[0], 1)
    for logit in logits_NG.unbind(1):
        one, zero = torch.sigmoid(logit)[:, None], torch.sigmoid(-logit)[:, None]
        table = torch.cat([table * zero, table * one], dim=1)
    return table


def bernoulli_kl(p_logits: Tensor, q_logits: Tensor, dim: int = 1) -> Tensor:
    """``KL(p || q)`` of two words given by the logits of their bits, summed over bits, in nats per token.

    ``p_logits`` and ``q_logits`` have one shape, that of the result without ``dim``; see :func:`bit_logits`.
    Zero where they agree, non-negative up to rounding. Hierarchical consistency takes a level as p and the
    level before, resampled to the same grid, as q.

    Source: PyraTok (arXiv 2601.16210), eq. 2, third term.

    Raises: ValueError where the shapes differ.
    """
    if p_logits.shape != q_logits.shape:
        raise ValueError(
            f"both levels must be on one grid, got {tuple(p_logits.shape)} and {tuple(q_logits.shape)}; resample one"
        )
    p, q = p_logits.float(), q_logits.float()
    one = torch.sigmoid(p) * (F.logsigmoid(p) - F.logsigmoid(q))
    zero = torch.sigmoid(-p) * (F.logsigmoid(-p) - F.logsigmoid(-q))
    return (one + zero).sum(dim)
