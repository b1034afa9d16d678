"""What a training step computes for a baseline quantizer: the terms of the method that do not ask for a pyramid.

Reconstruction, alignment with text, and drift are those of :mod:`pyratok.train.language`, with the same weights. Its
terms between levels and its language model over bits have no counterpart; in place of the codebook terms of LaPQ there
are the quantizer's own.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from pyratok.data.captioned import CaptionedBatch
from pyratok.data.datasets import to_signed
from pyratok.losses.perceptual import PerceptualLoss, st_lpips
from pyratok.model.baseline import BaselineConfig, BaselineTokenizer
from pyratok.model.pretrained import from_pretrained
from pyratok.model.pyratok import PyraTok
from pyratok.quantization.vq import GumbelQuantizer
from pyratok.text.base import TextEncoder
from pyratok.text.minilm import MiniLM
from pyratok.train.aligning import CaptionTable, alignment_terms
from pyratok.train.assembly import choose_how_halves_learn
from pyratok.train.language import LanguageConfig, frozen_copy, moved_features
from pyratok.train.objectives import LossWeights, Named, Objective, Part, draw_part_of_mask
from pyratok.train.recipe import Recipe
from pyratok.types import LossTerms
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import channels_last_

OWN_WEIGHTS = {"commitment": 0.25, "uniform_kl": 5e-4}
"""Of learned codebooks: VQ-VAE (arXiv 1711.00937), eq. 3, and Gumbel-softmax as taming transformers weighs it. Sign
quantizers have LaPQ's terms, and its weights."""
LAST_TEMPERATURE = 1 / 16
"""Of the Gumbel-softmax, which starts at 1: DALL-E (arXiv 2102.12092), app. A.2."""


class BaselineParts(nn.Module):
    """The tokenizer, and how many steps it has learned: a part of the state, so that a resumed run goes on from it."""

    step: Tensor

    def __init__(self, tokenizer: BaselineTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.register_buffer("step", torch.zeros(()))  # a float, since buffers are averaged with the weights


class BaselineObjective(Objective):
    """``steps``: length of the run, over which the temperature of a drawn codebook falls."""

    model: BaselineParts

    def __init__(
        self,
        parts: BaselineParts,
        weights: LossWeights,
        config: LanguageConfig,
        text_encoder: TextEncoder,
        steps: int,
        reference: WanVAE | None = None,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__(parts, weights, perceptual)
        self.config, self.steps, self.reference = config, steps, reference
        self.texts = CaptionTable(text_encoder, config.max_text_tokens)

    def prepare(self, batch: CaptionedBatch, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        quantizer = self.model.tokenizer.quantizer
        if isinstance(quantizer, GumbelQuantizer):
            quantizer.temperature = LAST_TEMPERATURE ** min(1.0, float(self.model.step) / self.steps)
        self.model.step += 1
        clips, size = to_signed(batch.videos), len(batch.captions)
        mask = draw_part_of_mask(self.config.masking, clips, part or Part.whole(size))
        choices = {
            "shown": mask.apply(clips).contiguous(memory_format=torch.channels_last_3d),
            "pooled": self.texts.captions(batch.captions).pooled,
        }
        return mask.target(clips), choices | self.texts.said(batch)

    def forward(self, video: Tensor, **choices: Tensor) -> LossTerms:
        terms, metrics = self.terms(video, **choices)
        learned = "batch_entropy" not in terms
        weights = asdict(self.weights) | (OWN_WEIGHTS if learned else {})
        return LossTerms(terms=terms, weights={name: weights[name] for name in terms}, metrics=metrics)

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        tokenizer = self.model.tokenizer
        taps = tokenizer.vae.encode_taps(choices["shown"])
        quantized = tokenizer.quantize(taps[-1])
        latent = tokenizer.out(tokenizer.features(quantized.features))
        terms, metrics = self.reconstruction_terms(tokenizer.vae.decode(latent), video)
        terms |= quantized.losses
        if self.weights.aligns:
            q = tokenizer.meaning(quantized.features)
            words = self._words(q) if self.weights.text_words else None
            terms |= alignment_terms(self.weights, self.config, [tokenizer.text_head(q, 0)], words, choices)
        if self.reference is not None:
            terms |= moved_features(self.weights, taps, self.reference, choices["shown"])
        return terms, metrics

    def _words(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """As in :class:`~pyratok.train.language.LanguageObjective`: some cells in the text space, each by itself."""
        batch, count = q.shape[0], min(self.config.words, q[0, 0].numel())
        positions = torch.linspace(0, q[0, 0].numel() - 1, count, device=q.device).long()
        alone = q.flatten(2)[:, :, positions].movedim(2, 1).reshape(batch * count, -1, 1, 1, 1)
        words = self.model.tokenizer.text_head(alone, 0).flatten(1)
        return words, torch.eye(batch, device=q.device).repeat_interleave(count, dim=1)


def build_baseline(
    config: BaselineConfig, recipe: Recipe, init: Path, text_encoder: TextEncoder | None = None
) -> BaselineObjective:
    """A baseline with the VAE of the model in ``init``, whose halves learn as ``recipe`` says, in its objective.

    Raises: ValueError where the VAE in ``init`` is another one.
    """
    saved = from_pretrained(init)
    if not isinstance(saved, PyraTok) or saved.config.vae != config.vae:
        raise ValueError(f"{init}: its VAE is not the one this recipe trains")
    model = BaselineTokenizer(config)
    vae = model.vae
    vae.load_state_dict(saved.vae.state_dict())
    channels_last_(model)
    weights = recipe.train.losses
    reference = frozen_copy(vae) if weights.drift or weights.retention else None
    choose_how_halves_learn(recipe, vae)
    perceptual = st_lpips(frames_per_clip=1) if weights.perceptual else None
    encoder = text_encoder or MiniLM()
    parts = BaselineParts(model)
    return BaselineObjective(parts, weights, recipe.language, encoder, recipe.train.steps, reference, perceptual)
