"""The one bit order of pyratok.

Bit i of a word is ``(id >> i) & 1`` (least significant first); 1 stands for +1, 0 for -1; the sign of 0 is +1.
Nothing else in the package decides this.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """Sign in {-1, +1} with ``sign(0) = +1``; same shape and dtype as ``x``."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def signs_to_ids(signs: Tensor, dim: int = 1) -> Tensor:
    """Pack ``K`` signs along ``dim`` into int32 ids in ``[0, 2**K)``, K <= 31; ``dim`` disappears."""
    num_bits = signs.shape[dim]
    if not 1 <= num_bits <= 31:
        raise ValueError(f"a word has 1 to 31 bits, got {num_bits} along dim {dim}")
    weights = (1 << torch.arange(num_bits, device=signs.device)).to(torch.int32)
    return ((signs.movedim(dim, -1) >= 0).to(torch.int32) * weights).sum(-1, dtype=torch.int32)


def ids_to_signs(ids: Tensor, num_bits: int, dim: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Inverse of :func:`signs_to_ids`: integer ids to signs in {-1, +1}, with a new axis of ``num_bits`` at ``dim``."""
    shifts = torch.arange(num_bits, device=ids.device)
    bits = (ids.unsqueeze(-1).to(torch.int64) >> shifts) & 1
    return (bits.to(dtype) * 2 - 1).movedim(-1, dim)
