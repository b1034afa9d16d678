"""Learning to read finished tokens: the text head and the language model, no pixel in sight.

    shards ── ids ──► signs ─┬► pyramid ──► text head ──► alignment terms
                             └► language model after the caption ──► autoregressive term

The same terms as beside a learning tokenizer (:mod:`pyratok.train.language`), without its encoder and decoder.
:class:`HeadObjective` is for the tokens of any tokenizer with a text head, whatever its quantizer.
"""

from __future__ import annotations

from torch import Tensor, nn

from pyratok.model.base import VideoTokenizer
from pyratok.text.base import TextEncoder
from pyratok.train.aligning import CaptionTable, alignment_terms
from pyratok.train.language import LanguageConfig, LanguageObjective
from pyratok.train.objectives import LossWeights, Named, Objective, Part
from pyratok.train.stored import TokenBatch, all_signs, signs_of
from pyratok.types import LossTerms


class ReadingObjective(LanguageObjective):
    """Of :class:`~pyratok.train.language.LanguageObjective` the terms that look at tokens alone, on stored ones."""

    def prepare(self, batch: TokenBatch, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """The signs of the last level take the place of the clips, those of the others are choices."""
        part = part or Part.whole(len(batch.captions))
        last, others = signs_of(batch.levels, self.model.tokenizer)
        return last, others | self.told(batch, part)

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        return self.read_terms(all_signs(video, choices, self.model.tokenizer), choices)


class HeadParts(nn.Module):
    """A tokenizer of which the text head alone learns."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(False)
        self.head.requires_grad_(True)

    @property
    def head(self) -> nn.Module:
        head = getattr(self.tokenizer, "text_head", None)
        assert isinstance(head, nn.Module), f"{self.tokenizer.name} has no text head"
        return head


class HeadObjective(Objective):
    """Of the alignment terms those that ``weights`` ask for, on what :meth:`VideoTokenizer.read` makes of all tokens.

    ``text_words`` is not among them: it would ask every quantizer for its words.
    """

    model: HeadParts

    def __init__(
        self, parts: HeadParts, weights: LossWeights, config: LanguageConfig, text_encoder: TextEncoder
    ) -> None:
        super().__init__(parts, weights)
        self.config, self.texts = config, CaptionTable(text_encoder, config.max_text_tokens)

    def prepare(self, batch: TokenBatch, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The signs of the last level take the place of the clips, those of the others are choices."""
        last, others = signs_of(batch.levels, self.model.tokenizer)
        said = self.texts.said(batch) | self.texts.drawn(self.config.vocabulary)
        return last, others | said | {"pooled": self.texts.names(batch.captions)}

    def forward(self, video: Tensor, **choices: Tensor) -> LossTerms:
        found = self.model.tokenizer.read(all_signs(video, choices, self.model.tokenizer))
        terms = alignment_terms(self.weights, self.config, [found], None, choices)
        return LossTerms(terms=terms, weights={name: getattr(self.weights, name) for name in terms}, metrics={})
