"""Many words at once: hidden ones are predicted from those that are shown, the surest of them kept, and so on.

Kind ``masked`` hides words of all levels together, in any order: absorbing discrete diffusion with MaskGIT's schedule
(Chang et al., arXiv 2202.04200). Kind ``scale`` goes level by level and does the same within each, all words of the
levels before being there (next-scale prediction as in VAR, arXiv 2404.02905, but refined).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pyratok.tasks.generation.backbone import KVCache, TextMemory
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.layout import Layout
from pyratok.tasks.generation.prior import OnWords, Places, Prior, PriorOutput
from pyratok.tasks.generation.sampling import Sampler
from pyratok.types import Geometry, TextEmbedding, TokenPyramid


class MaskedPrior(Prior):
    """The priors of kinds ``masked`` and ``scale``."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.blank = nn.Parameter(torch.randn(config.hidden_size) * 0.02)

    def draw(
        self, batch: int, geometry: Geometry, generator: torch.Generator | None = None, *, measure: bool = False
    ) -> dict[str, Tensor]:
        """``hidden`` bool ``[B, n]``, of the words of ``group`` (kind ``scale``: a level, else 0).

        In training a share ``cos(pi u / 2)`` is hidden, u uniform; to measure, any number of words is as likely as any
        other, and a level the likelier the more words it has.
        """
        layout = self.layout(geometry)
        groups = self._groups(layout)
        weights = torch.tensor([float(len(group)) if measure else 1.0 for group in groups])
        number = torch.multinomial(weights, 1, generator=generator)[0]
        size = len(groups[int(number)])
        chance = torch.rand(batch, generator=generator)
        share = 1 - chance if measure else (chance * math.pi / 2).cos()
        count = (share * size).ceil().clamp(1, size)
        rank = torch.rand(batch, size, generator=generator).argsort(1).argsort(1)
        hidden = torch.zeros(batch, len(layout), dtype=torch.bool)
        hidden[:, groups[int(number)].start : groups[int(number)].stop] = rank < count[:, None]
        return {"hidden": hidden, "group": number, "dropped": self._drop(batch, generator, measure)}

    def forward(
        self, tokens: TokenPyramid, text: TextEmbedding | None = None, choices: dict[str, Tensor] | None = None
    ) -> PriorOutput:
        words, layout = self.words_of(tokens)
        choices = choices or self.draw(len(words), tokens.geometry)
        group = self._groups(layout)[int(choices["group"])]
        hidden = choices["hidden"].to(words.device)[:, : group.stop]
        memory = self.remember(text, len(words), choices["dropped"])
        states = self.read(words, hidden, self.places(layout), 0, group.stop, memory)[:, group.start :]
        shown = slice(group.start, group.stop)
        return PriorOutput(
            token_nll=self.nll(states, words[:, shown]), predicted=hidden[:, shown], level=layout.level[shown]
        )

    def read(
        self,
        words: Tensor,
        hidden: Tensor | None,
        places: Places,
        first: int,
        stop: int,
        memory: TextMemory,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States ``[B, stop - first, H]`` of places that see each other and what the ``cache`` holds.

        ``hidden`` bool ``[B, stop - first]``: places whose word is not shown. For kind ``scale`` no place sees a later
        level than its own; with a ``cache``, which then holds the levels before, the places are of one level.
        """
        inputs = self.embed(words[:, first:stop])
        if hidden is not None:
            inputs = torch.where(hidden[..., None], self.blank, inputs)
        features, turn = places.part(first, stop)
        allowed = None
        if self.config.kind == "scale" and cache is None:
            level = places.layout.level[first:stop]
            allowed = level <= level[:, None]
        states: Tensor = self.backbone(inputs + features, turn, memory, allowed=allowed, cache=cache)
        return states

    def sample(
        self, words: Tensor, known: Tensor, layout: Layout, memory: TextMemory, draw: Sampler, on_words: OnWords
    ) -> tuple[Tensor, Tensor]:
        words, gained = words.clone(), torch.zeros(words.shape, device=words.device)
        groups, places = self._groups(layout), self.places(layout)
        cache = KVCache(len(layout)) if len(groups) > 1 else None
        steps = draw.config.per_level("steps", len(groups))
        for number, group in enumerate(groups):
            first, stop = group.start, group.stop
            here, hidden = slice(first, stop), ~known[:, first:stop]
            count, last = hidden.sum(1), int(steps[number])
            for step in range(1, last + 1):
                if not hidden.any():
                    break
                states = self.read(draw.twice(words), draw.twice(hidden), places, first, stop, memory, cache)
                drawn, log_likelihood = draw(states, here)
                # One word at least is shown by every step.
                left = torch.minimum((count * math.cos(math.pi / 2 * step / last)).long(), hidden.sum(1) - 1)
                left = left.clamp_min(0) if step < last else torch.zeros_like(left)
                chance = draw.noise.uniform(len(group)).clamp_min(1e-12)
                sureness = log_likelihood - draw.config.choice_temperature * (1 - step / last) * (-chance.log()).log()
                rank = sureness.masked_fill(~hidden, math.inf).argsort(1).argsort(1)
                shown = hidden & (rank >= left[:, None])
                words[:, here] = torch.where(shown, drawn, words[:, here])
                gained[:, here] = torch.where(shown, log_likelihood, gained[:, here])
                hidden = hidden & ~shown
            if cache is not None and number + 1 < len(groups):
                self.read(draw.twice(words), None, places, first, stop, memory, cache)
                cache.length += len(group)
            on_words(words, stop)
        return words, gained

    def _groups(self, layout: Layout) -> list[range]:
        """Places that are predicted together."""
        if self.config.kind == "masked":
            return [range(len(layout))]
        ends = [0, *layout.level.bincount().cumsum(0).tolist()]
        return [range(first, stop) for first, stop in pairwise(ends)]
