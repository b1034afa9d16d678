"""Wan VAEs from diffusers folders: Wan 2.1 (plain) and Wan 2.2 (residual, patchified)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pyratok.config import WanVAEConfig, from_dict
from pyratok.vae.hub import load_weights, read_json, read_weights, resolve_folder
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import channels_last_

# diffusers' name -> ours; the rest is either the same or must have the value given in FIXED.
RENAMED = {"temperal_downsample": "temporal_downsample"}
SAME = "base_dim decoder_base_dim z_dim dim_mult num_res_blocks is_residual latents_mean latents_std".split()
FIXED: dict[str, Any] = {"attn_scales": [], "dropout": 0.0}
# Of a whole pipeline on the hub, the VAE alone.
HUB_FILES = [
    "config.json",
    *(f"{folder}diffusion_pytorch_model*.{kind}" for folder in ("", "vae/") for kind in ("json", "safetensors")),
    "vae/config.json",
]
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
            fields[key] = 1 if value is None else value
        elif key in SAME or key in RENAMED:
            fields[RENAMED.get(key, key)] = value
        else:
            raise ValueError(f"unknown field {key!r} in an AutoencoderKLWan config")
    return from_dict(WanVAEConfig, fields)


def read_wan_config(source: str | os.PathLike[str]) -> tuple[Path, WanVAEConfig]:
    """Folder and configuration of the VAE that :func:`load_wan_vae` would load, with the same errors."""
    folder = resolve_folder(source, HUB_FILES)
    if not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json there, so this is not a diffusers VAE")
    try:
        return folder, vae_config_from_diffusers(read_json(folder / "config.json"))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def load_wan_vae(source: str | os.PathLike[str]) -> WanVAE:
    """A Wan VAE from a diffusers folder, its ``vae`` subfolder, or a hub id ``owner/name`` (downloads only then).

    Raises ValueError naming the folder and what is wrong with it.
    """
    folder, config = read_wan_config(source)
    try:
        with torch.device("meta"):
            vae = WanVAE(config)
        load_weights(vae, read_diffusers_weights(folder))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    channels_last_(vae)
    return vae.eval()


def read_diffusers_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a diffusers folder, in float32: from one file, or from the shards that its index names."""
    stem = "diffusion_pytorch_model.safetensors"
    index = folder / f"{stem}.index.json"
    if not index.is_file():
        return read_weights(folder / stem)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"{index.name} has no weight_map of names")
    weights: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())):
        weights |= read_weights(folder / name)
    return weights
