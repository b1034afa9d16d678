"""A transformer that knows where in space, time and pyramid its words lie, and reads a caption on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Turn = tuple[Tensor, Tensor]
"""What :func:`rotate` multiplies by, ``[2, n, head_dim]`` each: for the queries of places, and for their keys."""


@dataclass(frozen=True, eq=False)
class TextMemory:
    """What every layer reads of the captions: keys and values ``[B, heads, N, d]``; ``mask`` bool ``[B, 1, 1, N]``."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor


@dataclass(eq=False)
class KVCache:
    """Keys and values of the places read so far, per layer ``[2, B, heads, capacity, d]``.

    A pass writes behind the first ``length`` places; only who advances ``length`` makes them stay. ``beside``: what a
    language model of transformers keeps in place of ``layers``.
    """

    capacity: int
    length: int = 0
    layers: dict[int, Tensor] = field(default_factory=dict)
    beside: Any = None

    def room(self, layer: int, like: Tensor, batch: int, heads: int, width: int) -> Tensor:
        """Where all that a layer will hold goes, made when first asked for."""
        if layer not in self.layers:
            self.layers[layer] = like.new_empty(2, batch, heads, self.capacity, width)
        return self.layers[layer]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all places up to these new ones."""
        batch, heads, count, width = keys.shape
        end = self.length + count
        assert end <= self.capacity
        held_keys, held_values = self.room(layer, keys, batch, heads, width)
        held_keys[:, :, self.length : end], held_values[:, :, self.length : end] = keys, values
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
        turn: Turn,
        memory: TextMemory,
        *,
        causal: bool = False,
        allowed: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """``[B, m, H]`` to the same shape. ``turn``: where a place asks from, and where what it holds is.

        Places see each other, and what the ``cache`` holds, or those before them where ``causal``, or those that
        ``allowed`` bool ``[m, m]`` says.
        """
        if causal and cache is not None and cache.length:
            if x.shape[1] > 1:
                ends = torch.ones(x.shape[1], cache.length + x.shape[1], dtype=torch.bool, device=x.device)
                allowed = ends.tril(cache.length)
            causal = False
        for number, block in enumerate(self.blocks):
            x = block(x, turn, memory.layers[number], memory.mask, causal, allowed, cache, number)
        normed: Tensor = self.norm(x)
        return normed


class Block(nn.Module):
    """One layer of a :class:`Backbone`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, inner = num_heads, inner_size(width)
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
        turn: Turn,
        text: tuple[Tensor, Tensor],
        text_mask: Tensor,
        causal: bool,
        allowed: Tensor | None,
        cache: KVCache | None,
        number: int,
    ) -> Tensor:
        asked = self._heads(self.qkv(self.norms[0](x)), 3)
        (queries, keys), values = rotate(asked[:2], turn), asked[2]
        if cache is not None:
            keys, values = cache.extend(number, keys, values)
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, is_causal=causal)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        (queries,) = self._heads(self.ask_text(self.norms[1](x)), 1)
        found = F.scaled_dot_product_attention(queries, *text, attn_mask=text_mask)
        x = x + self.text_out(found.transpose(1, 2).flatten(2))
        return x + gated(self.norms[2](x), self.gate_up, self.down)

    def text_keys(self, text_BNH: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._heads(self.read_text(text_BNH), 2)
        return keys, values

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """``[B, n, parts * heads * d]`` to ``[parts, B, heads, n, d]``."""
        return x.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


class Deepen(nn.Module):
    """From the state that predicted a word of a stack, and that word, to the state for the one behind it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.gate_up = nn.Linear(width, 2 * inner_size(width), bias=False)
        self.down = nn.Linear(inner_size(width), width, bias=False)

    def forward(self, hidden: Tensor, word: Tensor) -> Tensor:
        """``[B, m, H]``, both and the result."""
        return hidden + gated(self.norms[0](hidden) + self.norms[1](word), self.gate_up, self.down)


def gated(x: Tensor, gate_up: nn.Linear, down: nn.Linear) -> Tensor:
    """A gated linear unit (SwiGLU, arXiv 2002.05202), whose two first products are one."""
    gate, up = gate_up(x).chunk(2, dim=-1)
    found: Tensor = down(F.silu(gate) * up)
    return found


def inner_size(width: int) -> int:
    """Of a gated linear unit that has as many weights as a layer of four times the width."""
    return -(-8 * width // (3 * 16)) * 16


def turn_by(queries_at: Tensor, keys_at: Tensor) -> Turn:
    """What :func:`rotate` takes, of rotary angles ``[n, head_dim / 2]`` of queries and of keys."""
    angles = torch.stack([queries_at, keys_at])
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Turn pairs of ``[2, B, heads, n, d]``, queries and keys, an entry with the one d/2 behind it: places of equal
    distance have equal products (RoPE, arXiv 2104.09864)."""
    cos, sin = (part[:, None, None] for part in turn)
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
