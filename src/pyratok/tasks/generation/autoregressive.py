"""Word after word: a causal transformer over a pyramid.

```
read       <SOI>   q1_1   q1_2 ...  q1_n + <Q-SEP>   q2_1 ...
predict    q1_1    q1_2   q1_3 ...  q2_1             q2_2 ...
```

Source: PyraTok (arXiv 2601.16210), sec. 3.2.2. ``<Q-SEP>`` is added to the word before it rather than a place of its
own. A place asks from the position of the word that it predicts, and what it holds lies at that of the word it read.

In the order ``cell`` a place of the transformer is a stack: it reads all words of the cell before, and predicts the
first of its own. Each of the others follows from the state that predicted the one before it and from that word, by a
small network per depth (as in RQ-Transformer, arXiv 2203.01941).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyratok.tasks.generation.backbone import Backbone, KVCache, TextMemory
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.layout import Layout
from pyratok.tasks.generation.prior import OnWords, Places, Prior, PriorOutput
from pyratok.tasks.generation.sampling import Sampler
from pyratok.tasks.generation.stepwise import Stepwise
from pyratok.types import Geometry, TextEmbedding, TokenPyramid


class ARPrior(Prior):
    """The prior of kind ``ar``."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.start = nn.Parameter(torch.randn(config.hidden_size) * 0.02)
        self.separator = nn.Parameter(torch.randn(config.hidden_size) * 0.02)

    def draw(
        self, batch: int, geometry: Geometry, generator: torch.Generator | None = None, *, measure: bool = False
    ) -> dict[str, Tensor]:
        return {"dropped": self._drop(batch, generator, measure)}

    def forward(
        self, tokens: TokenPyramid, text: TextEmbedding | None = None, choices: dict[str, Tensor] | None = None
    ) -> PriorOutput:
        words, layout = self.words_of(tokens)
        choices = choices or self.draw(len(words), tokens.geometry)
        memory = self.remember(text, len(words), choices["dropped"])
        hidden = self.read(words, self.places(layout), 0, len(layout.at_depth[0]), memory)
        hidden = self._of_words(hidden, words, layout)
        predicted = torch.ones_like(words, dtype=torch.bool)
        return PriorOutput(token_nll=self.nll(hidden, words), predicted=predicted, level=layout.level)

    def places(self, layout: Layout) -> Places:
        found = super().places(layout)
        return replace(found, features=found.features + layout.begins_level[:, None] * self.separator)

    def _held_at(self, angles: Tensor) -> Tensor:
        return F.pad(angles, (0, 0, 1, 0))[:-1]

    def read(
        self,
        words: Tensor,
        places: Places,
        first: int,
        stop: int,
        memory: TextMemory,
        cache: KVCache | None = None,
        stepwise: Stepwise | None = None,
    ) -> Tensor:
        """Hidden states ``[B, stop - first, H]`` that predict the stacks from ``first`` on, from the words before each.

        Without a ``cache``, which has read what is before ``first``, that is 0. Words of the stacks from ``stop - 1``
        on do not matter. One stack alone goes by ``stepwise``, where there is one of that ``memory`` and ``cache``.
        """
        inputs = self._held(words, places.layout, max(0, first - 1), stop - 1)
        if not first:
            inputs = torch.cat([self.start.expand(len(words), 1, -1), inputs], dim=1)
        features, turn = places.part(first, stop)
        inputs = inputs + features
        if stepwise is not None and stop == first + 1:
            hidden = stepwise(inputs, turn)
        else:
            hidden = self.backbone(inputs, turn, memory, causal=True, cache=cache)
        if cache is not None:
            cache.length += stop - first
        return hidden

    def sample(
        self, words: Tensor, known: Tensor, layout: Layout, memory: TextMemory, draw: Sampler, on_words: OnWords
    ) -> tuple[Tensor, Tensor]:
        words, gained = words.clone(), torch.zeros(words.shape, device=words.device)
        begins, wanted = [*layout.at_depth[0].tolist(), len(layout)], (~known.all(0)).tolist()
        cache, places = KVCache(len(begins) - 1), self.places(layout)
        # A language model has its own way.
        stepwise = Stepwise(self.backbone, memory, cache) if isinstance(self.backbone, Backbone) else None
        for stack, (begin, end) in enumerate(pairwise(begins)):
            if not any(wanted[begin:end]):
                continue
            hidden = self.read(draw.twice(words), places, cache.length, stack + 1, memory, cache, stepwise)[:, -1:]
            for place in range(begin, end):
                here, depth = slice(place, place + 1), place - begin
                if depth:
                    before = self.embed(draw.twice(words[:, place - 1 : place]), depth - 1)
                    hidden = self.deepen[depth - 1](hidden, before)
                if wanted[place]:
                    drawn, log_likelihood = draw(hidden, here)
                    words[:, here] = torch.where(known[:, here], words[:, here], drawn)
                    gained[:, here] = log_likelihood.masked_fill(known[:, here], 0.0)
            on_words(words, end)
        return words, gained

    def _held(self, words: Tensor, layout: Layout, first: int, stop: int) -> Tensor:
        """What the stacks from ``first`` to ``stop`` hold, ``[B, stop - first, H]``: the sum of their words."""
        if not self.deepen:
            return self.embed(words[:, first:stop])
        begins = layout.at_depth[0]
        here = slice(int(begins[first]), int(begins[stop]))
        found = self.embed(words[:, here], layout.depth[here])
        held = found.new_zeros(len(words), stop - first, found.shape[-1])
        return held.index_add(1, layout.stack[here] - first, found)

    def _of_words(self, hidden: Tensor, words: Tensor, layout: Layout) -> Tensor:
        """From the states of stacks to those that predict each word, ``[B, n, H]``."""
        if not self.deepen:
            return hidden
        states = [hidden]
        for depth, (deepen, places) in enumerate(zip(self.deepen, layout.at_depth[1:], strict=True)):
            before = torch.searchsorted(layout.at_depth[depth], places - 1)
            states.append(deepen(states[-1][:, before], self.embed(words[:, places - 1], depth)))
        return torch.cat(states, dim=1)[:, torch.cat(layout.at_depth).argsort()]
