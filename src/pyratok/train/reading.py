"""Learning to read finished tokens: the text head and the language model, no pixel in sight.

    shards ── ids ──► signs ─┬► pyramid ──► text head ──► alignment terms
                             └► language model after the caption ──► autoregressive term

The same terms as beside a learning tokenizer (:mod:`pyratok.train.language`), without its encoder and decoder.
"""

from __future__ import annotations

from torch import Tensor

from pyratok.quantization.bits import ids_to_signs
from pyratok.train.language import LanguageObjective
from pyratok.train.objectives import Named, Part
from pyratok.train.stored import TokenBatch


class ReadingObjective(LanguageObjective):
    """Of :class:`~pyratok.train.language.LanguageObjective` the terms that look at tokens alone, on stored ones."""

    def prepare(self, batch: TokenBatch, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """The signs of the last level take the place of the clips, those of the others are choices."""
        part = part or Part.whole(len(batch.captions))
        signs = [ids_to_signs(ids, self.model.tokenizer.num_bits) for ids in batch.levels]
        others = {f"signs_{level}": value for level, value in enumerate(signs[:-1], start=1)}
        return signs[-1], others | self.told(batch, part)

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        others = range(1, self.model.tokenizer.num_levels)
        return self.read_terms([*(choices[f"signs_{level}"] for level in others), video], choices)
