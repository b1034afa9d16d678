"""Tokens as pictures: every word of a level gets a colour, alike words alike colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from pyratok.quantization.bits import ids_to_signs


def token_colours(ids: Tensor, num_bits: int) -> Tensor:
    """RGB in [0, 1], ``[t, h, w, 3]``, of a level's ids ``[t, h, w]``.

    The three strongest principal components of the bits become red, green and blue, each stretched from its 2nd to
    its 98th percentile; a component without variation is mid-grey. As in PyraTok (arXiv 2601.16210), fig. 4.
    """
    signs = ids_to_signs(ids.flatten(), num_bits, dtype=torch.float64)
    centred = signs - signs.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -3:].flip(1)
    # An eigenvector has no sign of its own: the largest entry is made positive, so that a clip keeps its colours.
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    scores = centred @ (axes * largest.sign())
    scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
    low, high = torch.quantile(scores, torch.tensor([0.02, 0.98], dtype=scores.dtype), dim=0)
    spread = high - low
    stretched = torch.where(spread > 1e-9, (scores - low) / spread.clamp_min(1e-9), 0.5).clamp(0, 1)
    return stretched.reshape(*ids.shape, 3).float()


def sprite_sheet(colours: Tensor) -> NDArray[np.integer[Any]]:
    """The steps of ``[t, h, w, 3]`` side by side, one pixel a token: uint8 ``[h, t w, 3]``."""
    return rearrange(colours.mul(255).round().to(torch.uint8), "t h w c -> h (t w) c").numpy()
