"""Codebook terms between levels. The terms within a level are in :mod:`pyratok.quantization`: ``lfq.commitment_loss``
and the entropies; those with text in :mod:`pyratok.losses.alignment`.
"""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor
from torch.nn import functional as F

from pyratok.quantization.entropy import bernoulli_kl, bit_logits
from pyratok.types import Stride


def hierarchical_kl(
    deep: Tensor,
    shallow: Tensor,
    deep_stride: Stride,
    shallow_stride: Stride,
    temperature: float = 1.0,
    *,
    stop_shallow: bool = False,
) -> Tensor:
    """Hierarchical consistency ``KL(q^(l) || q^(l-1))`` of two neighbouring levels, scalar float32 in nats per cell.

    An assignment is a product of K Bernoullis ``p = sigmoid(2 tau z)`` (:mod:`pyratok.quantization.entropy`; larger
    ``temperature`` tau is sharper). The levels meet on the grid whose stride is the larger one along each axis. There

        P_i = mean over a level's tokens in the cell of p_i
        loss = mean over clips and cells of sum_i KL( Bernoulli(P_i^deep) || Bernoulli(P_i^shallow) )

    ``deep`` z^(l) and ``shallow`` z^(l-1), ``[B, K, t, h, w]``, are values before the sign; ``*_stride`` is how many
    frames, rows and columns of video a token stands for. Time is causal: step 0 is the first frame alone in every
    grid, a later cell takes the r steps it covers. The gradient reaches both levels, with ``stop_shallow`` the deep
    one alone (the shallow one is then a teacher).

    Source: PyraTok (arXiv 2601.16210), sec. 3.2.2, eq. 2, third term; the common grid is our reading.

    Raises: ValueError for strides of which neither divides the other, or grids that do not belong to one video.
    """
    strides = list(zip(deep_stride, shallow_stride, strict=True))
    if any(max(pair) % min(pair) for pair in strides):
        raise ValueError(f"along each axis one stride must divide the other, got {deep_stride} and {shallow_stride}")
    cell = tuple(max(pair) for pair in strides)
    if stop_shallow:
        shallow = shallow.detach()
    p = _pooled_logits(deep, deep_stride, cell, temperature)
    q = _pooled_logits(shallow, shallow_stride, cell, temperature)
    return bernoulli_kl(p, q).mean()


def distinct_words(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The words in use in a batch of ids ``[B, ...]``, and how much each clip uses them.

    Returns the W different ids in rising order, ``[W]``, and float32 ``[B, W]``: the share of a clip's tokens that are
    that word (rows add up to 1), as :func:`pyratok.losses.alignment.text_codebook_alignment` takes it.
    """
    flat = ids.flatten(1)
    words, index = flat.unique(return_inverse=True)
    share = torch.full(flat.shape, 1 / flat.shape[1], device=ids.device)
    shares = torch.zeros(flat.shape[0], len(words), device=ids.device)
    return words, shares.scatter_add_(1, index, share)


def _pooled_logits(presign: Tensor, stride: Stride, cell: tuple[int, ...], temperature: float) -> Tensor:
    """Logit of the mean probability of each bit in each cell, float32 ``[B, K, t', h', w']``.

    As ``log mean p - log mean (1 - p)``, each from logarithms, it is exact where a probability rounds to 0 or 1, and
    needs no clamp, behind which there would be no gradient.
    """
    steps, rows, columns = (wide // narrow for wide, narrow in zip(cell, stride, strict=True))
    logits = bit_logits(presign, temperature)
    t, h, w = logits.shape[2:]
    if (t - 1) % steps or h % rows or w % columns:
        raise ValueError(f"a {t}x{h}x{w} grid of stride {stride} does not fill whole cells of stride {cell}")
    if steps == rows == columns == 1:
        return logits
    # The first frame, repeated to fill its cell, leaves the mean as it is.
    logits = torch.cat([logits[:, :, :1].expand(-1, -1, steps - 1, -1, -1), logits], dim=2)
    cells = "b k (t steps) (h rows) (w columns) -> b k t h w"
    one, zero = (
        reduce(F.logsigmoid(x), cells, torch.logsumexp, steps=steps, rows=rows, columns=columns)
        for x in (logits, -logits)
    )
    return one - zero
