"""Low-rank adapters as a delta on the weight (LoRA, arXiv 2106.09685).

The adapter is a parametrization of the layer's weight: code that runs the layer sees one effective weight, so a fast
executor needs to know nothing of adapters. ``merge`` folds the delta into the plain weight again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """``rank`` and ``alpha`` as in the paper's App. D; the delta is scaled by ``alpha / rank``."""

    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be at least 1, got {self.rank}")


class LowRankDelta(nn.Module):
    """``W -> W + scale * B A``, kernels flattened to ``[out, in * kernel]``; zero at the start, because B is."""

    def __init__(self, weight: Tensor, config: LoRAConfig) -> None:
        super().__init__()
        flat = weight.reshape(weight.shape[0], -1)
        rank = min(config.rank, *flat.shape)
        self.scale = config.alpha / config.rank
        self.down = nn.Parameter(torch.randn(rank, flat.shape[1]) * flat.shape[1] ** -0.5)
        self.up = nn.Parameter(torch.zeros(flat.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.up @ self.down)).reshape(weight.shape).to(weight.dtype)


def inject(module: nn.Module, config: LoRAConfig, targets: tuple[str, ...] = ("",)) -> list[str]:
    """Adapt every linear and convolution whose name starts with one of ``targets``; its own weight is frozen.

    Returns the names of the adapted layers. A target that matches nothing is an error, and then nothing is adapted.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, ADAPTABLE) and name.startswith(targets)
    }
    for target in targets:
        if not any(name.startswith(target) for name in layers):
            raise ValueError(f"LoRA target {target!r} matches no linear or convolution")
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", LowRankDelta(layer.weight, config))
        layer.parametrizations["weight"].original.requires_grad_(False)  # type: ignore[index,union-attr]
    return list(layers)


def adapted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Layers with an adapter, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, ADAPTABLE) and parametrize.is_parametrized(layer, "weight")
    }


def merge(module: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's plain weight, in place; outputs stay the same up to rounding."""
    for layer in adapted_layers(module).values():
        # A copy of an adapted layer has the same class, and torch removes the parametrization from the class.
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module
