"""Pictures of what tokens are alike: principal components as colours, and maps of neighbours by t-SNE.

Sources: PyraTok (arXiv 2601.16210), fig. 4 (PCA of each level's tokens) and fig. 6 (t-SNE); t-SNE: van der Maaten and
Hinton, JMLR 9 (2008), 2579-2605, exact, with the early exaggeration and the gains of its sec. 3.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pyratok.model.base import VideoTokenizer, led_by_a_frame
from pyratok.model.pyratok import PyraTok
from pyratok.tasks.cells import cell_vectors, true_cells
from pyratok.types import TokenPyramid

Space = Literal["words", "text"]
CLIPPED = 0.01
"""Share of the tokens at either end of a component that get its darkest and its brightest colour."""
EXAGGERATION = 12.0
MAX_POINTS = 5000
"""t-SNE here holds all pairs: 100 MB per matrix for as many points."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PCA:
    """``coordinates`` ``[n, k]`` along unit ``components`` ``[k, D]``, best first; ``explained`` ``[k]``, the share of
    all variance that each holds."""

    coordinates: Tensor
    components: Tensor
    explained: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenMap:
    """Tokens in the plane: ``points`` float32 ``[n, 2]``, and of each its ``level`` ``[n]`` and its ``cell``
    ``[n, 3]``, the ``(t, h, w)`` on the grid of that level (int64)."""

    points: Tensor
    level: Tensor
    cell: Tensor


@torch.no_grad()
def pca_pictures(model: VideoTokenizer, tokens: TokenPyramid, space: Space = "words") -> tuple[Tensor, ...]:
    """Every level of one clip as pictures float32 ``[t, h, w, 3]`` in [0, 1], a pixel per token.

    Red, green and blue are the first three principal components of the level's tokens: like colours are like tokens.
    ``space`` as in :func:`token_vectors`, which raises the same errors.
    """
    pictures = []
    for level in range(len(tokens.levels)):
        vectors = token_vectors(model, tokens, level, space)
        flat = vectors.flatten(0, 2)
        found = torch.zeros(len(flat), 3)
        k = min(3, *flat.shape)
        found[:, :k] = pca(flat, k).coordinates
        pictures.append(_to_unit_range(found).view(*vectors.shape[:3], 3))
    return tuple(pictures)


@torch.no_grad()
def token_map(
    model: VideoTokenizer,
    tokens: TokenPyramid,
    space: Space = "words",
    *,
    max_tokens: int = 1500,
    perplexity: float = 30.0,
    seed: int = 0,
) -> TokenMap:
    """The tokens of all levels of one clip in one plane, by :func:`tsne`; as many of each level, drawn by ``seed``.

    ``max_tokens`` in all. Raises ValueError as :func:`token_vectors` and :func:`tsne`.
    """
    if max_tokens < 4:
        raise ValueError(f"a map needs at least 4 tokens, got max_tokens = {max_tokens}")
    generator = torch.Generator().manual_seed(seed)
    vectors, levels, cells = [], [], []
    for level in range(len(tokens.levels)):
        grid = token_vectors(model, tokens, level, space)
        count = math.prod(grid.shape[:3])
        chosen = torch.randperm(count, generator=generator)[: max(1, max_tokens // len(tokens.levels))].sort().values
        vectors.append(grid.flatten(0, 2)[chosen])
        levels.append(torch.full_like(chosen, level))
        cells.append(torch.stack(torch.unravel_index(chosen, grid.shape[:3]), dim=1))
    points = tsne(torch.cat(vectors), perplexity=perplexity)
    return TokenMap(points=points, level=torch.cat(levels), cell=torch.cat(cells))


def token_vectors(model: VideoTokenizer, tokens: TokenPyramid, level: int, space: Space) -> Tensor:
    """Vectors of a level's tokens of one clip, float32 ``[t, h, w, D]`` on the CPU; tokens of padding left out.

    ``space``: "words" is what the decoder reads, q^(l) with the levels before it (of other tokenizers than PyraTok the
    signs alone); "text" the unit vectors of the text space. Raises ValueError for another one, a batch of clips,
    tokens of another model, and "text" of a model without text head.
    """
    if space not in get_args(Space):
        raise ValueError(f"tokens are shown in the space of {' or '.join(get_args(Space))}, got {space!r}")
    if tokens.batch_size != 1:
        raise ValueError(f"pictures are of one clip, got {tokens.batch_size}; take one by tokens.select(index)")
    model.check_tokens(tokens)
    if space == "text":
        return torch.nn.functional.normalize(cell_vectors(model, tokens, level), dim=-1).cpu()
    signs = model.signs_of(led_by_a_frame(tokens).prefix(level + 1))
    features = model.lapq.pyramid(signs)[-1] if isinstance(model, PyraTok) else signs[-1]
    held = features[0].movedim(0, -1)[-tokens.levels[level].shape[1] :]
    return true_cells(held.float().cpu(), tokens.geometry, level)


def pca(points: Tensor, k: int = 3) -> PCA:
    """Principal components of ``[n, D]``, computed in float64; the entry of a component that is largest is positive.

    Raises ValueError for ``k`` beyond n or D. Where all points are the same nothing is explained.
    """
    if points.ndim != 2 or not 1 <= k <= min(points.shape):
        raise ValueError(f"points [n, D] have 1 to min(n, D) components, asked {list(points.shape)} for {k}")
    centred = points.double() - points.double().mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    components = vectors.flip(1).T[:k]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    variance = values.clamp_min(0)
    total = variance.sum()
    explained = variance.flip(0)[:k] / total if total > 0 else torch.zeros(k, dtype=torch.float64)
    return PCA(coordinates=(centred @ components.T).float(), components=components.float(), explained=explained.float())


@torch.no_grad()
def tsne(points: Tensor, *, perplexity: float = 30.0, steps: int = 500) -> Tensor:
    """Points ``[n, D]`` in the plane ``[n, 2]``, near where they are near: exact t-SNE, begun at the first two
    principal components, so that the same points always give the same map.

    ``perplexity``: about how many neighbours a point has; lowered to a third of the points where there are few.
    O(n^2) memory and time per step. Raises ValueError for fewer than 4 or more than :data:`MAX_POINTS` points, and a
    perplexity below 1.
    """
    if points.ndim != 2 or not 4 <= len(points) <= MAX_POINTS:
        raise ValueError(f"t-SNE takes 4 to {MAX_POINTS} points [n, D], got {list(points.shape)}")
    if perplexity < 1:
        raise ValueError(f"perplexity is a number of neighbours from 1 up, got {perplexity}")
    count = len(points)
    conditional = affinities(points, min(perplexity, (count - 1) / 3))
    joint = ((conditional + conditional.T) / (2 * count)).clamp_min(1e-12)
    start = torch.zeros(count, 2)
    start[:, : min(2, points.shape[1])] = pca(points, min(2, points.shape[1])).coordinates
    y = start / start.std(0).max().clamp_min(1e-12) * 1e-4
    y = y + 1e-6 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))  # equal points come apart
    velocity, gains = torch.zeros_like(y), torch.ones_like(y)
    rate = max(count / EXAGGERATION / 4, 50.0)  # Belkina et al. (2019), Nature Communications 10, 5415
    for step in range(steps):
        early = step < steps // 4
        kernel = 1 / (1 + _squared_distances(y))
        kernel.fill_diagonal_(0)
        pull = ((EXAGGERATION if early else 1.0) * joint - kernel / kernel.sum()) * kernel
        gradient = 4 * (pull.sum(1, keepdim=True) * y - pull @ y)
        gains = torch.where(gradient.sign() == velocity.sign(), gains * 0.8, gains + 0.2).clamp_min(0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y


def affinities(points: Tensor, perplexity: float) -> Tensor:
    """``p(j | i)`` float32 ``[n, n]``: Gaussians around the points i, as wide as gives them that perplexity."""
    distances = _squared_distances(points.float())
    distances.fill_diagonal_(math.inf)
    scale = distances[distances.isfinite()].mean().clamp_min(1e-12)
    low, high = (torch.full((len(points), 1), value) for value in (-30.0, 30.0))
    for _ in range(50):
        middle = (low + high) / 2
        p = (-distances / scale * middle.exp()).softmax(1)
        entropy = -torch.xlogy(p, p).sum(1, keepdim=True)
        wide = entropy > math.log(perplexity)
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    return p


def _squared_distances(points: Tensor) -> Tensor:
    # Not by a matrix product, which cancels between near points.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()


def _to_unit_range(values: Tensor) -> Tensor:
    """Columns of ``[n, 3]`` stretched to [0, 1], ends clipped; one that hardly varies beside the others becomes 0.5."""
    ends = torch.tensor([CLIPPED, 1 - CLIPPED], dtype=values.dtype)
    low, high = torch.quantile(values, ends, dim=0)
    spread = high - low
    varies = spread > 1e-5 * spread.max()
    return torch.where(varies, ((values - low) / spread).clamp(0, 1), 0.5)
