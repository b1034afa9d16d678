"""Frechet distance between two sets of features: FID, FVD and their kin, whatever network the features come from.

The number belongs to the network, its input and the number of samples: distances of different extractors, or of
different sample counts, cannot be compared.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the distance needs of a set of features: ``mean`` ``[D]`` and ``covariance`` ``[D, D]``.

    Kept as float64 on the CPU. Raises ValueError for other shapes, values that are not finite, and no symmetry.
    """

    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        size = self.mean.shape[-1] if self.mean.ndim == 1 else 0
        if not size or self.covariance.shape != (size, size):
            raise ValueError(
                f"expected a mean [D] and a covariance [D, D], got {list(self.mean.shape)} and "
                f"{list(self.covariance.shape)}"
            )
        mean, covariance = self.mean.detach().cpu().double(), self.covariance.detach().cpu().double()
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("mean and covariance must be finite")
        if not torch.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-8):
            raise ValueError("a covariance must be symmetric")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", (covariance + covariance.T) / 2)


def feature_statistics(features: Tensor, *, correction: Literal[0, 1] = 1) -> FeatureStatistics:
    """Mean and covariance of features ``[N, D]``, any float type, computed in float64 on the CPU.

    The covariance is divided by ``N - correction``: 1 as in the first FID and FVD, 0 as in StyleGAN's. Warns when ``N``
    is below ``D + 1``: the covariance is then singular whatever the data, and the distance far too large. Raises
    ValueError for another shape, fewer than two rows, or values that are not finite.
    """
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(f"expected features [N, D] of at least two samples, got {list(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("features must be finite; the extractor gave NaN or infinity")
    samples, width = features.shape
    if samples < width + 1:
        warnings.warn(
            f"{samples} samples of {width} features: the Frechet distance needs at least {width + 1} to mean anything",
            stacklevel=2,
        )
    features = features.detach().cpu().double()
    covariance = torch.cov(features.T, correction=correction).reshape(width, width)
    return FeatureStatistics(features.mean(dim=0), covariance)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet (2-Wasserstein) distance of the Gaussians with these means and covariances, at least 0.

    ``|mu_a - mu_b|^2 + tr(A) + tr(B) - 2 tr((A^(1/2) B A^(1/2))^(1/2))``. Source: Dowson and Landau, The Frechet
    distance between multivariate normal distributions (1982); Heusel et al. (2017) for images, Unterthiner et al.
    (2018) for video. Raises ValueError for different widths and for matrices that are no covariances.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both sets need one extractor, got {len(a.mean)} and {len(b.mean)} features")
    # With A = R R^T and B = S S^T the last trace is the sum of the singular values of R^T S: the square roots of the
    # eigenvalues of A^(1/2) B A^(1/2), but never squared, so rounding stays at 1e-16 and does not grow to its root.
    cross = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    traces = a.covariance.trace() + b.covariance.trace()
    distance = (a.mean - b.mean).square().sum() + traces - 2 * cross
    return max(distance.item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """``R`` with ``R R^T`` the covariance, ``[D, D]``."""
    values, vectors = torch.linalg.eigh(covariance)
    largest = values[-1].clamp_min(0)
    if values[0] < -1e-6 * largest:
        raise ValueError(f"not a covariance: it has the eigenvalue {values[0].item():.3g}")
    rounding = torch.finfo(values.dtype).eps * len(values) * largest
    return vectors * torch.where(values > rounding, values, 0).sqrt()
