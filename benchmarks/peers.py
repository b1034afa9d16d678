"""Our VAE as diffusers runs it: frame group by frame group, on the same weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pyratok.config import WanVAEConfig
from pyratok.vae.wan import WanVAE

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


def as_diffusers(vae: WanVAE) -> AutoencoderKLWan:
    """The same VAE in diffusers' classes, in the same type, ready for inference.

    nano departs from stock Wan in a stage that halves time but not space, and in having no middle attention: where
    ``vae`` does, diffusers' modules get the same change.
    """
    from diffusers import AutoencoderKLWan  # here, so that no memory of ours is counted with it

    config: WanVAEConfig = vae.config
    reference = AutoencoderKLWan(
        base_dim=config.base_dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=[0.0] * config.z_dim,
        latents_std=[1.0] * config.z_dim,
        in_channels=3 * config.patch_size**2,
        out_channels=3 * config.patch_size**2,
        patch_size=config.patch_size if config.patch_size > 1 else None,
    )
    for half, blocks in ((reference.encoder, "down_blocks"), (reference.decoder, "up_blocks")):
        if not config.mid_attention:
            half.mid_block.attentions = nn.ModuleList([nn.Identity()])
        resamplers = [m for m in getattr(half, blocks).modules() if type(m).__name__ == "WanResample"]
        in_space = config.halves_space if half is reference.encoder else config.halves_space[::-1]
        for resampler, halves in zip(resamplers, in_space, strict=True):
            if not halves:
                conv = resampler.resample[1]
                same = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)
                resampler.resample = nn.Sequential(nn.Identity(), same)
    reference.load_state_dict(vae.state_dict())
    # Past diffusers' own to(), which warns of layers to be kept in float32 also where there are none.
    nn.Module.to(reference, next(vae.parameters()).dtype)
    return reference.eval()
