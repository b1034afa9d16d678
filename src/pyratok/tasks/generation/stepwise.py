"""A :class:`~pyratok.tasks.generation.backbone.Backbone` for one place at a time, in few operations.

A step over one place is hundreds of operations of a few microseconds each, most of which only hand numbers on. Here the
weights of the norms and the scale of the scores are multiplied into the matrices behind them once, and the attention
of a single query is two products: torch's kernel is made for blocks of queries. The numbers are those of the backbone
up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.tasks.generation.backbone import Backbone, Block, KVCache, TextMemory, Turn


@dataclass(frozen=True, eq=False)
class _Layer:
    """Matrices ``[in, out]`` of a block, keys ``[B * heads, d, N]`` and values ``[B * heads, N, d]`` of its caption,
    and of its places: what the cache has ``held``, ``[B, heads, capacity, d]`` each, as the products take it.
    """

    qkv: Tensor
    out: Tensor
    ask_text: Tensor
    text_out: Tensor
    gate_up: Tensor
    down: Tensor
    text_keys: Tensor
    text_values: Tensor
    held: tuple[Tensor, Tensor]
    keys: Tensor
    values: Tensor


class Stepwise:
    """Reads the place behind those that a ``cache`` holds and adds it, but leaves the count to the caller.

    Made of a backbone as it is now: weights that change later are not followed, and there are no gradients.
    """

    def __init__(self, backbone: Backbone, memory: TextMemory, cache: KVCache) -> None:
        self.cache = cache
        width, eps = backbone.norm.weight.numel(), torch.finfo(backbone.norm.weight.dtype).eps
        self.least = backbone.norm.weight.new_tensor(math.sqrt(width * eps))
        self.last = backbone.norm.weight.detach() * math.sqrt(width)
        blocks = [cast(Block, block) for block in backbone.blocks]
        self.layers = [
            self._layer(block, number, *text)
            for number, (block, text) in enumerate(zip(blocks, memory.layers, strict=True))
        ]
        batch, self.heads, tokens, _ = memory.layers[0][0].shape
        mask = torch.zeros_like(memory.mask, dtype=self.last.dtype).masked_fill(~memory.mask, -math.inf)
        self.text_mask = mask.expand(batch, self.heads, 1, tokens).reshape(-1, 1, tokens)

    @torch.no_grad()
    def __call__(self, x: Tensor, turn: Turn) -> Tensor:
        """``[B, 1, H]`` to the same shape; ``turn`` as of the backbone, of this place."""
        (batch, _, width), (cos, sin), here = x.shape, turn, self.cache.length
        x, head = x[:, 0], width // self.heads
        assert here < self.cache.capacity
        for layer in self.layers:
            asked = torch.mm(self._norm(x), layer.qkv).view(batch, 3, self.heads, head)
            turned = asked[:, :2] * cos
            turned.addcmul_(asked[:, :2].roll(head // 2, -1), sin)
            layer.held[0][:, :, here], layer.held[1][:, :, here] = turned[:, 1], asked[:, 2]
            scores = torch.bmm(turned[:, 0].reshape(-1, 1, head), layer.keys[:, :, : here + 1])
            found = torch.bmm(scores.softmax(-1), layer.values[:, : here + 1])
            x = torch.addmm(x, found.view(batch, width), layer.out)
            queries = torch.mm(self._norm(x), layer.ask_text).view(-1, 1, head)
            scores = torch.baddbmm(self.text_mask, queries, layer.text_keys)
            found = torch.bmm(scores.softmax(-1), layer.text_values)
            x = torch.addmm(x, found.view(batch, width), layer.text_out)
            gate, up = torch.mm(self._norm(x), layer.gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), layer.down)
        return (self._norm(x) * self.last)[:, None]

    def _norm(self, x: Tensor) -> Tensor:
        """RMS norm but for a factor, which the matrices behind it have."""
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot_(self.least)

    def _layer(self, block: Block, number: int, text_keys: Tensor, text_values: Tensor) -> _Layer:
        batch, heads, _, head = text_keys.shape
        norms = [cast(nn.RMSNorm, norm).weight.detach() for norm in block.norms]
        before_qkv, before_text, before_gate = (weight * math.sqrt(len(weight)) for weight in norms)
        qkv = block.qkv.weight.detach() * before_qkv
        qkv[: heads * head] *= head**-0.5
        keys, values = self.cache.room(number, text_keys, batch, heads, head)
        return _Layer(
            qkv=qkv.T,
            out=block.out.weight.detach().T,
            ask_text=(block.ask_text.weight.detach() * before_text * head**-0.5).T,
            text_out=block.text_out.weight.detach().T,
            gate_up=(block.gate_up.weight.detach() * before_gate).T,
            down=block.down.weight.detach().T,
            text_keys=text_keys.flatten(0, 1).mT,
            text_values=text_values.flatten(0, 1),
            held=(keys, values),
            keys=keys.flatten(0, 1).mT,
            values=values.flatten(0, 1),
        )
