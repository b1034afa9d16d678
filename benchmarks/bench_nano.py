"""Speed and memory of pyratok-nano at 256x256, beside diffusers' frame-by-frame loop on the same weights.

Encode is video to ids, decode is ids to video, both with everything around them. diffusers has no token path, so the
ratio compares the VAE alone: its features up to the middle block, and its decoder. nano departs from stock Wan in one
stage that halves time but not space, and in having no middle attention: diffusers' modules get the same change.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from common import interleaved, write
from diffusers import AutoencoderKLWan
from torch import nn

from pyratok import PyraTok
from pyratok.config import WanVAEConfig
from pyratok.vae.wan import WanVAE

FRAMES, SIZE = 33, 256


def as_diffusers(vae: WanVAE) -> AutoencoderKLWan:
    """The same VAE as diffusers runs it."""
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
        patch_size=config.patch_size,
    )
    for half, blocks in ((reference.encoder, "down_blocks"), (reference.decoder, "up_blocks")):
        half.mid_block.attentions = nn.ModuleList([nn.Identity()])
        for module in getattr(half, blocks).modules():
            if type(module).__name__ != "WanResample":
                continue
            dim, out_dim = module.resample[1].in_channels, module.resample[1].out_channels
            if _keeps_space(config, dim, encoder=half is reference.encoder):
                module.resample = nn.Sequential(nn.Identity(), nn.Conv2d(dim, out_dim, 3, padding=1))
    reference.load_state_dict(vae.state_dict())
    return reference.eval()


def _keeps_space(config: WanVAEConfig, dim: int, encoder: bool) -> bool:
    """Is the resampling layer with ``dim`` input channels one that leaves space alone?"""
    widths = [config.base_dim * m for m in (config.dim_mult[:-1] if encoder else config.dim_mult[1:])]
    return not config.halves_space[widths.index(dim)]


def peak_mebibytes() -> float:
    """Peak resident memory of a fresh process that encodes and decodes one clip, in MiB."""
    code = (
        "import torch, resource; from pyratok import PyraTok; m = PyraTok.from_pretrained();"
        f"x = torch.rand(1, 3, {FRAMES}, {SIZE}, {SIZE}) * 2 - 1; m.decode(m.encode(x));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    torch.manual_seed(0)
    video = torch.rand(1, 3, FRAMES, SIZE, SIZE) * 2 - 1
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = PyraTok.from_pretrained(dtype=dtype)
        reference = as_diffusers(PyraTok.from_pretrained().vae).to(dtype)
        x = video.to(dtype)
        tokens = model.encode(video)
        latent = torch.randn(1, model.vae.config.z_dim, *tokens.geometry.grid(-1), dtype=dtype)
        with torch.inference_mode():
            seconds = interleaved(
                {
                    "encode": lambda m=model: m.encode(video),
                    "decode": lambda m=model, t=tokens: m.decode(t),
                    "vae_encode": lambda m=model, x=x: m.vae.encode(x),
                    "vae_decode": lambda m=model, z=latent: m.vae.decode(z),
                    "diffusers_encode": lambda r=reference, x=x: r._encode(x),
                    "diffusers_decode": lambda r=reference, z=latent: r._decode(z),
                }
            )
        results[str(dtype).removeprefix("torch.")] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "encode_frames_per_second": round(FRAMES / seconds["encode"], 1),
            "decode_frames_per_second": round(FRAMES / seconds["decode"], 1),
            "vae_encode_times_diffusers": round(seconds["diffusers_encode"] / seconds["vae_encode"], 2),
            "vae_decode_times_diffusers": round(seconds["diffusers_decode"] / seconds["vae_decode"], 2),
        }
    write("nano", {"clip": [FRAMES, SIZE, SIZE], "peak_mib_fp32": round(peak_mebibytes()), "results": results})


if __name__ == "__main__":
    main()
