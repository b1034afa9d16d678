"""What a training step computes: a module from a batch of clips to named loss terms.

An objective owns its model, so that one ``torch.compile`` covers forward and losses and fuses what lies between.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from pyratok.losses.perceptual import PerceptualLoss
from pyratok.losses.reconstruction import l1_loss, ssim_loss
from pyratok.model.pyratok import PyraTok
from pyratok.quantization.entropy import batch_entropy, sample_entropy
from pyratok.quantization.lfq import commitment_loss
from pyratok.types import LossTerms
from pyratok.vae.wan import WanVAE

Named = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each term; 0 switches it off. Codebook terms apply to the tokenizer stage only."""

    l1: float = 1.0
    mse: float = 0.0
    ssim: float = 0.2
    perceptual: float = 0.0
    latent: float = 1e-4
    commitment: float = 0.02
    sample_entropy: float = 0.0
    batch_entropy: float = 0.02


class Objective(nn.Module):
    """Base: ``terms`` computes, ``forward`` adds the weights.

    A subclass with randomness of its own (level dropout) draws it in ``draw``, outside the compiled part.
    """

    def __init__(self, model: nn.Module, weights: LossWeights, perceptual: PerceptualLoss | None = None) -> None:
        super().__init__()
        if weights.perceptual and perceptual is None:
            raise ValueError("a perceptual weight needs a perceptual loss; pip install pyratok[train] or set it to 0")
        self.model, self.weights, self.perceptual = model, weights, perceptual

    def draw(self, batch_size: int) -> dict[str, Tensor]:
        """Random choices of one step, from torch's generator, which the trainer seeds; passed on to :meth:`terms`."""
        return {}

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

    def draw(self, batch_size: int) -> dict[str, Tensor]:
        levels = self.model.num_levels
        kept = torch.randint(1, levels + 1, (batch_size,))
        dropped = torch.rand(batch_size) < self.model.config.lapq.level_dropout
        return {"kept_levels": torch.where(dropped, kept, levels)}

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        kept = choices["kept_levels"]
        output = self.model(video, kept_levels=kept)
        terms, metrics = self.reconstruction_terms(output.reconstruction, video)
        weights, levels = self.weights, output.levels
        if weights.commitment:
            terms["commitment"] = torch.stack([commitment_loss(o.presign, o.bits) for o in levels]).mean()
        if weights.sample_entropy:
            terms["sample_entropy"] = torch.stack([sample_entropy(o.presign) for o in levels]).mean()
        if weights.batch_entropy:
            terms["batch_entropy"] = -torch.stack([batch_entropy(o.presign) for o in levels]).mean()
        with torch.no_grad():
            for number, level in enumerate(levels, start=1):
                mean = (level.bits.mean(dim=(0, 2, 3, 4)) + 1) / 2
                metrics[f"bit_entropy_{number}"] = binary_entropy(mean).mean()
                metrics[f"uneven_bits_{number}"] = ((mean - 0.5).abs() > 0.4).float().mean()
        return terms, metrics


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy in bits of Bernoulli variables with means ``p``, elementwise."""
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)
