"""Tokens brought near what is said of their clips: the terms for it, and the texts of a batch that they read.

Source: PyraTok (arXiv 2601.16210), sec. 3.2; grounding, naming and the contrastive term are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pyratok.data.captioned import CaptionedBatch
from pyratok.losses.alignment import (
    contrastive_alignment,
    grounding,
    text_codebook_alignment,
    text_conditioned_alignment,
)
from pyratok.text.base import TextEncoder
from pyratok.train.objectives import LossWeights, Named
from pyratok.train.stored import TokenBatch
from pyratok.types import TextEmbedding

if TYPE_CHECKING:
    from pyratok.train.language import LanguageConfig


def alignment_terms(
    weights: LossWeights,
    config: LanguageConfig,
    found: Sequence[Tensor],
    words: tuple[Tensor, Tensor] | None,
    said: Mapping[str, Tensor],
) -> Named:
    """The terms that ``weights`` ask for, on the clips whose tokens know no caption.

    ``found``: tokens in the text space ``[B, D, t, h, w]`` per grid, those of the last level last. ``words``: some of
    the last level's words there, each from its bits alone, ``[B S, D]``, and whose they are ``[B, B S]``. ``said``:
    :meth:`CaptionTable.said` with ``pooled`` captions ``[B, D]``, masks on the grid of ``found[-1]``, and, where there
    are any, ``guided`` ``[B]`` (tokens made with their caption) and a ``vocabulary`` ``[V, D]`` of names in general.
    """
    guided = said.get("guided", torch.zeros_like(said["captioned"]))
    pooled, blind, valid = said["pooled"], said["captioned"] & ~guided, said["valid"] & ~guided[:, None]
    terms: Named = {}
    if weights.text_tokens:
        vectors = [features.flatten(2).mT for features in found]
        terms["text_tokens"] = torch.stack(
            [text_conditioned_alignment(v, pooled, blind, config.temperature) for v in vectors]
        ).mean()
    if weights.text_words and words is not None:
        terms["text_words"] = text_codebook_alignment(*words, pooled, blind, config.temperature)
    if weights.contrastive:
        terms["contrastive"] = torch.stack(
            [contrastive_alignment(f.mean(dim=(2, 3, 4)), pooled, blind, config.contrast) for f in found]
        ).mean()
    named = said["names"], valid, config.contrast
    if weights.grounding:
        last = found[-1].movedim(1, -1)
        terms["grounding"] = grounding(last, said["masks"], *named, config.background, said.get("vocabulary"))
    if weights.naming:
        # A clip as one token that every object fills.
        clips, whole = [f.mean(dim=(2, 3, 4), keepdim=True) for f in found], valid[..., None, None, None].float()
        terms["naming"] = torch.stack(
            [grounding(clip.movedim(1, -1), whole, *named, None, said.get("vocabulary")) for clip in clips]
        ).mean()
    return terms


class CaptionTable:
    """Embeddings of captions, padded to one length so that a compiled step sees one shape; names are kept."""

    def __init__(self, encoder: TextEncoder, max_tokens: int) -> None:
        self.encoder, self.max_tokens = encoder, max_tokens
        self.known: dict[str, Tensor] = {}
        self.vocabulary: Tensor | None = None

    def captions(self, texts: Sequence[str]) -> TextEmbedding:
        text = self.encoder.encode(list(texts))
        missing = self.max_tokens - text.tokens.shape[1]
        tokens = F.pad(text.tokens, (0, 0, 0, missing)) if missing > 0 else text.tokens[:, : self.max_tokens]
        mask = F.pad(text.mask, (0, missing)) if missing > 0 else text.mask[:, : self.max_tokens]
        return TextEmbedding(tokens=tokens.contiguous(), mask=mask.contiguous(), pooled=text.pooled)

    def names(self, names: Iterable[str]) -> Tensor:
        """Unit vectors ``[N, D]``, on the CPU; an empty name is any vector."""
        names = list(names)
        if new := sorted(set(names) - self.known.keys()):
            # The encoder moves to the device of the training after it has told the names of objects in general.
            self.known |= dict(zip(new, self.encoder.encode(new).pooled.cpu(), strict=True))
        return torch.stack([self.known[name] for name in names])

    def said(self, batch: CaptionedBatch | TokenBatch) -> dict[str, Tensor]:
        """What is there to be said of B clips: ``captioned`` ``[B]``; of their objects unit vectors ``names``
        ``[B, N, D]``, which are ``valid`` ``[B, N]``, and ``masks``."""
        names = [noun for nouns in batch.nouns for noun in nouns]
        count = len(batch.captions)
        return {
            "captioned": torch.tensor([bool(caption.strip()) for caption in batch.captions]),
            "names": self.names(names).reshape(count, len(names) // count, -1),
            "valid": torch.tensor([bool(name) for name in names]).reshape(count, -1),
            "masks": batch.masks,
        }

    def learn_names(self, nouns: Sequence[str]) -> None:
        """Names of objects in general; without any, a batch has its own alone."""
        self.vocabulary = self.names(nouns) if nouns else None

    def drawn(self, count: int) -> dict[str, Tensor]:
        """``vocabulary``: ``count`` names of objects in general, drawn anew, if any are wanted and known."""
        if self.vocabulary is None or not count:
            return {}
        return {"vocabulary": self.vocabulary[torch.randperm(len(self.vocabulary))[:count]]}
