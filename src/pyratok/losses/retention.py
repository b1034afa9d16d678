"""Losses that keep adapted features near those of a frozen reference; the gradient stops at the reference.

Both compute in float32, also under autocast, and are plain means over positions: on several ranks, the mean over ranks
of values and gradients is that of the whole batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def feature_kl(adapted: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
    """``L_drift = KL(adapted || sg(reference))``, scalar float32 in nats per position.

    ``adapted`` and ``reference`` ``[B, C, ...]``, of one shape; the features of a position become a distribution over
    channels, ``softmax(f / temperature)``, as they are: a common shift of all channels does not count, scale does.
    Mean over clips and positions.

    Source: PyraTok (arXiv 2601.16210), sec. 3.2.3, drift; the softmax over channels is our reading.

    Raises: ValueError where the shapes differ.
    """
    _check_shapes(adapted, reference)
    p = (adapted.float() / temperature).log_softmax(1)
    q = (reference.detach().float() / temperature).log_softmax(1)
    return (p.exp() * (p - q)).sum(1).mean()


def frame_retention(adapted: Tensor, reference: Tensor) -> Tensor:
    """``mean over clips and frames of 1 - cos(adapted, sg(reference))``, scalar float32 in [0, 2].

    Both ``[B, T, C]``: one pooled feature per frame.

    Source: PyraTok (arXiv 2601.16210), App. D, stage 3: frame-level retention; the cosine is our reading.

    Raises: ValueError where the shapes differ.
    """
    _check_shapes(adapted, reference)
    return 1 - F.cosine_similarity(adapted.float(), reference.detach().float(), dim=-1, eps=1e-6).mean()


def _check_shapes(adapted: Tensor, reference: Tensor) -> None:
    if adapted.shape != reference.shape:
        raise ValueError(
            f"adapted and reference features need one shape, got {tuple(adapted.shape)} and {tuple(reference.shape)}"
        )
