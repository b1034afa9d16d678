"""A fully connected conditional random field over a video: labels that keep to the edges of the picture and over time.

Each voxel i has a score per label and is tied to every other voxel, the more the nearer and the more alike they are:

    P(x) ~ exp( sum_i score_i(x_i) / temperature + sum_ij [x_i = x_j] (w_s K_s(i, j) + w_b K_b(i, j)) )

    k_s = exp( -|p_i - p_j|^2 / 2 space_s^2 - (t_i - t_j)^2 / 2 time_s^2 )                               smoothness
    k_b = exp( -|p_i - p_j|^2 / 2 space_b^2 - (t_i - t_j)^2 / 2 time_b^2 - |I_i - I_j|^2 / 2 colour^2 )  bilateral

K is k with ``D^-1/2 k D^-1/2``, D its row sums, so that weights mean the same at every size; i = j is included. Mean
field finds Q(x) = prod Q_i(x_i) close to P, by ``Q <- softmax(score / temperature + w_s K_s Q + w_b K_b Q)``.

Sources: PyraTok (arXiv 2601.16210), sec. 4 (zero-shot segmentation); Krähenbühl and Koltun, Efficient inference in
fully connected CRFs (arXiv 1210.5644); Adams et al., Fast high-dimensional filtering using the permutohedral lattice
(2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Backend = Literal["lattice", "exact", "pydensecrf"]
Filter = Callable[[Tensor], Tensor]
"""A kernel times values ``[N, L]``, one row per voxel."""

MAX_EXACT = 1 << 15
"""Voxels that the exact kernel, N x N, is computed for: 8 frames of 64 x 64."""
VOXELS_AT_ONCE = 1 << 18
ENTRIES_AT_ONCE = 1 << 22


@dataclass(frozen=True, kw_only=True)
class CRFConfig:
    """How sure scores are, how strong and how wide the ties.

    ``temperature``: what scores are divided by; for cosines, that of the training of the text head. ``smoothness`` and
    ``bilateral`` are the weights of the two kernels, in units of log odds, 0 for none; their widths (standard
    deviations) are in pixels (``_space``), frames (``_time``) and colour values in [-1, 1] (``_colour``).

    ``backend``: "lattice" takes memory and time linear in the voxels and needs no package; "exact" computes all pairs
    of up to :data:`MAX_EXACT` voxels; "pydensecrf" is the package pydensecrf2, also a lattice.
    """

    temperature: float = 0.07
    smoothness: float = 1.0
    smoothness_space: float = 3.0
    smoothness_time: float = 1.0
    bilateral: float = 4.0
    bilateral_space: float = 20.0
    bilateral_time: float = 4.0
    bilateral_colour: float = 0.15
    iterations: int = 5
    backend: Backend = "lattice"

    def __post_init__(self) -> None:
        for name in ("smoothness", "bilateral"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a weight, 0 or more, got {getattr(self, name)}")
            for width in ("temperature", f"{name}_space", f"{name}_time", "bilateral_colour"):
                if not 0 < getattr(self, width) < math.inf:
                    raise ValueError(f"{width} must be a positive number, got {getattr(self, width)}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be 1 or more, got {self.iterations}")
        if self.backend not in _BACKENDS:
            raise ValueError(f"backend is one of {', '.join(_BACKENDS)}, got {self.backend!r}")


@torch.no_grad()
def refine(scores: Tensor, video: Tensor, config: CRFConfig | None = None) -> Tensor:
    """Probabilities float32 ``[L, T, H, W]`` of L labels, summing to 1 over them, from ``scores`` of that shape.

    ``video``: ``[1, 3, T, H, W]`` in [-1, 1]. With both weights 0 the result is ``softmax(scores / temperature)``.
    The lattice takes about 300 bytes a voxel, and 20 more per label.

    Raises ValueError where the sizes differ, scores are not finite, or the volume is too large for "exact"; ImportError
    where "pydensecrf" is asked for and not installed.
    """
    config = config or CRFConfig()
    if video.ndim != 5 or scores.ndim != 4 or tuple(video.shape) != (1, 3, *scores.shape[1:]):
        raise ValueError(
            f"scores [L, T, H, W] need a video [1, 3, T, H, W] of their size, got {tuple(scores.shape)} and "
            f"{tuple(video.shape)}"
        )
    if not bool(scores.isfinite().all()):
        raise ValueError("scores must be finite: the best label of a voxel is not decided by infinity or NaN")
    unary = scores.float().flatten(1).T.contiguous() / config.temperature
    found = _BACKENDS[config.backend](unary, video.float().to(scores.device), config)
    return found.T.reshape(scores.shape).contiguous()


def _by_lattice(unary: Tensor, video: Tensor, config: CRFConfig) -> Tensor:
    ties: list[tuple[float, Filter]] = []
    if config.smoothness:
        widths = (config.smoothness_time, config.smoothness_space, config.smoothness_space)
        ties.append((config.smoothness, SeparableGaussian(tuple(video.shape[2:]), widths, video.device)))
    if config.bilateral:
        ties.append((config.bilateral, normalized(Lattice(_bilateral_features(video, config)), unary)))
    return mean_field(unary, ties, config.iterations)


def _by_pairs(unary: Tensor, video: Tensor, config: CRFConfig) -> Tensor:
    if unary.shape[0] > MAX_EXACT:
        raise ValueError(
            f"{unary.shape[0]} voxels are too many for the exact CRF ({MAX_EXACT}); take backend='lattice'"
        )
    ties = [
        (weight, normalized(PairwiseGaussian(features), unary))
        for weight, features in (
            (config.smoothness, _smoothness_features(video, config)),
            (config.bilateral, _bilateral_features(video, config)),
        )
        if weight
    ]
    return mean_field(unary, ties, config.iterations)


def _by_pydensecrf(unary: Tensor, video: Tensor, config: CRFConfig) -> Tensor:
    try:
        from pydensecrf import densecrf
    except ImportError:
        raise ImportError("backend='pydensecrf' needs a package: pip install pyratok[crf]; or take 'lattice'") from None
    field = densecrf.DenseCRF(*unary.shape)
    field.setUnaryEnergy((-unary.T).contiguous().cpu().numpy())
    for weight, features in (
        (config.smoothness, _smoothness_features(video, config)),
        (config.bilateral, _bilateral_features(video, config)),
    ):
        if weight:
            field.addPairwiseEnergy(features.T.contiguous().cpu().numpy(), compat=weight)
    found = field.inference(config.iterations)
    return torch.from_numpy(np.array(found, dtype=np.float32)).to(unary.device).T


_BACKENDS: dict[str, Callable[[Tensor, Tensor, CRFConfig], Tensor]] = {
    "lattice": _by_lattice,
    "exact": _by_pairs,
    "pydensecrf": _by_pydensecrf,
}


def mean_field(unary: Tensor, ties: list[tuple[float, Filter]], iterations: int) -> Tensor:
    """Marginals ``[N, L]`` for scores ``[N, L]`` and weighted kernels."""
    q = unary.softmax(dim=1)
    for _ in range(iterations):
        message = unary.clone()
        for weight, kernel in ties:
            message += weight * kernel(q)
        q = message.softmax(dim=1)
    return q


def normalized(kernel: Filter, like: Tensor) -> Filter:
    """``D^-1/2 k D^-1/2`` of a kernel over as many voxels as ``like`` ``[N, L]`` has."""
    scale = kernel(like.new_ones(like.shape[0], 1)).rsqrt()
    return lambda values: scale * kernel(scale * values)


def _gaussian(distance: Tensor) -> Tensor:
    # The bound keeps out subnormal numbers, with which a CPU is a hundred times slower.
    return (-0.5 * distance.square()).clamp_min(-60.0).exp()


class SeparableGaussian:
    """The Gaussian kernel over the places of a volume, normalized as :func:`normalized` does; exact.

    It is a product of one kernel per axis, and so are its row sums.
    """

    def __init__(self, shape: tuple[int, ...], widths: tuple[float, ...], device: torch.device) -> None:
        self.kernels = []
        for size, width in zip(shape, widths, strict=True):
            place = torch.arange(size, dtype=torch.float32, device=device) / width
            kernel = _gaussian((place[:, None] - place).abs())
            scale = kernel.sum(1).rsqrt()
            self.kernels.append(scale[:, None] * kernel * scale)

    def __call__(self, values: Tensor) -> Tensor:
        x, before = values, 1
        for kernel in self.kernels:
            x = kernel @ x.reshape(before, kernel.shape[0], -1)
            before *= kernel.shape[0]
        return x.reshape(values.shape)


class PairwiseGaussian:
    """``k(i, j) = exp(-|f_i - f_j|^2 / 2)`` of features ``[N, d]``, all pairs, some rows at a time."""

    def __init__(self, features: Tensor, entries_at_once: int = ENTRIES_AT_ONCE) -> None:
        self.features = features
        self.rows = max(1, entries_at_once // features.shape[0])

    def __call__(self, values: Tensor) -> Tensor:
        def message(rows: Tensor) -> Tensor:
            return _gaussian(torch.cdist(rows, self.features)) @ values

        return torch.cat([message(rows) for rows in self.features.split(self.rows)])


class Lattice:
    """About ``c exp(-|f_i - f_j|^2 / 2)`` of features ``[N, d]``, with some c, in time and memory linear in N.

    Each point lies in a simplex of d + 1 vertices of a permutohedral lattice. Its barycentric weights splat its values
    onto them; the vertices that any point touches are blurred with (1, 2, 1) along the d + 1 directions of the lattice,
    and the points read their result off with the same weights.

    A vertex has d + 1 coordinates, which a fixed odd multiplier each turns into one number of 64 bits: linear, so that
    neighbours are found by adding a constant. Two vertices near enough to matter do not share a number.
    """

    def __init__(self, features: Tensor, voxels_at_once: int = VOXELS_AT_ONCE) -> None:
        corners = features.shape[1] + 1
        multipliers = torch.randint(-(1 << 62), 1 << 62, (corners,), generator=torch.Generator().manual_seed(0)) | 1
        multipliers = multipliers.to(features.device)
        parts = [_simplices(part, multipliers) for part in features.split(voxels_at_once)]
        self.weights = torch.cat([weights for _, weights in parts])
        codes, order = torch.cat([code for code, _ in parts]).flatten().sort()
        del parts
        first = F.pad(codes.diff() != 0, (1, 0), value=True)
        vertices = torch.empty_like(order, dtype=torch.int32)
        vertices[order] = first.cumsum(0, dtype=torch.int32) - 1
        self.vertices = vertices.view(-1, corners)
        self.starts = first.nonzero().flatten().int()
        self.points = (order // corners).int()
        self.sorted_weights = self.weights.flatten()[order]
        self.neighbours = _neighbours(codes[first], corners * multipliers - multipliers.sum())

    def __call__(self, values: Tensor) -> Tensor:
        grid = F.embedding_bag(self.points, values, self.starts, mode="sum", per_sample_weights=self.sorted_weights)
        for before, after in self.neighbours:
            padded = F.pad(grid, (0, 0, 0, 1))
            grid = grid + 0.5 * (padded[before] + padded[after])
        return F.embedding_bag(self.vertices, grid, mode="sum", per_sample_weights=self.weights)


def _simplices(features: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """The vertices around each point, as numbers int64 ``[n, d + 1]``, and its barycentric weights float32."""
    dim = features.shape[1]
    corners = dim + 1
    elevated = features @ _elevation(dim).to(features)
    nearest = (elevated / corners).round() * corners
    rank = (elevated - nearest).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    # The nearest multiples need not sum to 0 as the points of the lattice do: move those with the largest error.
    rank += (nearest.sum(dim=1, keepdim=True) / corners).round().long()
    wrap = (rank < 0).long() - (rank > dim).long()
    rank += wrap * corners
    nearest += wrap * corners
    by_rank = rank.argsort(dim=1)
    rest = ((elevated - nearest) / corners).gather(1, by_rank)
    weights = torch.cat([1 + rest[:, -1:] - rest[:, :1], (rest[:, :-1] - rest[:, 1:]).flip(1)], dim=1)
    # Vertex k is k in every coordinate, less d + 1 in those of the k highest ranks.
    lowered = F.pad(multipliers[by_rank].flip(1).cumsum(dim=1)[:, :-1], (1, 0))
    origin = (nearest.long() * multipliers).sum(dim=1, keepdim=True)
    steps = torch.arange(corners, device=features.device) * multipliers.sum()
    return origin + steps - corners * lowered, weights


def _elevation(dim: int) -> Tensor:
    """The map ``[d, d + 1]`` to the plane of points that sum to 0, in units of the width of splat, blur and slice."""
    k = torch.arange(1, dim + 1, dtype=torch.float64)
    basis = torch.ones(dim, dim + 1, dtype=torch.float64).tril()
    basis[range(dim), range(1, dim + 1)] = -k
    return basis * (math.sqrt(2 / 3) * (dim + 1) / (k * (k + 1)).sqrt())[:, None]


def _neighbours(codes: Tensor, directions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Indices of the vertices one step back and ahead along each direction, M for those that no point touches."""

    def find(wanted: Tensor) -> Tensor:
        place = torch.searchsorted(codes, wanted).clamp_max(len(codes) - 1)
        return torch.where(codes[place] == wanted, place, len(codes)).int()

    return [(find(codes - step), find(codes + step)) for step in directions]


def _smoothness_features(video: Tensor, config: CRFConfig) -> Tensor:
    """Frame, row and column of each voxel ``[N, 3]`` in units of the kernel's widths."""
    return _places(video, config.smoothness_time, config.smoothness_space)


def _bilateral_features(video: Tensor, config: CRFConfig) -> Tensor:
    """Frame, row, column and colour of each voxel ``[N, 6]`` in units of the kernel's widths."""
    colours = video[0].flatten(1).T / config.bilateral_colour
    return torch.cat([_places(video, config.bilateral_time, config.bilateral_space), colours], dim=1)


def _places(video: Tensor, time: float, space: float) -> Tensor:
    widths = (time, space, space)
    axes = [torch.arange(n, device=video.device) / width for n, width in zip(video.shape[2:], widths, strict=True)]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)
