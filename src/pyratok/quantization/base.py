"""What every baseline quantizer does: features in, words and features out, at a known number of bits per position.

LaPQ is compared with these at equal bits. They take and give features of one grid, so that any of them can stand where
a level, or all levels together, stand.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Ids = tuple[Tensor, ...]
Losses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """Features as their words say them.

    ``features`` float32 ``[B, C, t, h, w]``, gradient straight through to the input. ``ids``: one int64
    ``[B, t, h, w]`` per codebook or stage. ``losses``: named, unweighted scalars, float32, all to be made small.
    ``bits_per_position``: log2 of the number of different features that a position can have.
    """

    features: Tensor
    ids: Ids
    losses: Losses
    bits_per_position: float


class Quantizer(nn.Module):
    """Base class. Subclasses say what happens to tokens ``[N, C]``; everything computes in float32.

    ``dim`` is C, ``codebook_sizes`` the number of words of each codebook or stage. In training mode a forward pass may
    change buffers (and draw from torch's generator), so it must not be repeated by activation checkpointing.
    """

    def __init__(self, dim: int, codebook_sizes: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = dim, tuple(codebook_sizes)

    @abstractmethod
    def quantize(self, z: Tensor) -> tuple[Tensor, Ids, Losses]:
        """Tokens float32 ``[N, C]`` to quantized ones with a gradient to ``z``, ids ``[N]`` and losses."""

    @abstractmethod
    def embed(self, ids: Ids) -> Tensor:
        """Tokens float32 ``[N, C]`` that ids ``[N]`` stand for, exactly as :meth:`quantize` gives them."""

    @property
    def bits_per_position(self) -> float:
        return math.log2(math.prod(self.codebook_sizes))

    def forward(self, z: Tensor) -> Quantized:
        """Quantize features ``[B, C, t, h, w]`` of any float type, finite.

        Raises: ValueError for another shape.
        """
        if z.ndim != 5 or z.shape[1] != self.dim:
            raise ValueError(f"expected features [B, {self.dim}, t, h, w], got shape {tuple(z.shape)}")
        # Words must not depend on the precision the features happen to be computed in.
        with torch.autocast(z.device.type, enabled=False):
            features, ids, losses = self.quantize(rearrange(z.float(), "b c t h w -> (b t h w) c"))
        grid = (z.shape[0], *z.shape[2:])
        return Quantized(
            features=features.unflatten(0, grid).movedim(-1, 1),
            ids=tuple(index.view(grid) for index in ids),
            losses=losses,
            bits_per_position=self.bits_per_position,
        )

    def lookup(self, ids: Ids) -> Tensor:
        """Features float32 ``[B, C, t, h, w]`` of integer ids ``[B, t, h, w]``, those that made them bit for bit.

        Raises: ValueError for another number of codebooks, or ids outside them.
        """
        if len(ids) != len(self.codebook_sizes):
            raise ValueError(f"this quantizer has {len(self.codebook_sizes)} codebooks, got ids of {len(ids)}")
        for number, (index, size) in enumerate(zip(ids, self.codebook_sizes, strict=True), start=1):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise ValueError(f"ids of codebook {number} lie outside [0, {size})")
        with torch.autocast(ids[0].device.type, enabled=False):
            tokens = self.embed(tuple(index.flatten().long() for index in ids))
        return tokens.unflatten(0, ids[0].shape).movedim(-1, 1)


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The values of ``quantized``, exactly, with the gradient of ``z``."""
    # The usual z + (quantized - z).detach() rounds; here the added term is an exact zero that carries the gradient.
    return quantized.detach() + (z - z.detach())


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer in float32, whatever type the model was converted to."""
    return F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def mean_losses(losses: Sequence[Losses]) -> Losses:
    """Term by term the mean over parts that have the same terms."""
    return {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}
