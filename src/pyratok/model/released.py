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

from pyratok.config import to_dict
from pyratok.model.base import VideoTokenizer
from pyratok.nn.carry import Carry
from pyratok.quantization.bits import sign
from pyratok.types import TextEmbedding
from pyratok.vae.hub import load_weights
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_loading import read_diffusers_weights, vae_config_from_diffusers

# Parts of the release that the text-free path does not use; anything else unknown is an error.
UNUSED_PREFIXES = ("lapq_quantizer.", "lapq_text_mlp.")
MAX_BITS = 30
"""Of a word in a :class:`~pyratok.types.TokenPyramid`."""


class ResidualLatentTokenizer(VideoTokenizer):
    """N residual stages of ``z`` signs each on the posterior mean of a Wan VAE."""

    def __init__(self, name: str, vae: WanVAE, num_stages: int) -> None:
        super().__init__()
        self.name, self.vae = name, vae
        self.strides = (vae.config.latent_stride,) * num_stages
        self.num_bits = vae.config.z_dim

    def config_dict(self) -> dict[str, Any]:
        return {"name": self.name, "vae": to_dict(self.vae.config), "num_stages": self.num_levels}

    def signs(self, video: Tensor, text: TextEmbedding | None, carry: Carry | None = None) -> Sequence[Tensor]:
        if text is not None:
            raise ValueError(f"{self.name} has no text path; encode without a caption")
        residual = self.vae.encode(video, carry).chunk(2, dim=1)[0].float()
        stages = []
        for index in range(self.num_levels):
            stages.append(sign(residual))
            residual = residual - stages[-1] * 2.0**-index
        return stages

    def reconstruct(self, signs: Sequence[Tensor], carry: Carry | None = None) -> Tensor:
        latent = torch.stack([s.float() * 2.0**-index for index, s in enumerate(signs)]).sum(dim=0)
        return self.vae.decode(latent.to(signs[0].dtype), carry)


def load_released(folder: Path, config: dict[str, Any]) -> ResidualLatentTokenizer:
    """Read a folder in the released layout; strict on the VAE, text tensors recognised and left aside.

    Raises ValueError saying what in the folder does not fit.
    """
    vae_config = vae_config_from_diffusers({k: v for k, v in config.items() if not k.startswith("lapq_")})
    num_stages, dim = config.get("lapq_num_quantizers", 4), vae_config.z_dim
    if type(num_stages) is not int or num_stages < 1:
        raise ValueError(f"lapq_num_quantizers must be at least 1, got {num_stages!r}")
    if dim > MAX_BITS:
        raise ValueError(
            f"z_dim {dim} makes words of as many bits; a TokenPyramid holds words of at most {MAX_BITS} bits"
        )
    for key, wanted in (("lapq_codebook_dim", dim), ("lapq_num_codes", 1 << dim)):
        if config.get(key, wanted) != wanted:
            raise ValueError(f"{key} {config[key]!r} does not go with z_dim {dim}, which asks for {wanted}")
    with torch.device("meta"):
        vae = WanVAE(vae_config)
    weights = read_diffusers_weights(folder)
    load_weights(vae, {k: v for k, v in weights.items() if not k.startswith(UNUSED_PREFIXES)})
    return ResidualLatentTokenizer(folder.resolve().name, vae, num_stages)
