"""Wan VAEs from diffusers folders: Wan 2.1 (plain) and Wan 2.2 (residual, patchified)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pyratok.config import WanVAEConfig
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import channels_last_

# diffusers' name -> ours; the rest is either the same or must have the value given in FIXED.
RENAMED = {"temperal_downsample": "temporal_downsample"}
SAME = ("base_dim", "decoder_base_dim", "z_dim", "dim_mult", "num_res_blocks", "is_residual")
FIXED: dict[str, Any] = {"attn_scales": [], "dropout": 0.0}
DERIVED = ("in_channels", "out_channels", "scale_factor_temporal", "scale_factor_spatial", "clip_output")


def vae_config_from_diffusers(values: dict[str, Any]) -> WanVAEConfig:
    """Fields of diffusers' ``AutoencoderKLWan`` config to ours; an unknown or unsupported field is an error."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if key.startswith("_") or key in DERIVED:
            continue
        if key in FIXED:
            if value != FIXED[key]:
                raise ValueError(f"{key} = {value} is not supported; released Wan VAEs have {FIXED[key]}")
        elif key == "patch_size":
            fields[key] = value or 1
        elif key in ("latents_mean", "latents_std"):
            fields[key] = tuple(float(v) for v in value)
        elif key in SAME or key in RENAMED:
            fields[RENAMED.get(key, key)] = tuple(value) if isinstance(value, list) else value
        else:
            raise ValueError(f"unknown field {key!r} in an AutoencoderKLWan config")
    return WanVAEConfig(**fields)


def load_wan_vae(source: str | os.PathLike[str]) -> WanVAE:
    """A Wan VAE from a diffusers folder, its ``vae`` subfolder, or a hub id ``owner/name`` (downloads only then)."""
    from pyratok.vae.hub import resolve_folder

    folder = resolve_folder(source)
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{folder}: no config.json there, so this is not a diffusers VAE")
    vae = WanVAE(vae_config_from_diffusers(json.loads(config_path.read_text())))
    weights = {}
    for path in weight_files(folder):
        weights |= {name: value.float() for name, value in load_file(path).items()}
    vae.load_state_dict(weights)
    channels_last_(vae)
    return vae.eval()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a diffusers folder: one, or the shards its index names."""
    stem = "diffusion_pytorch_model.safetensors"
    index = folder / f"{stem}.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if not (folder / stem).is_file():
        raise ValueError(f"{folder}: no {stem} there")
    return [folder / stem]
