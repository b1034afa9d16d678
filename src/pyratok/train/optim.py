"""Optimisers and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

# Quintic Newton-Schulz coefficients of Muon (Jordan et al. 2024): steep at zero, singular values end near one.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """``name``: "adamw", or "muon" (convolution and linear weights by Muon, the rest by AdamW).

    The learning rate rises linearly over ``warmup`` steps, stays, and falls along a cosine to ``final_lr_ratio``
    over the last ``decay_share`` of the run: a run can be lengthened without having decayed too early.
    ``ema_decay`` of the averaged weights that are shipped; ``grad_clip`` bounds the global gradient norm.
    """

    name: str = "muon"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 100
    decay_share: float = 0.3
    final_lr_ratio: float = 0.02
    grad_clip: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"name must be 'adamw' or 'muon', got {self.name!r}")
        for field, fits, wanted in (
            ("lr", 0 < self.lr < math.inf, "a positive number"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "in [0, 1)"),
            ("warmup", self.warmup >= 0, "0 or more"),
            ("decay_share", 0 <= self.decay_share <= 1, "in [0, 1]"),
            ("final_lr_ratio", 0 <= self.final_lr_ratio <= 1, "in [0, 1]"),
            ("grad_clip", self.grad_clip > 0, "a positive number"),
            ("ema_decay", 0 <= self.ema_decay < 1, "in [0, 1)"),
        ):
            if not fits:
                raise ValueError(f"{field} must be {wanted}, got {getattr(self, field)}")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` (from 0) in a run of ``steps``."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        decay_steps = round(steps * self.decay_share)
        progress = min(1.0, max(0.0, (step + 1 - (steps - decay_steps)) / max(1, decay_steps)))
        fall = 0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * progress)))
        return self.lr * rise * (self.final_lr_ratio + (1 - self.final_lr_ratio) * fall)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of ``[rows, columns]`` to about one, keeping its singular vectors.

    The iteration runs on the small Gram matrix G = M M^T alone: every iterate is a polynomial in G times M, so two
    products with the long side suffice in place of two per step. Flattened 3-D kernels are 10 to 30 times longer
    than wide, and this makes the optimiser's share of a CPU step negligible.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T, steps).T
    a, b, c = NEWTON_SCHULZ
    matrix = matrix.float()
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = matrix @ matrix.T
    identity = torch.eye(gram.shape[0], device=gram.device)
    product = identity
    for _ in range(steps):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
        gram = (gram + gram.T) / 2
    return product @ matrix


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), for weights of any rank >= 2, kernels flattened to matrices.

    Updates are scaled by ``0.2 sqrt(max(rows, columns))`` so that their root mean square matches AdamW's and one
    learning rate serves both (Liu et al., arXiv 2502.16982, sec. 2.2). ``torch.optim.Muon`` takes matrices only.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                buffer: Tensor = state["momentum"]
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                flat = update.reshape(update.shape[0], -1)
                scale = 0.2 * max(flat.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(orthogonalize(flat).reshape(weight.shape), alpha=-group["lr"] * scale)


def build_optimizers(named: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> list[torch.optim.Optimizer]:
    """Optimisers over the trainable parameters; vectors and single-output weights get no weight decay."""
    matrices, rest, plain = [], [], []
    for _, parameter in named:
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) > 1
        if not is_matrix:
            plain.append(parameter)
        elif config.name == "muon":
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [g for g in ({"params": rest}, {"params": plain, "weight_decay": 0.0}) if g["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(
            torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
        )
    if matrices:
        optimizers.append(Muon(matrices, lr=config.lr, weight_decay=config.weight_decay))
    return optimizers
