"""Lookup-free quantization (LFQ): a word is the signs of K numbers, and nothing is looked up.

Sources: MAGVIT-v2 (arXiv 2310.05737), sec. 3.1; PyraTok (arXiv 2601.16210), sec. 3.2.2. Unlike in the former,
the sign of 0 is +1 (:mod:`pyratok.quantization.bits`).

Everything here computes in float32 whatever comes in, also under autocast: a value that bfloat16 rounds
across zero would be another word.
"""

from __future__ import annotations

from torch import Tensor

from pyratok.quantization.bits import sign
from pyratok.types import LevelOutput


def quantize(presign: Tensor, limit: float | None = None) -> Tensor:
    """Signs of ``presign``, exactly -1 or +1, with a straight-through gradient.

    ``presign``: any shape, any float type, finite; the result has its shape, in float32. The gradient passes
    to ``presign`` as if the sign were the identity; with ``limit`` only where ``|presign| <= limit``, so that
    values far out already are not pushed further (the hard-tanh estimator of binarised networks).

    Raises: ValueError for a limit that is not positive.
    """
    if limit is not None and not limit > 0:
        raise ValueError(f"the limit of the straight-through gradient must be positive or None, got {limit}")
    z = presign.float()
    passed = z if limit is None else z.clamp(-limit, limit)
    # The usual z + (sign - z).detach() rounds; here the added term is an exact zero that carries the gradient.
    return sign(z.detach()) + (passed - passed.detach())


def lfq(presign: Tensor, dim: int = 1, limit: float | None = None) -> LevelOutput:
    """One quantized level from values ``[B, ..., K, ...]`` with the K bits along ``dim``, which becomes axis 1.

    A channel-last projection ``[B, t, h, w, K]`` is given with ``dim=-1``. Both fields of the result are
    float32 ``[B, K, t, h, w]``; ``limit`` as in :func:`quantize`.
    """
    z = presign.movedim(dim, 1).float()
    return LevelOutput(presign=z, bits=quantize(z, limit))


def commitment_loss(presign: Tensor, bits: Tensor) -> Tensor:
    """``mean (z - sg(c))^2``: pulls the values before the sign to their word, scalar float32.

    ``presign`` z and ``bits`` c have the same shape; no gradient reaches ``bits``. The mean is over tokens and
    bits, so the value does not depend on K.

    Source: PyraTok (arXiv 2601.16210), eq. 2, first term.
    """
    return (presign.float() - bits.detach().float()).square().mean()
