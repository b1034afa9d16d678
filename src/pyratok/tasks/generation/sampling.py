"""Drawing words: temperature, the most likely few, guidance, and noise that a seed brings back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.model.alignment import WordHead
from pyratok.quantization.bits import ids_to_signs
from pyratok.tasks.generation.config import PriorConfig

PerLevel = float | Sequence[float]
"""One value for all levels, or one for each."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How words are drawn. Where a sequence is allowed it has a value per level.

    ``temperature`` divides the logits, 0 takes the most likely; ``top_k`` (0: all) and ``top_p`` then keep the most
    likely values of a chunk of bits. ``guidance`` w draws from ``p(x | text)^w p(x)^(1-w)``; 1 is plain.

    For ``scale`` and ``masked`` priors: ``steps`` in which a level, or everything, is revealed, and
    ``choice_temperature``, how much chance there is in which words are kept first (MaskGIT, arXiv 2202.04200).
    """

    temperature: PerLevel = 1.0
    top_k: int | Sequence[int] = 0
    top_p: PerLevel = 1.0
    guidance: float = 1.0
    steps: int | Sequence[int] = 8
    choice_temperature: float = 1.0

    def per_level(self, name: str, num_levels: int) -> list[float]:
        """Raises ValueError where there is neither one value nor one per level, or one out of range."""
        value = getattr(self, name)
        values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)] * num_levels
        low, high = {"top_p": (0.0, 1.0), "steps": (1.0, 1e6)}.get(name, (0.0, 1e9))
        if len(values) != num_levels:
            raise ValueError(f"{name} needs one value, or one for each of {num_levels} levels; got {value}")
        if not all(low <= v <= high for v in values) or (name == "top_p" and min(values) == 0):
            raise ValueError(f"{name} is out of range: {value}")
        return values

    def __post_init__(self) -> None:
        for name in ("guidance", "choice_temperature"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")


TEMPERATURE, GUIDANCE, STEPS = 0.8, 4.0, 12
"""What the priors in the package are measured with."""


def advised(config: PriorConfig) -> dict[str, Any]:
    """:data:`TEMPERATURE`, :data:`GUIDANCE` and :data:`STEPS`, for :func:`~pyratok.tasks.generation.generate.generate`;
    no guidance for a prior that has always been told the caption, which has nothing to compare with."""
    chosen = {"temperature": TEMPERATURE, "steps": STEPS}
    return chosen | ({"guidance": GUIDANCE} if config.text_dropout else {})


class Noise:
    """Chance for a batch: clip b draws what seed + b draws for one clip, whoever is beside it."""

    def __init__(self, seed: int, batch: int, device: torch.device) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.generators = [torch.Generator().manual_seed(seed + clip) for clip in range(batch)]
        self.device = device

    def uniform(self, *shape: int) -> Tensor:
        """float64 ``[B, *shape]`` in [0, 1)."""
        drawn = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in self.generators]
        return torch.stack(drawn).to(self.device)


class Sampler:
    """Draws the words at places of a layout from hidden states.

    ``level`` int64 ``[n]`` says which settings a place follows. With ``guided`` the second half of every batch of
    hidden states has read no caption.
    """

    def __init__(
        self, head: WordHead, level: Tensor, num_levels: int, config: SamplingConfig, noise: Noise, *, guided: bool
    ) -> None:
        def at_places(name: str) -> Tensor:
            return torch.tensor(config.per_level(name, num_levels), device=level.device)[level][:, None]

        self.head, self.noise, self.config = head, noise, config
        values = torch.arange(1 << head.shape[1], device=level.device)
        self.signs = ids_to_signs(values, head.shape[1], dim=-1, dtype=head.tables.weight.dtype)
        self.weight = config.guidance if guided else None
        temperature, top_k = at_places("temperature"), at_places("top_k").long()
        greedy = temperature == 0
        self.temperature = temperature.masked_fill(greedy, 1.0)
        self.top_k = torch.where(greedy, 1, torch.where(top_k == 0, 1 << head.shape[1], top_k))
        self.top_p = at_places("top_p")
        self.cut = bool((self.top_k < 1 << head.shape[1]).any() or (self.top_p < 1).any())

    def twice(self, x: Tensor) -> Tensor:
        """A batch for both halves, where there are two."""
        return x if self.weight is None else torch.cat([x, x])

    def __call__(self, hidden: Tensor, places: slice) -> tuple[Tensor, Tensor]:
        """int64 words ``[B, m]`` and their log-likelihood, of what was drawn from, float32, for ``hidden``
        ``[B or 2B, m, H]`` of ``places``."""
        (chunks, bits), count = self.head.shape, hidden.shape[1]
        batch = hidden.shape[0] // (1 if self.weight is None else 2)
        signs = hidden.new_zeros(batch, count, 0)
        words = torch.zeros(batch, count, dtype=torch.int64, device=hidden.device)
        log_likelihood = torch.zeros(words.shape, device=hidden.device)
        chance = self.noise.uniform(count, chunks)
        for chunk in range(chunks):
            logits = self.head.chunk_logits(chunk, hidden, self.twice(signs)).float()
            if self.weight is not None:
                told, untold = logits.chunk(2)
                logits = torch.lerp(untold, told, self.weight)
            index, gained = self._choose(logits, chance[..., chunk], places)
            if chunk + 1 < chunks:
                signs = torch.cat([signs, F.embedding(index, self.signs)], dim=-1)
            words |= index << (chunk * bits)
            log_likelihood += gained
        return words, log_likelihood

    def _choose(self, logits: Tensor, chance: Tensor, places: slice) -> tuple[Tensor, Tensor]:
        """Indices ``[B, m]`` into ``logits`` ``[B, m, V]`` by inverting the distribution function at ``chance``."""
        logits = logits / self.temperature[places]
        if not self.cut:
            likelihood = logits.softmax(-1, dtype=torch.float64)
            index = _invert(likelihood, chance)
            return index, likelihood.gather(-1, index[..., None])[..., 0].log().float()
        ranked, names = logits.double().sort(dim=-1, descending=True, stable=True)
        likelihood = ranked.softmax(-1)
        before = likelihood.cumsum(-1) - likelihood
        rank = torch.arange(logits.shape[-1], device=logits.device)
        # What comes first is kept in any case, whatever rounding makes of its predecessors' zero.
        kept = (rank == 0) | ((rank < self.top_k[places]) & (before < self.top_p[places]))
        likelihood = likelihood * kept
        likelihood = likelihood / likelihood.sum(-1, keepdim=True)
        index = _invert(likelihood, chance)
        gained = likelihood.gather(-1, index[..., None])[..., 0].log().float()
        return names.gather(-1, index[..., None])[..., 0], gained


def _invert(likelihood: Tensor, chance: Tensor) -> Tensor:
    """The first index at which the sum of float64 ``likelihood`` exceeds ``chance``: never one of likelihood 0."""
    until = likelihood.cumsum(-1)
    target = chance[..., None] * until[..., -1:]
    return torch.searchsorted(until, target, right=True)[..., 0].clamp(max=likelihood.shape[-1] - 1)
