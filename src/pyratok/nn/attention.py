"""Attention from tokens to text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pyratok.types import TextEmbedding


class TextAttention(nn.Module):
    """Multi-head attention of grid features to text tokens, behind a gate that starts at zero.

    A learned null text stands in where there is no caption. Attending to it alone gives the same vector at every
    position, so that the caption-free path costs one addition.
    """

    def __init__(self, width: int, text_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(text_dim, width)
        self.value = nn.Linear(text_dim, width)
        self.out = nn.Linear(width, width)
        self.null_text = nn.Parameter(torch.randn(text_dim) * text_dim**-0.5)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, text: TextEmbedding | None) -> Tensor:
        """``x`` ``[B, C, t, h, w]`` to the same shape: ``x + gate * attention(x, text)``."""
        if text is None:
            constant = self.out(self.value(self.null_text))
            return x + (self.gate * constant).to(x.dtype).view(1, -1, 1, 1, 1)
        # The null text stays visible beside a caption: an escape for positions the caption says nothing about.
        null = self.null_text.expand(x.shape[0], 1, -1)
        tokens = torch.cat([null, text.tokens.to(null)], dim=1)
        mask = F.pad(text.mask.to(null.device), (1, 0), value=True)
        heads = "b n (heads c) -> b heads n c"
        query = rearrange(self.query(rearrange(x, "b c t h w -> b (t h w) c")), heads, heads=self.num_heads)
        key, value = (rearrange(layer(tokens), heads, heads=self.num_heads) for layer in (self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        out = self.out(rearrange(mixed, "b heads n c -> b n (heads c)"))
        t, h, w = x.shape[2:]
        return x + (self.gate * rearrange(out, "b (t h w) c -> b c t h w", t=t, h=h, w=w)).to(x.dtype)
