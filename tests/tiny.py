"""Models small enough to be built and run in milliseconds, with every kind of layer that the real ones have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyratok.config import LaPQConfig, PyraTokConfig, WanVAEConfig
from pyratok.model.pyratok import PyraTok
from pyratok.types import TextEmbedding
from pyratok.vae.wan import WanVAE

# The shape of pyratok-nano in small: patches, a stage without spatial downsampling, no attention.
VAE = WanVAEConfig(
    base_dim=8,
    dim_mult=(1, 2, 2),
    z_dim=6,
    num_res_blocks=1,
    temporal_downsample=(True, True),
    spatial_downsample=(True, False),
    patch_size=4,
    mid_attention=False,
)
# Every transition is another one: time and space, time alone, the same grid.
LAPQ = LaPQConfig(
    taps=(0, 1, 2, 3),
    strides=((1, 16, 16), (2, 8, 8), (4, 8, 8), (4, 8, 8)),
    width=16,
    num_heads=2,
    text_dim=12,
)
CONFIG = PyraTokConfig(name="tiny", vae=VAE, lapq=LAPQ)

_SMALL: dict[str, Any] = {"base_dim": 8, "z_dim": 4, "dim_mult": (1, 2, 2), "num_res_blocks": 1}
# Wan 2.1 with its attention and a stage that keeps time, Wan 2.2 with its shortcuts, and nano, which has neither.
VAES = {
    "nano": VAE,
    "plain": WanVAEConfig(**_SMALL, temporal_downsample=(False, True)),
    "residual": WanVAEConfig(
        **_SMALL, temporal_downsample=(True, True), decoder_base_dim=12, is_residual=True, patch_size=2
    ),
}


def tiny_vae(name: str) -> WanVAE:
    """A random VAE in evaluation mode, with gains other than one."""
    torch.manual_seed(0)
    vae = WanVAE(VAES[name])
    randomize_gains(vae)
    return vae.eval()


def tiny_pyratok(seed: int = 0, config: PyraTokConfig = CONFIG) -> PyraTok:
    """A random tokenizer in evaluation mode, with gains other than one."""
    torch.manual_seed(seed)
    model = PyraTok(config)
    randomize_gains(model)
    return model.eval()


def randomize_gains(model: nn.Module) -> None:
    """Ones hide an axis mixed up or a gain forgotten."""
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)


def random_video(batch: int = 1, frames: int = 5, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Noise in [-1, 1]: ``[B, 3, T, H, W]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


class StubText:
    """A text encoder without weights: a text is its letters, each a fixed random vector."""

    name = "stub"
    dim = LAPQ.text_dim
    max_tokens = 32

    def encode(self, texts: Sequence[str]) -> TextEmbedding:
        table = torch.randn(256, self.dim, generator=torch.Generator().manual_seed(1))
        length = max(1, *(len(text) for text in texts))
        tokens, mask = torch.zeros(len(texts), length, self.dim), torch.zeros(len(texts), length, dtype=torch.bool)
        for row, text in enumerate(texts):
            letters = list(text.encode()[: self.max_tokens])
            tokens[row, : len(letters)] = table[letters]
            mask[row, : len(letters)] = True
        pooled = nn.functional.normalize(tokens.sum(1), dim=-1)
        return TextEmbedding(tokens=tokens, mask=mask, pooled=pooled)
