"""Where something lies, as waves that a network can read."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def waves(place: Tensor, octaves: int) -> Tensor:
    """``[..., A]`` in [0, 1] to ``[..., 2 A octaves]``: sines, then cosines, of ``pi 2^k`` times each coordinate."""
    phase = (place[..., None] * math.pi * 2.0 ** torch.arange(octaves, device=place.device)).flatten(-2)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
