"""A transformer that knows where in space, time and pyramid its words lie, and reads a caption on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Turn = tuple[Tensor, Tensor]
"""Cosine and sine of rotary angles, ``[n, head_dim / 2]`` each."""


@dataclass(frozen=True, eq=False)
class TextMemory:
    """What every layer reads of the captions: keys and values ``[B, heads, N, d]``; ``mask`` bool ``[B, 1, 1, N]``."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor


@dataclass(eq=False)
class KVCache:
    """Keys and values of the places read so far, per layer ``[B, heads, capacity, d]``.

    A pass writes behind the first ``length`` places; only who advances ``length`` makes them stay. ``beside``: what a
    language model of transformers keeps in place of ``layers``.
    """

    capacity: int
    length: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    beside: Any = None

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all places up to these new ones."""
        if layer not in self.layers:
            batch, heads, _, width = keys.shape
            room = keys.new_empty(2, batch, heads, self.capacity, width)
            self.layers[layer] = room[0], room[1]
        end = self.length + keys.shape[2]
        assert end <= self.capacity
        for room, new in zip(self.layers[layer], (keys, values), strict=True):
            room[:, :, self.length : end] = new
        held_keys, held_values = self.layers[layer]
        return held_keys[:, :, :end], held_values[:, :, :end]


class Backbone(nn.Module):
    """Pre-norm transformer: attention with rotary positions, attention to the caption, gated linear units."""

    def __init__(self, hidden_size: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(num_layers))
        self.norm = nn.RMSNorm(hidden_size)

    def remember(self, text_BNH: Tensor, mask_BN: Tensor) -> TextMemory:
        """``mask``: True where there is something to read; one place at least in every row."""
        layers = tuple(cast(Block, block).text_keys(text_BNH) for block in self.blocks)
        return TextMemory(layers, mask_BN[:, None, None])

    def forward(
        self,
        x: Tensor,
        at: Turn,
        keys_at: Turn,
        memory: TextMemory,
        *,
        causal: bool = False,
        allowed: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """``[B, m, H]`` to the same shape. ``at`` and ``keys_at``: where a place asks from, and where what it holds is.

        Places see each other, and what the ``cache`` holds, or those before them where ``causal``, or those that
        ``allowed`` bool ``[m, m]`` says.
        """
        if causal and cache is not None and cache.length:
            if x.shape[1] > 1:
                ends = torch.ones(x.shape[1], cache.length + x.shape[1], dtype=torch.bool, device=x.device)
                allowed = ends.tril(cache.length)
            causal = False
        for number, block in enumerate(self.blocks):
            x = block(x, at, keys_at, memory.layers[number], memory.mask, causal, allowed, cache, number)
        normed: Tensor = self.norm(x)
        return normed


class Block(nn.Module):
    """One layer of a :class:`Backbone`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = -(-8 * width // (3 * 16)) * 16
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.ask_text = nn.Linear(width, width, bias=False)
        self.read_text = nn.Linear(width, 2 * width, bias=False)
        self.text_out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(
        self,
        x: Tensor,
        at: Turn,
        keys_at: Turn,
        text: tuple[Tensor, Tensor],
        text_mask: Tensor,
        causal: bool,
        allowed: Tensor | None,
        cache: KVCache | None,
        number: int,
    ) -> Tensor:
        queries, keys, values = self._heads(self.qkv(self.norms[0](x)), 3)
        queries, keys = rotate(queries, at), rotate(keys, keys_at)
        if cache is not None:
            keys, values = cache.extend(number, keys, values)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=causal)
        x = x + self.out(rearrange(found, "b heads n d -> b n (heads d)"))
        (queries,) = self._heads(self.ask_text(self.norms[1](x)), 1)
        found = F.scaled_dot_product_attention(queries, *text, attn_mask=text_mask)
        x = x + self.text_out(rearrange(found, "b heads n d -> b n (heads d)"))
        gate, up = self.gate_up(self.norms[2](x)).chunk(2, dim=-1)
        changed: Tensor = x + self.down(F.silu(gate) * up)
        return changed

    def text_keys(self, text_BNH: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._heads(self.read_text(text_BNH), 2)
        return keys, values

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        return rearrange(x, "b n (parts heads d) -> parts b heads n d", parts=parts, heads=self.num_heads)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn pairs of ``[B, heads, n, d]``: places of equal distance have equal products (RoPE, arXiv 2104.09864)."""
    cos, sin = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
