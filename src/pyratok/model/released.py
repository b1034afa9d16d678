"""The authors' released layout: residual sign stages on the single latent of a Wan VAE.

diffusers layout, ``_class_name: AutoencoderKLPyraTok``: Wan VAE fields and tensors beside ``lapq_*`` ones. With text
off, as it is inside that release, the quantizer holds no weights: stage i of N takes the signs of what the stages
before left over and adds ``2^-i`` times them. All levels lie on the latent grid. See docs/architecture.md for what
that release does and does not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyratok.config import WanVAEConfig, to_dict
from pyratok.model.base import VideoTokenizer
from pyratok.model.pretrained import ModelLoadError, read_weights
from pyratok.quantization.bits import sign
from pyratok.types import TextEmbedding
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_loading import vae_config_from_diffusers, weight_files

# Parts of the release that the text-free path does not use; anything else unknown is an error.
UNUSED_PREFIXES = ("lapq_quantizer.", "lapq_text_mlp.")


class ResidualLatentTokenizer(VideoTokenizer):
    """N residual stages of ``z`` signs each on the posterior mean of a Wan VAE."""

    def __init__(self, name: str, vae: WanVAE, num_stages: int) -> None:
        super().__init__()
        self.name, self.vae = name, vae
        self.strides = (vae.config.latent_stride,) * num_stages
        self.num_bits = vae.config.z_dim

    def config_dict(self) -> dict[str, Any]:
        return {"name": self.name, "vae": to_dict(self.vae.config), "num_stages": self.num_levels}

    def signs(self, video: Tensor, text: TextEmbedding | None) -> Sequence[Tensor]:
        if text is not None:
            raise ValueError(f"{self.name} has no text path; encode without a caption")
        residual = self.vae.encode(video).chunk(2, dim=1)[0].float()
        stages = []
        for index in range(self.num_levels):
            stages.append(sign(residual))
            residual = residual - stages[-1] * 2.0**-index
        return stages

    def reconstruct(self, signs: Sequence[Tensor]) -> Tensor:
        latent = torch.stack([s.float() * 2.0**-index for index, s in enumerate(signs)]).sum(dim=0)
        return self.vae.decode(latent.to(signs[0].dtype))


def load_released(folder: Path, config: dict[str, Any]) -> ResidualLatentTokenizer:
    """Read a folder in the released layout; strict on the VAE, text tensors recognised and left aside."""
    vae_config: WanVAEConfig = vae_config_from_diffusers(
        {key: value for key, value in config.items() if not key.startswith("lapq_")}
    )
    dim = config.get("lapq_codebook_dim") or vae_config.z_dim
    if dim != vae_config.z_dim:
        raise ModelLoadError(f"{folder}: lapq_codebook_dim {dim} differs from z_dim {vae_config.z_dim}")
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        weights |= read_weights(path)
    vae = WanVAE(vae_config)
    try:
        vae.load_state_dict({k: v for k, v in weights.items() if not k.startswith(UNUSED_PREFIXES)})
    except RuntimeError as error:
        raise ModelLoadError(f"{folder}: {error}") from None
    return ResidualLatentTokenizer(folder.resolve().name, vae, int(config.get("lapq_num_quantizers", 4)))

