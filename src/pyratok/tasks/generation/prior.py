"""What all priors share: words and captions in, likelihoods out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pyratok.model.alignment import WordHead
from pyratok.quantization.bits import ids_to_signs
from pyratok.tasks.generation.backbone import Backbone, Deepen, TextMemory, Turn, turn_by
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.layout import Layout, layout_of
from pyratok.tasks.generation.sampling import Sampler
from pyratok.types import Geometry, TextEmbedding, TokenPyramid
from pyratok.vae.hub import load_weights

OnWords = Callable[[Tensor, int], None]
"""Gets all words ``[B, n]`` and how many places from the first on are final."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PriorOutput:
    """Negative log-likelihoods in nats, with gradients.

    ``token_nll`` float32 ``[B, m]`` of the places that were looked at, which lie on ``level`` int64 ``[m]``;
    ``predicted`` bool ``[B, m]``: those whose word the prior did not see.
    """

    token_nll: Tensor
    predicted: Tensor
    level: Tensor

    @property
    def total(self) -> Tensor:
        """What training lowers: nats per predicted word, mean over clips."""
        counted = (self.token_nll * self.predicted).sum(1) / self.predicted.sum(1).clamp_min(1)
        return counted.mean()

    @property
    def bits_per_token(self) -> dict[int, Tensor]:
        """Bits per predicted word of each level that was looked at, counted from 0."""
        found = {}
        for level in self.level.unique().tolist():
            places = self.predicted & (self.level == level)
            if places.any():
                found[level] = self.token_nll[places].mean() / math.log(2)
        return found


@dataclass(frozen=True, eq=False)
class Places:
    """What a prior makes of the stacks of a layout: ``features`` ``[stacks, H]`` of their positions, and how these
    ``turn`` queries and keys."""

    layout: Layout
    features: Tensor
    turn: Turn

    def part(self, first: int, stop: int) -> tuple[Tensor, Turn]:
        """Features and turn of the stacks from ``first`` to ``stop``."""
        cos, sin = self.turn
        return self.features[first:stop], (cos[:, first:stop], sin[:, first:stop])


class Prior(nn.Module):
    """A distribution over pyramids of one tokenizer, given a caption or none.

    A word enters as the sum of an embedding per chunk of its bits; where it lies is told by features of its position
    and by rotary positions. Captions are read by attention in every layer: first the pooled vector, or a learned
    vector in place of it where there is no caption, then its tokens.
    """

    begun: tuple[str, ...] = ()
    """Parts that keep the weights they come with, by the beginning of their names."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config, width = config, config.hidden_size
        self.words = nn.Embedding(config.max_stack * config.num_chunks << config.chunk_bits, width)
        self.place = nn.Linear(config.head_dim, width)
        self.pooled = nn.Sequential(nn.LayerNorm(config.text_dim), nn.Linear(config.text_dim, width))
        self.caption = nn.Sequential(nn.LayerNorm(config.text_dim), nn.Linear(config.text_dim, width))
        self.untold = nn.Parameter(torch.zeros(width))
        self.backbone = self._make_backbone(config)
        self.deepen = nn.ModuleList(Deepen(width) for _ in range(1, config.max_stack))
        self.head = WordHead(width, config.num_bits, config.chunk_bits, chained=True)
        self._initialize()

    def _make_backbone(self, config: PriorConfig) -> Backbone:
        return Backbone(config.hidden_size, config.num_layers, config.num_heads)

    def _initialize(self) -> None:
        for name, layer in self.named_modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)) and not name.startswith(self.begun):
                # Branches add up along the depth.
                ends_branch = name.rpartition(".")[2] in ("out", "text_out", "down")
                nn.init.normal_(layer.weight, std=0.02 / (math.sqrt(2 * self.config.num_layers) if ends_branch else 1))
                if isinstance(layer, nn.Linear) and layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.untold, std=0.02)

    def own_state(self) -> dict[str, Tensor]:
        """What a file of this prior holds."""
        return self.state_dict()

    def lent_digest(self) -> str:
        """16 hex digits for the weights that :meth:`own_state` leaves out; empty where it has all of them."""
        return ""

    def load_own(self, weights: Mapping[str, Tensor]) -> None:
        """Fill in :meth:`own_state`. Raises ValueError for other names or shapes, before anything is changed."""
        load_weights(self, weights)

    @abstractmethod
    def draw(
        self, batch: int, geometry: Geometry, generator: torch.Generator | None = None, *, measure: bool = False
    ) -> dict[str, Tensor]:
        """The random choices of a training step, for :meth:`forward`; on the CPU, batch axis first where there is one.

        ``measure``: those under which :attr:`PriorOutput.total` is, in expectation, an upper bound on nats per token
        (the exact value for ``ar``), and every caption is read.
        """

    @abstractmethod
    def forward(
        self, tokens: TokenPyramid, text: TextEmbedding | None = None, choices: dict[str, Tensor] | None = None
    ) -> PriorOutput:
        """How well words are predicted; ``choices`` by :meth:`draw`, fresh ones by default.

        Raises ValueError for tokens of another tokenizer or captions that do not fit.
        """

    @abstractmethod
    def sample(
        self, words: Tensor, known: Tensor, layout: Layout, memory: TextMemory, draw: Sampler, on_words: OnWords
    ) -> tuple[Tensor, Tensor]:
        """``words`` int64 ``[B, n]`` with those replaced that ``known`` bool ``[B, n]`` does not keep, and the
        log-likelihood with which each was drawn, float32, 0 where it was known."""

    def layout(self, geometry: Geometry) -> Layout:
        """Raises ValueError for clips that the prior does not know (:meth:`PriorConfig.check`)."""
        return layout_of(self.config.check(geometry), self.config.order, self.config.num_levels).to(self.untold.device)

    def remember(self, text: TextEmbedding | None, batch: int, dropped: Tensor | None = None) -> TextMemory:
        """What is to be read of ``batch`` captions; those ``dropped`` bool ``[B]``, and empty ones, are not told."""
        first = self.untold.expand(batch, 1, -1)
        shown = torch.ones(batch, 1, dtype=torch.bool, device=first.device)
        if text is None:
            return self.backbone.remember(first, shown)
        shape = text.tokens.shape
        if (shape[0], shape[2]) != (batch, self.config.text_dim):
            raise ValueError(f"captions should be [{batch}, N, {self.config.text_dim}] here, got {list(shape)}")
        mask, dtype = text.mask.to(first.device), self.untold.dtype
        if dropped is not None:
            mask = mask & ~dropped.to(first.device)[:, None]
        pooled = self.pooled(text.pooled.to(first.device, dtype))[:, None]
        first = torch.where(mask.any(1)[:, None, None], pooled, first)
        tokens = self.caption(text.tokens.to(first.device, dtype))
        return self.backbone.remember(torch.cat([first, tokens], dim=1), torch.cat([shown, mask], dim=1))

    def embed(self, words: Tensor, depth: Tensor | int = 0) -> Tensor:
        """int64 ``[B, m]`` to ``[B, m, H]``; ``depth`` of the words in their stacks, one or ``[m]``."""
        chunks, bits = self.config.num_chunks, self.config.chunk_bits
        number = torch.arange(chunks, device=words.device)
        table = number + (depth * chunks if isinstance(depth, int) else depth[:, None] * chunks)
        index = (words[..., None] >> number * bits & (1 << bits) - 1) + (table << bits)
        embedded: Tensor = self.words(index).sum(-2)
        return embedded

    def places(self, layout: Layout) -> Places:
        angles = layout.angles(self.config.head_dim)
        features = self.place(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return Places(layout, features, turn_by(angles, self._held_at(angles)))

    def _held_at(self, angles: Tensor) -> Tensor:
        """Angles of what stacks hold, of those they ask from: the same, unless a stack holds what another has read."""
        return angles

    def nll(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Nats, float32 ``[B, m]``, of words int64 ``[B, m]``."""
        signs = ids_to_signs(words, self.config.num_bits, dim=-1)
        found: Tensor = self.head(hidden, signs, signs)
        return found

    def words_of(self, tokens: TokenPyramid) -> tuple[Tensor, Layout]:
        """int64 ``[B, n]``, and where they lie. Raises ValueError for tokens that the prior has not learned."""
        config = self.config
        if tokens.model.fingerprint != config.tokenizer.fingerprint:
            raise ValueError(f"this prior has learned the tokens of {config.tokenizer}, not of {tokens.model}")
        if len(tokens.levels) < config.num_levels or tokens.num_bits != config.num_bits:
            raise ValueError(
                f"this prior wants {config.num_levels} levels of {config.num_bits} bits, got "
                f"{len(tokens.levels)} of {tokens.num_bits}"
            )
        layout = self.layout(tokens.geometry)
        levels = tokens.levels[: config.num_levels]
        return layout.flatten([ids.to(self.untold.device) for ids in levels]).long(), layout

    def _drop(self, batch: int, generator: torch.Generator | None, measure: bool) -> Tensor:
        return torch.rand(batch, generator=generator) < (0.0 if measure else self.config.text_dropout)


def told_and_untold(text: TextEmbedding) -> TextEmbedding:
    """Every caption, and then as often none: what guidance compares."""
    tokens, pooled = (torch.cat([value, value]) for value in (text.tokens, text.pooled))
    return replace(text, tokens=tokens, mask=torch.cat([text.mask, torch.zeros_like(text.mask)]), pooled=pooled)
