"""Low-rank adapters as a delta on the weight (LoRA, arXiv 2106.09685).

The adapter is a parametrization of the layer's weight: code that runs the layer sees one effective weight, so a fast
executor needs to know nothing of adapters. ``merge`` folds the delta into the plain weight, ``unmerge`` brings back
the base weight and the adapter beside it.

The two factors are those of PEFT: its convolution A of the base kernel followed by a 1x1 convolution B is the product
of the flattened kernels. As there, the rank is the same in every layer, also in one narrower than it: part of the
factors is redundant then, but rank and scale mean the same everywhere, and in files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Conv3d)
MERGED = "_merged_adapter"


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """``rank`` and ``alpha`` as in PyraTok (arXiv 2601.16210), App. D; the delta is scaled by ``alpha / rank``."""

    rank: int = 16
    alpha: float = 32.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"LoRA rank must be at least 1, got {self.rank}")


class LowRankDelta(nn.Module):
    """``W -> W + alpha / rank * B A``, kernels flattened; zero at the start, because B is.

    ``down`` is A ``[rank, in * kernel]``, ``up`` is B ``[out, rank]``, both float32 on the weight's device.
    """

    def __init__(self, weight: Tensor, config: LoRAConfig) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        self.config = config
        self.scale = config.alpha / config.rank
        self.down = nn.Parameter(torch.randn(config.rank, inputs, device=weight.device) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(outputs, config.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * (self.up @ self.down)).reshape(weight.shape).to(weight.dtype)


def inject(module: nn.Module, config: LoRAConfig, targets: tuple[str, ...] = ("",)) -> list[str]:
    """Adapt every linear and convolution whose name starts with one of ``targets``; its own weight is frozen.

    Returns the names of the adapted layers. A target that matches nothing, or a layer that has an adapter already,
    is an error, and then nothing is adapted.
    """
    layers = {name: layer for name, layer in adaptable_layers(module).items() if name.startswith(targets)}
    for target in targets:
        if not any(name.startswith(target) for name in layers):
            raise ValueError(f"LoRA target {target!r} matches no linear or convolution")
    twice = sorted(layers.keys() & adapted_layers(module).keys())
    if twice:
        raise ValueError(f"{len(twice)} layers have an adapter already, such as {twice[0]}; merge it first")
    for layer in layers.values():
        vars(layer).pop(MERGED, None)
        _attach(layer, LowRankDelta(cast(Tensor, layer.weight), config))
    return list(layers)


def adaptable_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Layers that can have an adapter, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, ADAPTABLE)}


def adapted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Layers with an adapter that is not merged, by name."""
    return {
        name: layer for name, layer in adaptable_layers(module).items() if parametrize.is_parametrized(layer, "weight")
    }


def adapter(layer: nn.Module) -> LowRankDelta:
    """The adapter of an adapted layer."""
    return cast(LowRankDelta, _weights(layer)[0])


def base_weight(layer: nn.Module) -> Tensor:
    """A layer's own weight, without the delta of its adapter if it has one."""
    adapted = parametrize.is_parametrized(layer, "weight")
    return cast(Tensor, _weights(layer).original if adapted else layer.weight)


def merge(module: nn.Module) -> nn.Module:
    """Fold every adapter into its layer's plain weight, in place; outputs stay the same up to rounding.

    Base weight and adapter are kept aside, out of parameters and state, for :func:`unmerge`.
    """
    for layer in adapted_layers(module).values():
        # An alias of the base keeps its memory when torch points the parameter to the merged values.
        aside = (base_weight(layer).detach(), adapter(layer))
        # A copy of an adapted layer has the same class, and torch removes the parametrization from the class.
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        vars(layer)[MERGED] = aside
    return module


def unmerge(module: nn.Module) -> nn.Module:
    """Undo :func:`merge`, in place: base weights come back bit for bit, with their adapters as they were.

    Changes made to a merged weight in between are lost. Layers that are not merged stay as they are.
    """
    for layer in adaptable_layers(module).values():
        aside: tuple[Tensor, LowRankDelta] | None = vars(layer).pop(MERGED, None)
        if aside is not None:
            base, delta = aside
            weight = cast(Tensor, layer.weight)
            # The module may have moved, or changed its type, while what was kept aside did not.
            weight.data = base.to(weight)
            _attach(layer, delta.to(weight.device))
    return module


def _attach(layer: nn.Module, delta: LowRankDelta) -> None:
    parametrize.register_parametrization(layer, "weight", delta)
    base_weight(layer).requires_grad_(False)


def _weights(layer: nn.Module) -> parametrize.ParametrizationList:
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)["weight"])
