"""Temporal consistency of a video, judged by the embeddings of its frames."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def temporal_consistency(embeddings: Tensor) -> float:
    """TC of one video: 100 times the mean cosine of consecutive frames' embeddings ``[T, D]``; from -100 to 100.

    The paper reports TC without defining it. This is CLIP-Temp of EvalCrafter (Liu et al., 2024) when the embeddings
    are those of CLIP ViT-B/32 with CLIP's own normalisation of pixels; another encoder gives another number. The length
    of an embedding does not matter. The TC of many videos is the mean over videos. Raises ValueError for another shape,
    fewer than two frames, or an embedding that is zero or not finite, since it has no direction.
    """
    if embeddings.ndim != 2 or len(embeddings) < 2:
        raise ValueError(f"expected the embeddings [T, D] of at least two frames, got {list(embeddings.shape)}")
    frames = embeddings.detach().double()
    if not frames.isfinite().all() or not frames.any(dim=1).all():
        raise ValueError("every frame needs a finite embedding other than zero")
    # cosine_similarity alone would lose the direction of very short vectors to its epsilon
    frames = frames / frames.abs().amax(dim=1, keepdim=True)
    return float(100 * F.cosine_similarity(frames[:-1], frames[1:], dim=1).mean())
