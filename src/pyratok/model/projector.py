"""Tokens of all levels as vectors that a large language model reads before a question.

```
signs of level l ── word + place ── mean over neighbours ── width of the language model ──┐
                                                       <mark 1> level 1 <mark 2> level 2 ... -> [B, n, width]
```

Source: PyraTok (arXiv 2601.16210), sec. 4, video QA. The paper does not say how tokens are projected; a level has
thousands of them, so neighbours are averaged, after a layer that tells words apart, until the level fits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.config import from_dict, to_dict
from pyratok.model.companions import companion, require_tokenizer, save_companion
from pyratok.nn.waves import waves
from pyratok.types import ModelId
from pyratok.vae.hub import read_weights

FORMAT, VERSION = "pyratok-token-projector", 1
OCTAVES = 8


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Shape of a :class:`TokenProjector`; ``width`` is that of the language model named ``language_model``."""

    num_levels: int
    width: int
    language_model: str
    num_bits: int = 16
    hidden_size: int = 512
    max_tokens_per_level: int = 256

    def __post_init__(self) -> None:
        for name in ("num_levels", "width", "num_bits", "hidden_size", "max_tokens_per_level"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class TokenProjector(nn.Module):
    """Signs of all levels to vectors that stand before a question; trained while the language model stays as it is."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Linear(config.num_bits, config.hidden_size)
        self.place = nn.Linear(6 * OCTAVES, config.hidden_size)
        self.level = nn.Parameter(torch.randn(config.num_levels, config.hidden_size) * 0.02)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.width)
        self.marks = nn.Parameter(torch.randn(config.num_levels, config.width) * 0.02)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """``levels``: signs in {-1, +1} ``[B, K, t, h, w]`` of all levels; the result is ``[B, n, width]``.

        A mark and at most ``max_tokens_per_level`` vectors per level, in t, h, w order. Raises ValueError for levels
        that do not fit the configuration.
        """
        config = self.config
        if len(levels) != config.num_levels or any(signs.shape[1] != config.num_bits for signs in levels):
            found = [list(signs.shape) for signs in levels]
            raise ValueError(
                f"expected {config.num_levels} levels of signs [B, {config.num_bits}, t, h, w], got {found}"
            )
        return torch.cat([part for index, signs in enumerate(levels) for part in self._level(index, signs)], dim=1)

    def _level(self, index: int, signs: Tensor) -> tuple[Tensor, Tensor]:
        words = self.word(signs.movedim(1, -1).to(self.word.weight.dtype))
        hidden = F.gelu(words + self.place(_waves(signs)) + self.level[index])
        grid = fitting_grid(signs.shape[2:], self.config.max_tokens_per_level)
        pooled = F.adaptive_avg_pool3d(F.gelu(self.mix(hidden)).movedim(-1, 1), grid)
        tokens = cast(Tensor, self.out(self.norm(pooled.flatten(2).transpose(1, 2))))
        return self.marks[index].expand(len(tokens), 1, -1), tokens


def fitting_grid(grid: Sequence[int], most: int) -> tuple[int, int, int]:
    """The grid ``(t, h, w)`` with its longest side halved, rounded up, until at most ``most`` cells are left."""
    sides = list(grid)
    while math.prod(sides) > most:
        longest = max(range(3), key=sides.__getitem__)
        sides[longest] = -(-sides[longest] // 2)
    return sides[0], sides[1], sides[2]


def _waves(signs: Tensor) -> Tensor:
    """Where each cell of ``[B, K, t, h, w]`` lies, relative to its grid: waves ``[t, h, w, 6 * OCTAVES]``."""
    axes = [(torch.arange(side, device=signs.device) + 0.5) / side for side in signs.shape[2:]]
    cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return waves(cells, OCTAVES)


def save_projector(projector: TokenProjector, folder: str | os.PathLike[str], tokenizer: ModelId) -> None:
    """Write ``config.json`` and ``model.safetensors``, whole or not at all; ``tokenizer``: whose tokens it reads."""
    config = {"tokenizer": to_dict(tokenizer), "projector": to_dict(projector.config)}
    save_companion(folder, {"format": FORMAT, "version": VERSION} | config, projector.state_dict())


def load_projector(folder: str | os.PathLike[str], tokenizer: ModelId) -> TokenProjector:
    """Read a projector for inference (evaluation mode, no gradients).

    Raises :class:`~pyratok.model.pretrained.ModelLoadError` for a damaged or foreign folder, and for a projector of
    another tokenizer's tokens.
    """
    with companion(folder, FORMAT, VERSION) as (weights, header):
        require_tokenizer("projector", from_dict(ModelId, header["tokenizer"]), tokenizer)
        projector = TokenProjector(from_dict(ProjectorConfig, header["projector"]))
        projector.load_state_dict(read_weights(weights))
    return projector.eval().requires_grad_(False)
