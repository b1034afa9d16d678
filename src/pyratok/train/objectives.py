"""What a training step computes: a module from a batch of clips to named loss terms.

An objective owns its model, so that one ``torch.compile`` covers forward and losses and fuses what lies between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyratok.data.datasets import to_signed
from pyratok.data.masking import InputMask, MaskingConfig, draw_mask
from pyratok.losses.perceptual import PerceptualLoss
from pyratok.losses.reconstruction import l1_loss, log_mse_loss, ssim_loss
from pyratok.model.pyratok import PyraTok
from pyratok.nn.collective import mean_across_ranks
from pyratok.quantization.entropy import batch_entropy, sample_entropy
from pyratok.quantization.lfq import commitment_loss
from pyratok.types import LevelOutput, LossTerms
from pyratok.vae.wan import WanVAE

Named = dict[str, Tensor]

GROUP_BITS = 8
"""How many bits of a word batch entropy sees together."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each term; 0 switches it off.

    The codebook terms apply wherever there are tokens, those from ``hierarchical`` on in stages with language
    (:mod:`pyratok.train.language`). ``log_mse``, ``contrastive``, ``grounding`` and ``naming`` are
    ours, the others the paper's.
    """

    l1: float = 1.0
    mse: float = 0.0
    log_mse: float = 0.0
    ssim: float = 0.2
    perceptual: float = 0.0
    latent: float = 1e-4
    commitment: float = 0.02
    sample_entropy: float = 0.0
    batch_entropy: float = 0.02
    hierarchical: float = 0.0
    text_tokens: float = 0.0
    text_words: float = 0.0
    contrastive: float = 0.0
    grounding: float = 0.0
    naming: float = 0.0
    autoregressive: float = 0.0
    drift: float = 0.0
    retention: float = 0.0

    @property
    def reconstructs(self) -> bool:
        """Is there any term that needs the decoder?"""
        return any((self.l1, self.mse, self.log_mse, self.ssim, self.perceptual))

    @property
    def aligns(self) -> bool:
        """Is there any term that needs the text head?"""
        return any((self.text_tokens, self.text_words, self.contrastive, self.grounding, self.naming))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which clips of a step a batch holds: ``size`` of ``total``, from number ``first`` on.

    Random choices are drawn for every clip of the step and then cut, so that they do not depend on how a step is
    divided among processes and micro-batches.
    """

    first: int
    size: int
    total: int

    @classmethod
    def whole(cls, total: int) -> Part:
        return cls(first=0, size=total, total=total)

    def of(self, drawn: Tensor) -> Tensor:
        """This part of what was drawn for all clips, ``[total, ...]`` to ``[size, ...]``."""
        assert len(drawn) == self.total
        return drawn[self.first : self.first + self.size]


class Objective(nn.Module):
    """Base: ``terms`` computes, ``forward`` adds the weights.

    What varies from step to step besides the clips (level dropout, captions) is made in ``prepare``, outside the
    compiled part.
    """

    def __init__(self, model: nn.Module, weights: LossWeights, perceptual: PerceptualLoss | None = None) -> None:
        super().__init__()
        if weights.perceptual and perceptual is None:
            raise ValueError("a perceptual weight needs a perceptual loss; pip install pyratok[train] or set it to 0")
        self.model, self.weights, self.perceptual = model, weights, perceptual

    def prepare(self, batch: Any, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch of the dataset as clips in [-1, 1] and the choices of this step, for :meth:`terms`.

        Random ones come from torch's generator, which the trainer seeds for every step, and are drawn for the whole
        step, of which the batch is ``part`` (by default all). All tensors begin with the batch axis, or are the same
        for every part.
        """
        return to_signed(batch), {}

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        """Loss terms, and metrics that are only watched, for clips ``[B, 3, T, H, W]`` in [-1, 1]."""
        raise NotImplementedError

    def forward(self, video: Tensor, **choices: Tensor) -> LossTerms:
        terms, metrics = self.terms(video, **choices)
        weights = {name: value for name, value in asdict(self.weights).items() if name in terms}
        return LossTerms(terms=terms, weights=weights, metrics=metrics)

    def reconstruction_terms(self, reconstruction: Tensor, video: Tensor) -> tuple[Named, Named]:
        reconstruction = reconstruction.float()
        square = (reconstruction - video).square()
        terms = {"l1": l1_loss(reconstruction, video)}
        if self.weights.mse:
            terms["mse"] = square.mean()
        if self.weights.log_mse:
            terms["log_mse"] = log_mse_loss(reconstruction, video)
        if self.weights.ssim:
            terms["ssim"] = ssim_loss(reconstruction, video)
        if self.perceptual is not None and self.weights.perceptual:
            terms["perceptual"] = self.perceptual(reconstruction, video)
        return terms, {"psnr": -10 * torch.log10(square.detach().mean(dim=(1, 2, 3, 4)) / 4).mean()}


class VAEObjective(Objective):
    """Reconstruct through the posterior mean; an L2 penalty keeps the latent small.

    The variance is not used: tokens are read off the features, never sampled.
    """

    model: WanVAE

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        reconstruction, moments = self.model(video)
        terms, metrics = self.reconstruction_terms(reconstruction, video)
        terms["latent"] = moments.chunk(2, dim=1)[0].float().square().mean()
        return terms, metrics


class TokenizerObjective(Objective):
    """Reconstruct from binary words, with a random prefix of the levels for a share of the clips.

    ``batch_entropy`` enters negated: usage is to rise. Codebook health per level is watched: the mean entropy of a bit
    over the batch (1 = used evenly) and the share of bits whose mean lies outside [0.1, 0.9].
    """

    model: PyraTok

    def prepare(self, batch: Any, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        part = part or Part.whole(len(batch))
        choices = {"kept_levels": part.of(draw_levels(self.model, part.total)), "bit_order": draw_bit_order(self.model)}
        return to_signed(batch), choices

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        kept = choices["kept_levels"]
        output = self.model(video, kept_levels=kept)
        terms, metrics = self.reconstruction_terms(output.reconstruction, video)
        found, health = codebook_terms(output.levels, self.weights, choices["bit_order"])
        return {**terms, **found}, {**metrics, **health}


def codebook_terms(levels: Sequence[LevelOutput], weights: LossWeights, bit_order: Tensor) -> tuple[Named, Named]:
    """The terms of eq. 2 that look at one level alone, means over levels, and the codebook's health per level.

    Bits that are even one by one may still repeat one another, and a word of 16 then says less than 16 bits: the batch
    entropy looks at groups of them, made anew at each step (``bit_order``), so that no pair is always apart. It is that
    of the signs, softened alike, with their straight-through gradient: of the values before the sign it would also
    rise by making them small, which tells no word from another.

    Health is that of the batch of all ranks: a part of it looks worse than the whole.
    """
    terms: Named = {}
    metrics: Named = {}
    if weights.commitment:
        terms["commitment"] = torch.stack([commitment_loss(o.presign, o.bits) for o in levels]).mean()
    if weights.sample_entropy:
        terms["sample_entropy"] = torch.stack([sample_entropy(o.presign) for o in levels]).mean()
    if weights.batch_entropy:
        shuffled = [o.bits.index_select(1, bit_order) for o in levels]
        spread = [batch_entropy(bits, group_bits=GROUP_BITS, across_ranks=True) for bits in shuffled]
        terms["batch_entropy"] = -torch.stack(spread).mean()
    with torch.no_grad():
        for number, level in enumerate(levels, start=1):
            mean = (mean_across_ranks(level.bits.mean(dim=(0, 2, 3, 4))) + 1) / 2
            metrics[f"bit_entropy_{number}"] = binary_entropy(mean).mean()
            metrics[f"uneven_bits_{number}"] = ((mean - 0.5).abs() > 0.4).float().mean()
    return terms, metrics


def draw_levels(model: PyraTok, batch_size: int) -> Tensor:
    """Level dropout: how many levels each clip is decoded from, int64 ``[B]``."""
    kept = torch.randint(1, model.num_levels + 1, (batch_size,))
    dropped = torch.rand(batch_size) < model.config.lapq.level_dropout
    return torch.where(dropped, kept, model.num_levels)


def draw_bit_order(model: PyraTok) -> Tensor:
    """Which bits of a word stand next to each other in :func:`codebook_terms`, int64 ``[16]``."""
    return torch.randperm(model.config.lapq.num_bits)


def draw_part_of_mask(config: MaskingConfig, clips: Tensor, part: Part) -> InputMask:
    """The masks of ``clips`` ``[B, C, T, H, W]``, which are ``part`` of a step, cut from those of the whole step."""
    drawn = draw_mask(config, (part.total, *clips.shape[1:]), torch.default_generator)
    return replace(drawn, order=part.of(drawn.order), keep=part.of(drawn.keep))


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy in bits of Bernoulli variables with means ``p``, elementwise."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)
