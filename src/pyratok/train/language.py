"""What a training step computes when language takes part: reconstruction, codebook, alignment, prediction, drift.

    batch ── captions ──► text encoder ─┐ (dropped for most clips: the learned null text)
      └───── clips ──► mask ──► encoder ─┴► levels ──► decoder ──► reconstruction terms, against the unmasked clips
                          │               ├► text head ──► alignment terms, on the clips without a caption
                          │               └► language model after the caption ──► autoregressive term
                          └► frozen encoder, or, shown whole frames, an image encoder ──► drift, retention

Tokens that may copy the caption teach the video nothing: whatever ties tokens to text is computed on those clips alone
whose tokens were made without one (:class:`LanguageConfig`, ``caption_dropout``).

Source: PyraTok (arXiv 2601.16210), sec. 3.2 and App. D.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from pyratok.data.captioned import CaptionedBatch
from pyratok.data.datasets import to_signed
from pyratok.data.masking import MaskingConfig
from pyratok.losses.codebook import hierarchical_kl
from pyratok.losses.perceptual import PerceptualLoss
from pyratok.losses.retention import feature_kl, frame_retention
from pyratok.model.alignment import TokenLM, TokenLMConfig
from pyratok.model.lapq import LaPQLevel
from pyratok.model.pyratok import PyraTok
from pyratok.model.text_head import TextHead
from pyratok.nn.collective import mean_across_ranks
from pyratok.text.base import TextEncoder
from pyratok.text.hf import HFTextEncoder
from pyratok.text.minilm import MiniLM
from pyratok.text.references import DinoReference, ReferenceEncoder
from pyratok.train.aligning import CaptionTable, alignment_terms
from pyratok.train.objectives import (
    LossWeights,
    Named,
    Objective,
    Part,
    codebook_terms,
    draw_bit_order,
    draw_levels,
    draw_part_of_mask,
)
from pyratok.train.stored import TokenBatch
from pyratok.train.teachers import FeatureProjector
from pyratok.types import LevelOutput, Stride, TextEmbedding
from pyratok.vae.wan import Decoder, WanVAE


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """How language takes part in a stage.

    ``caption_dropout``: share of the clips whose tokens are made without their caption, and which the alignment terms
    are computed on. ``max_text_tokens``: longer captions are cut. ``temperature`` of the distributions of the KL terms,
    ``contrast`` of the contrastive ones. ``words``: how many tokens of a clip stand for its codewords.
    ``steps``: how many neighbouring steps of a clip the text head reads, from a place drawn per clip; 0 for all. It
    reads each by itself, and those of one clip show much the same.
    ``vocabulary``: how many names of objects in general, drawn anew at each step, the names of a batch are told from.
    ``background``: the cosine of "none of these" in grounding. ``masking`` hides parts of the encoder's input; the
    target stays whole. ``lm``: the language model.
    """

    caption_dropout: float = 0.7
    max_text_tokens: int = 32
    temperature: float = 1.0
    contrast: float = 0.07
    vocabulary: int = 0
    background: float | None = None
    words: int = 64
    steps: int = 0
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    lm: TokenLMConfig | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout is a share in [0, 1], got {self.caption_dropout}")
        for name in ("temperature", "contrast", "max_text_tokens", "words"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps must be a number of steps, 0 for all, got {self.steps}")
        if self.vocabulary < 0:
            raise ValueError(f"vocabulary must be a number of names, 0 or more, got {self.vocabulary}")
        if self.background is not None and not -1 <= self.background <= 1:
            raise ValueError(f"background must be a cosine in [-1, 1], or null for none, got {self.background}")


class LanguageParts(nn.Module):
    """What learns together: the tokenizer, which is what a run is for, and beside it the language model and the way to
    the features of an image encoder.
    """

    def __init__(self, tokenizer: PyraTok, lm: TokenLM | None, projector: FeatureProjector | None = None) -> None:
        super().__init__()
        self.tokenizer, self.lm, self.projector = tokenizer, lm, projector


class LanguageObjective(Objective):
    """All terms of the method; a weight of 0 leaves its term out and saves its cost.

    ``reference``: for drift and retention, the encoder as it was (:func:`frozen_copy`), or an image encoder, for which
    ``parts`` has a projector.
    """

    model: LanguageParts

    def __init__(
        self,
        parts: LanguageParts,
        weights: LossWeights,
        config: LanguageConfig,
        text_encoder: TextEncoder,
        reference: WanVAE | ReferenceEncoder | None = None,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__(parts, weights, perceptual)
        assert isinstance(reference, WanVAE | None) == (parts.projector is None), "an image encoder needs a projector"
        self.config = config
        self.reference = reference
        # Not modules: neither is to be trained, averaged or saved.
        self.texts = CaptionTable(text_encoder, config.max_text_tokens)
        # Windows of another place each step, and someone else's model: nothing a compiler would gain by.
        self.predict = torch.compiler.disable(self._prediction)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageObjective:
        """Takes the frozen models beside, which are no modules, along to another device."""
        super()._apply(fn, recurse)
        device = next(self.model.parameters()).device
        for beside in (self.texts.encoder, self.reference):
            if isinstance(beside, (MiniLM, HFTextEncoder, DinoReference)):
                beside.to(device)
        return self

    def prepare(self, batch: CaptionedBatch, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        clips, part = to_signed(batch.videos), part or Part.whole(len(batch.captions))
        mask = draw_part_of_mask(self.config.masking, clips, part)
        choices = {
            "kept_levels": part.of(draw_levels(self.model.tokenizer, part.total)),
            "bit_order": draw_bit_order(self.model.tokenizer),
            "shown": mask.apply(clips).contiguous(memory_format=torch.channels_last_3d),
        }
        return mask.target(clips), choices | self.told(batch, part)

    def told(self, batch: CaptionedBatch | TokenBatch, part: Part) -> dict[str, Tensor]:
        """What is said of a batch, and which of it the tokens are made with: the choices that have to do with text."""
        choices = self.texts.said(batch)
        captioned = choices["captioned"]
        choices |= {
            "window": torch.rand(()),
            "read": part.of(torch.rand(part.total, 2)),
            "guided": captioned & (part.of(torch.rand(part.total)) >= self.config.caption_dropout),
        }
        if self.model.lm is not None or self.config.caption_dropout < 1:
            text = self.texts.captions(batch.captions)
            choices["text_tokens"], choices["pooled"] = text.tokens, text.pooled
            choices["text_mask"] = text.mask & captioned[:, None].to(text.mask.device)
        else:  # nobody reads their words, and of stored clips the same captions come back
            choices["pooled"] = self.texts.names(batch.captions)
        return choices | self.texts.drawn(self.config.vocabulary)

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        tokenizer, weights = self.model.tokenizer, self.weights
        taps = tokenizer.vae.encode_taps(choices["shown"])
        guided = None
        if "text_tokens" in choices:
            guided = TextEmbedding(
                tokens=choices["text_tokens"],
                mask=choices["text_mask"] & choices["guided"][:, None],
                pooled=choices["pooled"],
            )
        levels = tokenizer.lapq.quantize(taps, guided)
        bits = [level.bits for level in levels]
        terms: Named = {}
        metrics: Named = {}
        if self.weights.reconstructs:
            latent = tokenizer.lapq.latent(bits, choices["kept_levels"])
            terms, metrics = self.reconstruction_terms(tokenizer.vae.decode(latent), video)
        found, health = codebook_terms(levels, weights, choices["bit_order"])
        terms, metrics = {**terms, **found}, {**metrics, **health}
        if weights.hierarchical:
            terms["hierarchical"] = self._hierarchical(levels)
        found, health = self.read_terms(bits, choices)
        terms, metrics = {**terms, **found}, {**metrics, **health}
        if self.reference is not None and (weights.drift or weights.retention):
            terms |= self._kept(taps, choices["shown"], video)
        return terms, metrics

    def read_terms(self, bits: Sequence[Tensor], choices: dict[str, Tensor]) -> tuple[Named, Named]:
        """Those that need the signs ``[B, K, t, h, w]`` of every level alone: alignment and prediction."""
        terms, metrics = self._alignment(bits, choices), dict[str, Tensor]()
        if self.model.lm is not None and self.weights.autoregressive:
            terms["autoregressive"], metrics = self.predict(self.model.lm, bits, choices)
        return terms, metrics

    def _hierarchical(self, levels: Sequence[LevelOutput]) -> Tensor:
        strides = self.model.tokenizer.strides
        pairs = range(1, len(levels))
        return torch.stack(
            [hierarchical_kl(levels[i].presign, levels[i - 1].presign, strides[i], strides[i - 1]) for i in pairs]
        ).mean()

    def _alignment(self, bits: Sequence[Tensor], choices: dict[str, Tensor]) -> Named:
        """Terms between tokens and text, on the clips whose tokens know no caption."""
        tokenizer, weights = self.model.tokenizer, self.weights
        if tokenizer.text_head is None or not weights.aligns:
            return {}
        found = self._read(tokenizer.text_head, bits, choices["read"])
        words = self._words(bits[-1]) if weights.text_words else None
        masks = self._steps(choices["masks"], choices["read"])
        return alignment_terms(weights, self.config, found, words, choices | {"masks": masks})

    def _read(self, head: TextHead, bits: Sequence[Tensor], drawn: Tensor) -> list[Tensor]:
        """Tokens in the text space, per grid, the last one last: of levels that share it each clip shows one.

        ``drawn`` float32 ``[B, 2]`` in [0, 1) says which, half of the clips the last one, which is asked most; and
        which steps. The head is most of what a step with frozen tokens costs, and levels of one grid have much in
        common.
        """
        pyramid = self.model.tokenizer.lapq.pyramid(bits)
        sharing: dict[Stride, list[int]] = {}
        for level, stride in enumerate(self.model.tokenizer.strides):
            sharing.setdefault(stride, []).append(level)
        found = []
        for levels in sharing.values():
            others = ((2 * drawn[:, 0] - 1) * (len(levels) - 1)).long()
            chosen = torch.where(drawn[:, 0] < 0.5, len(levels) - 1, others)
            features = torch.stack([pyramid[level] for level in levels])[
                chosen, torch.arange(len(drawn), device=drawn.device)
            ]
            found.append(head(self._steps(features, drawn), torch.tensor(levels, device=drawn.device)[chosen]))
        return found

    def _steps(self, values: Tensor, drawn: Tensor) -> Tensor:
        """``config.steps`` neighbouring steps of ``values`` ``[B, C, t, h, w]``, or all where there are no more."""
        count, held = self.config.steps, values.shape[2]
        if not 0 < count < held:
            return values
        first = (drawn[:, 1] * (held - count + 1)).long()
        wanted = first[:, None] + torch.arange(count, device=values.device)
        return values.take_along_dim(wanted[:, None, :, None, None], dim=2)

    def _words(self, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Words of the last level in the text space, each from its bits alone, ``[B S, D]``, and whose they are."""
        tokenizer = self.model.tokenizer
        assert tokenizer.text_head is not None
        batch, count = bits.shape[0], min(self.config.words, bits[0, 0].numel())
        positions = torch.linspace(0, bits[0, 0].numel() - 1, count, device=bits.device).long()
        signs = bits.flatten(2)[:, :, positions].movedim(2, 1).reshape(batch * count, -1, 1, 1, 1)
        level = cast(LaPQLevel, tokenizer.lapq.levels[-1])
        words = tokenizer.text_head(level.lift(tokenizer.lapq.embed(signs)), len(tokenizer.lapq.levels) - 1)
        return words.flatten(1), torch.eye(batch, device=bits.device).repeat_interleave(count, dim=1)

    def _prediction(self, lm: TokenLM, bits: Sequence[Tensor], choices: dict[str, Tensor]) -> tuple[Tensor, Named]:
        """L_AR over the clips whose tokens know no caption: from the others it would reward copying it."""
        text = TextEmbedding(tokens=choices["text_tokens"], mask=choices["text_mask"], pooled=choices["pooled"])
        output = lm(bits, text, window=float(choices["window"]))
        blind = (~choices["guided"]).float()
        # This rank's part of the mean over the clips of all ranks; their mean count may be less than 1.
        count = mean_across_ranks(blind.sum()).clamp_min(1e-6)
        means = (torch.stack([nll.mean(1) for nll in output.token_nll]) * blind).sum(1) / count
        lengths = means.new_tensor([nll.shape[1] for nll in output.token_nll])
        bits_per_token = means.detach() / math.log(2)
        told = {f"lm_bits_{level}": value for level, value in enumerate(bits_per_token, start=1)}
        return (means * lengths).sum() / lengths.sum(), told

    def _kept(self, taps: Sequence[Tensor], shown: Tensor, video: Tensor) -> Named:
        """How far the adapted encoder is from the frozen one: per position deep down, per frame at the top.

        An image encoder looks at whole frames: what it sees in masked ones says nothing of the video.
        """
        if not isinstance(self.reference, WanVAE):
            terms: Named = {}
            assert self.reference is not None
            assert self.model.projector is not None
            with torch.no_grad():
                seen = self.reference.encode_frames(video[:, :, :: self.model.tokenizer.config.vae.latent_stride[0]])
            if self.weights.drift:
                terms["drift"] = self.model.projector.drift(taps[-1], seen)
            if self.weights.retention:
                terms["retention"] = self.model.projector.retention(taps[-1], seen)
            return terms
        return moved_features(self.weights, taps, self.reference, shown)


def moved_features(weights: LossWeights, taps: Sequence[Tensor], reference: WanVAE, shown: Tensor) -> Named:
    """How far ``taps`` of the clips ``shown`` are from those of the encoder as it was (:func:`frozen_copy`)."""
    with torch.no_grad():
        before = reference.encode_taps(shown)
    terms: Named = {}
    if weights.drift:
        terms["drift"] = feature_kl(taps[-1], before[-1])
    if weights.retention:
        now, then = (first.mean(dim=(3, 4)).mT for first in (taps[0], before[0]))
        terms["retention"] = frame_retention(now, then)
    return terms


class NoText:
    """Stands in for a text encoder where nothing depends on captions: every text is empty."""

    name = "none"
    max_tokens = 1

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        shape = len(texts), self.max_tokens
        tokens, mask = torch.zeros(*shape, self.dim), torch.zeros(shape, dtype=torch.bool)
        return TextEmbedding(tokens=tokens, mask=mask, pooled=tokens[:, 0])


def frozen_copy(vae: WanVAE) -> WanVAE:
    """The encoder as it is before adapters move it."""
    reference = copy.deepcopy(vae)
    reference.decoder = cast(Decoder, nn.Identity())  # only features are compared
    return reference.eval().requires_grad_(False)
