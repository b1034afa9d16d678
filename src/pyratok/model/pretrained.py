"""Saving and loading whole tokenizers: safetensors and JSON, strict, with a fingerprint that is checked."""

from __future__ import annotations

import copy
import json
import os
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pyratok.config import PyraTokConfig, from_dict
from pyratok.model.base import VideoTokenizer
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import merge
from pyratok.vae.hub import load_weights, read_json, read_weights, resolve_folder
from pyratok.vae.wan_blocks import channels_last_

FORMAT = "pyratok-model"
VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ModelLoadError(ValueError):
    """A model folder that is missing, damaged or of another kind."""


def save_pretrained(model: PyraTok, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and ``model.safetensors``; the folder appears whole or not at all.

    Adapters are merged. ``dtype`` is that of the file; the fingerprint is of the values as they will be loaded.
    """
    final = Path(folder)
    plain = PyraTok(model.config)
    plain.load_state_dict(merge(copy.deepcopy(model)).state_dict())
    plain.to(dtype).float()
    temporary = final.parent / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors = {name: value.to(dtype).contiguous() for name, value in plain.state_dict().items()}
        save_file(tensors, temporary / WEIGHTS)
        (temporary / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
        header = {"format": FORMAT, "version": VERSION, "fingerprint": plain.fingerprint(), **plain.config_dict()}
        (temporary / CONFIG).write_text(json.dumps(header, indent=1) + "\n")
        for name in (WEIGHTS, CONFIG):
            with open(temporary / name, "rb") as file:
                os.fsync(file.fileno())
        if final.exists():
            for name in (WEIGHTS, CONFIG):
                (temporary / name).replace(final / name)
        else:
            temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def from_pretrained(
    source: str | os.PathLike[str] | None = None, *, dtype: torch.dtype = torch.float32
) -> VideoTokenizer:
    """Load a tokenizer for inference: evaluation mode, channels-last weights in ``dtype``.

    ``source``: None for the embedded pyratok-nano, a folder, or a hub id ``owner/name[@revision]`` (needs
    ``pip install pyratok[hub]``; the only place where anything is downloaded, and only for such an id).
    The authors' released layout (``AutoencoderKLPyraTok``) is recognised.
    Raises :class:`ModelLoadError` naming what is wrong.
    """
    folder = resolve(source)
    if not (folder / CONFIG).is_file():
        raise ModelLoadError(f"{folder}: no {CONFIG} there, so this is not a pyratok model")
    try:
        config = read_json(folder / CONFIG)
        if config.get("_class_name") == "AutoencoderKLPyraTok":
            from pyratok.model.released import load_released

            model: VideoTokenizer = load_released(folder, config)
        else:
            model = _load_native(folder, config)
    except ValueError as error:
        raise ModelLoadError(f"{folder}: {error}") from error
    channels_last_(model.eval().requires_grad_(False))
    model.pin_fingerprint()
    model.to(dtype)
    return model


def resolve(source: str | os.PathLike[str] | None) -> Path:
    """Folder of a model: embedded, given, or fetched from the hub by its id."""
    if source is None:
        return Path(str(resources.files("pyratok"))) / "assets" / "nano"
    try:
        return resolve_folder(source)
    except ValueError as error:
        raise ModelLoadError(str(error)) from None


def _load_native(folder: Path, config: dict[str, Any]) -> PyraTok:
    if config.pop("format", None) != FORMAT:
        raise ValueError(f'{CONFIG} is not that of a pyratok model (no "format": "{FORMAT}")')
    version = config.pop("version", None)
    if version != VERSION:
        raise ValueError(f"format version {version}, this pyratok reads version {VERSION}; upgrade it")
    fingerprint = config.pop("fingerprint", None)
    with torch.device("meta"):
        model = PyraTok(from_dict(PyraTokConfig, config))
    load_weights(model, read_weights(folder / WEIGHTS))
    if model.eval().pin_fingerprint() != fingerprint:
        raise ValueError(f"configuration and weights do not match their fingerprint {fingerprint}; a file is damaged")
    return model
