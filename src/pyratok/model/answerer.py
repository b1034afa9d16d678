"""A small network that reads the tokens of a clip with a statement about it in mind, and says how true that is.

```
signs of all levels ── q^(L) ─┬────────────────────┐
                              └► text head ── v ───┴► cells ── neighbours ── all cells ──┐ keys, values
                                              │                                          │
statement ── text encoder ── N vectors ───────┼► [verdict, words] ── one another ── cells ── ... ── verdict ── logit
                                   └─ cosine ─┘ draws a word to the cells that look like it
```

Where a language model over tokens (:mod:`pyratok.model.alignment`) has to explain every pixel, this one learns
nothing but to tell true statements from false ones; options are weighed by their statements. Every cell is read as
the tokenizer has it, q^(L), and as its text head understood it, so that names need not be learned again. Ours; the
paper (arXiv 2601.16210, sec. 4) has a large language model answer questions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pyratok.config import PyraTokConfig, TextHeadConfig, from_dict, to_dict
from pyratok.model.companions import companion, require_tokenizer, save_companion
from pyratok.model.projector import fitting_grid
from pyratok.model.text_head import TextHead
from pyratok.nn.waves import waves
from pyratok.types import ModelId, TextEmbedding
from pyratok.vae.hub import read_weights

FORMAT, VERSION = "pyratok-answerer", 1
OCTAVES = 4
"""Frequencies per axis of a place, relative to the clip; finer ones would tell grids apart, not places."""
STRONGEST_PULL = 10.0
"""Nats that a cosine of 1 adds to the attention of a word to a cell, in the head that listens to it most."""


@dataclass(frozen=True, kw_only=True)
class AnswererConfig:
    """Shape of an :class:`Answerer`.

    ``features``, ``num_levels``, ``text_dim`` and ``head`` are those of the tokenizer (:meth:`reading`); without a
    ``head`` names are learned from answers alone. ``narrow``: channels in which a cell looks at its neighbours.
    ``max_cells``: of a clip with more cells neighbours are averaged, so that long and large ones stay affordable.
    """

    features: int
    num_levels: int
    text_dim: int
    head: TextHeadConfig | None = None
    width: int = 128
    narrow: int = 48
    num_blocks: int = 2
    num_layers: int = 3
    num_heads: int = 4
    max_cells: int = 4096

    def __post_init__(self) -> None:
        for name in ("features", "num_levels", "text_dim", "width", "narrow", "num_layers", "num_heads", "max_cells"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_blocks < 0:
            raise ValueError(f"num_blocks must be 0 or more, got {self.num_blocks}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {self.width} and {self.num_heads}")

    @classmethod
    def reading(cls, tokenizer: PyraTokConfig, **sizes: int) -> AnswererConfig:
        """For the tokens of a tokenizer of this shape."""
        lapq = tokenizer.lapq
        shape = {"features": lapq.width, "num_levels": lapq.num_levels, "text_dim": lapq.text_dim}
        return cls(**shape, head=tokenizer.text_head, **sizes)

    def require_tokenizer(self, tokenizer: PyraTokConfig) -> None:
        """Raise ValueError where a tokenizer of another shape makes the tokens."""
        wanted = AnswererConfig.reading(tokenizer)
        for name in ("features", "num_levels", "text_dim", "head"):
            if getattr(self, name) != getattr(wanted, name):
                own, other = getattr(self, name), getattr(wanted, name)
                raise ValueError(f"the answerer's {name} has to be that of its tokenizer, {other}, not {own}")


class Answerer(nn.Module):
    """Logits of statements about clips, each independent of what else is asked.

    The text head is a copy of the tokenizer's (:meth:`take_head`) and stays as it was, so that it goes where the
    answerer goes, whatever becomes of the tokenizer's own.
    """

    pulls: Tensor

    def __init__(self, config: AnswererConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.num_heads
        self.head: TextHead | None = None
        if config.head is not None:
            self.head = TextHead(config.head, config.features, config.num_levels, config.text_dim).requires_grad_(False)
        # What a word means and what a cell shows lie in one space, and are brought into this one by one map.
        self.meaning = nn.Sequential(
            nn.LayerNorm(config.text_dim, elementwise_affine=False), nn.Linear(config.text_dim, width)
        )
        self.shown = nn.LayerNorm(config.features, elementwise_affine=False)
        self.cell = nn.Linear(config.features + 6 * OCTAVES, width)
        self.blocks = nn.ModuleList(Neighbours(width, config.narrow) for _ in range(config.num_blocks))
        self.watch = Layer(width, heads, crosses=False)
        self.seen = nn.LayerNorm(width)
        self.verdict = nn.Parameter(torch.randn(width) * width**-0.5)
        self.layers = nn.ModuleList(Layer(width, heads, crosses=True) for _ in range(config.num_layers))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 1)
        # From heads that go by what they learn to heads that go by likeness.
        self.register_buffer("pulls", torch.linspace(0, STRONGEST_PULL, heads), persistent=False)

    def take_head(self, head: TextHead | None) -> None:
        """Begin with the weights of a tokenizer's text head, which has the shape of the configuration."""
        assert (head is None) == (self.head is None), "the head of the configuration is that of the tokenizer"
        if head is not None and self.head is not None:
            self.head.load_state_dict(head.state_dict())

    def forward(self, features: Tensor, words: Tensor, mask: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Logits ``[B, S]`` of S statements about each clip.

        ``features``: q^(L) ``[B, features, t, h, w]``. ``words`` ``[B, S, N, D]`` and ``mask`` (True: a word) ``[B, S,
        N]``: tokens of the statements from the text encoder. ``hidden`` ``[B, n]``: True for cells of
        :meth:`num_cells` that are not looked at.
        """
        batch, count = words.shape[:2]
        cells, vectors = self._see(features, hidden)
        spoken = self.meaning(words)
        statements = torch.cat([self.verdict.to(spoken.dtype).expand(batch, count, 1, -1), spoken], dim=2)
        known = rearrange(F.pad(mask, (1, 0), value=True), "b s n -> (b s) 1 1 n")
        pull = self._pull(words, vectors, hidden)
        for layer in self.layers:
            statements = layer(statements, known, cells, pull)
        return cast(Tensor, self.out(self.norm(statements[:, :, 0]))).squeeze(-1)

    def num_cells(self, grid: Sequence[int]) -> int:
        """Into how many cells a clip whose last level has this grid ``(t, h, w)`` is read."""
        t, h, w = fitting_grid(grid, self.config.max_cells)
        return t * h * w

    def _see(self, features: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Cells ``[B, n, width]``, and their unit vectors in the text space ``[B, n, D]``, if there is a head."""
        grid = fitting_grid(features.shape[2:], self.config.max_cells)
        shown = self.shown(features.movedim(1, -1))
        place = _waves(features).to(shown.dtype).expand(*shown.shape[:-1], -1)
        cells = self.cell(torch.cat([shown, place], dim=-1))
        vectors: Tensor | None = None
        if self.head is not None:
            with torch.no_grad():
                found = self.head(features, self.config.num_levels - 1).float()
            cells = cells + self.meaning(found.movedim(1, -1))
            vectors = F.normalize(_pooled(found, grid), dim=-1)
        for block in self.blocks:
            cells = block(cells)
        allowed = None if hidden is None else ~hidden[:, None, None, :]
        watched = self.watch(_pooled(cells.movedim(-1, 1), grid).unsqueeze(1), allowed)
        return self.seen(watched.squeeze(1)), vectors

    def _pull(self, words: Tensor, vectors: Tensor | None, hidden: Tensor | None) -> Tensor | None:
        """What likeness adds to the attention of statements to cells: ``[B, heads, S (1 + N), n]``, or less."""
        found: Tensor | None = None
        if vectors is not None:
            unit = F.pad(F.normalize(words.float(), dim=-1), (0, 0, 1, 0))  # the verdict looks like nothing
            cosines = torch.einsum("b s n d, b c d -> b s n c", unit, vectors)
            found = self.pulls.view(-1, 1, 1) * rearrange(cosines, "b s n c -> b 1 (s n) c")
        if hidden is None:
            return found
        away = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)[:, None, None]
        return away if found is None else found + away


class Neighbours(nn.Module):
    """A cell looks at those around it, in space and in time; residual, and the identity at first."""

    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, narrow)
        self.look = nn.Conv3d(narrow, narrow, 3, padding=1)
        self.out = nn.Linear(narrow, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, cells: Tensor) -> Tensor:
        """``[B, t, h, w, width]`` to the same shape."""
        seen = self.look(F.gelu(self.down(self.norm(cells))).movedim(-1, 1)).movedim(1, -1)
        return cells + cast(Tensor, self.out(F.gelu(seen)))


class Layer(nn.Module):
    """Attention within each of S sequences, then from all of them to the same cells, then a thought per place."""

    def __init__(self, width: int, heads: int, *, crosses: bool) -> None:
        super().__init__()
        self.own = Attention(width, heads)
        self.other = Attention(width, heads) if crosses else None
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, x: Tensor, mask: Tensor | None, cells: Tensor | None = None, pull: Tensor | None = None
    ) -> Tensor:
        """``x`` ``[B, S, n, width]`` to the same shape; ``mask`` and ``pull`` broadcast to attention's scores."""
        count = x.shape[1]
        sequences = rearrange(x, "b s n c -> (b s) n c")
        x = rearrange(sequences + self.own(sequences, None, mask), "(b s) n c -> b (s n) c", s=count)
        if self.other is not None and cells is not None:
            x = x + self.other(x, cells, pull)
        return rearrange(x + self.think(x), "b (s n) c -> b s n c", s=count)


class Attention(nn.Module):
    """Multi-head attention of ``x`` to itself or to a source that is normalised already."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor | None, scores: Tensor | None) -> Tensor:
        """``x`` ``[B, n, width]``; ``scores``: True where to look, or what is added before the softmax."""
        x = self.norm(x)
        read = x if source is None else source
        split = "b n (heads c) -> b heads n c"
        parts = self.query(x), self.key(read), self.value(read)
        query, key, value = (rearrange(part, split, heads=self.heads) for part in parts)
        if scores is not None and scores.dtype != torch.bool:
            scores = scores.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=scores)
        return cast(Tensor, self.out(rearrange(mixed, "b heads n c -> b n (heads c)")))


def padded(texts: Sequence[TextEmbedding], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Words ``[S, N, D]`` and mask ``[S, N]`` of texts embedded one by one; N is a multiple of ``multiple``."""
    longest = max(text.mask.shape[1] for text in texts)
    longest += -longest % multiple
    words = [F.pad(text.tokens[0], (0, 0, 0, longest - text.mask.shape[1])) for text in texts]
    return torch.stack(words), torch.stack([F.pad(text.mask[0], (0, longest - text.mask.shape[1])) for text in texts])


def _waves(features: Tensor) -> Tensor:
    """Where each cell of ``[B, C, t, h, w]`` lies in the clip: waves ``[t, h, w, 6 * OCTAVES]``."""
    axes = [(torch.arange(side, device=features.device) + 0.5) / side for side in features.shape[2:]]
    return waves(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1), OCTAVES)


def _pooled(grid: Tensor, to: tuple[int, int, int]) -> Tensor:
    """``[B, C, t, h, w]`` to cells ``[B, n, C]``, means over neighbours."""
    if tuple(grid.shape[2:]) != to:
        grid = F.adaptive_avg_pool3d(grid, to)
    return rearrange(grid, "b c t h w -> b (t h w) c")


def save_answerer(answerer: Answerer, folder: str | os.PathLike[str], tokenizer: ModelId) -> None:
    """Write ``config.json`` and ``model.safetensors``, whole or not at all; ``tokenizer``: whose tokens it reads."""
    config = {"tokenizer": to_dict(tokenizer), "answerer": to_dict(answerer.config)}
    save_companion(folder, {"format": FORMAT, "version": VERSION} | config, answerer.state_dict())


def load_answerer(folder: str | os.PathLike[str], tokenizer: ModelId | None = None) -> Answerer:
    """Read an answerer for inference (evaluation mode, no gradients).

    Raises :class:`~pyratok.model.pretrained.ModelLoadError` for a damaged or foreign folder, and, where ``tokenizer``
    is given, for one that has learned the tokens of another: both are named.
    """
    with companion(folder, FORMAT, VERSION) as (weights, header):
        require_tokenizer("answerer", from_dict(ModelId, header["tokenizer"]), tokenizer)
        answerer = Answerer(from_dict(AnswererConfig, header["answerer"]))
        answerer.load_state_dict(read_weights(weights))
    return answerer.eval().requires_grad_(False)
