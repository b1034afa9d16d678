"""Saving and loading whole tokenizers: safetensors and JSON, strict, with a fingerprint that is checked."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyratok.config import PyraTokConfig, from_dict
from pyratok.model.base import VideoTokenizer
from pyratok.model.baseline import BaselineConfig, BaselineTokenizer
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import merge
from pyratok.vae.hub import load_weights, read_json, read_weights, replacing_folder, resolve_folder
from pyratok.vae.wan_blocks import channels_last_

FORMAT, BASELINE = "pyratok-model", "pyratok-baseline"
VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What a model's weights are called where another model was overwritten: CONFIG then names the file that counts.
LATER_WEIGHTS = re.compile(r"model-[0-9a-f]{16}\.safetensors")
# Beside weights of whole numbers: "x.weight.scale" is what "x.weight" is multiplied by.
SCALE = ".scale"
HUB_FILES = (CONFIG, "model*.safetensors", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.json")


class ModelLoadError(ValueError):
    """A model folder that is missing, damaged or of another kind."""


def save_pretrained(
    model: PyraTok | BaselineTokenizer, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write ``config.json`` and ``model.safetensors``; the folder appears whole or not at all.

    Where there is a model already the weights get a name of their own beside the old ones, and replacing
    ``config.json`` makes the folder the new model: whenever the machine dies, there is one of the two.
    Adapters are merged. ``dtype`` is that of the file: a floating-point type, or int8 for the weights of linear layers
    and convolutions (:func:`packed`). The fingerprint is of the values as they will be loaded, so that a model stored
    with fewer digits is a model of its own: its ids differ here and there.
    """
    final = Path(folder)
    kind = FORMAT if isinstance(model, PyraTok) else BASELINE
    plain = _build(kind, model.config_dict())
    plain.load_state_dict(merge(copy.deepcopy(model)).state_dict())
    tensors = packed(plain, dtype)
    plain.load_state_dict(unpacked(tensors))
    digest = plain.digest()
    weights = f"model-{digest[:16]}.safetensors" if (final / CONFIG).exists() else WEIGHTS
    header = {"format": kind, "version": VERSION, "fingerprint": plain.fingerprint(), "digest": digest}
    header |= {"weights": weights} if weights != WEIGHTS else {}
    with replacing_folder(final) as unfinished:
        save_file(tensors, unfinished / weights)
        (unfinished / weights).chmod(0o644)  # safetensors leaves it readable by its owner alone
        (unfinished / CONFIG).write_text(json.dumps(header | plain.config_dict(), indent=1) + "\n", encoding="utf-8")
    for old in list(final.iterdir()):
        if old.name != weights and (old.name == WEIGHTS or LATER_WEIGHTS.fullmatch(old.name)):
            old.unlink()


def from_pretrained(
    source: str | os.PathLike[str] | None = None, *, dtype: torch.dtype = torch.float32
) -> VideoTokenizer:
    """Load a tokenizer for inference: evaluation mode, channels-last weights in ``dtype``.

    ``source``: None for the embedded pyratok-nano, a folder, or a hub id ``owner/name[@revision]`` (needs
    ``pip install pyratok[hub]``; the only place where anything is downloaded, and only for such an id).
    The authors' released layout (``AutoencoderKLPyraTok``) is recognised.
    Raises :class:`ModelLoadError` naming what is wrong.
    """
    folder, config = read_config(source)
    try:
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


def read_config(source: str | os.PathLike[str] | None) -> tuple[Path, dict[str, Any]]:
    """Folder of a model, as :func:`resolve` finds it, and what its ``config.json`` holds."""
    folder = resolve(source)
    if not (folder / CONFIG).is_file():
        raise ModelLoadError(f"{folder}: no {CONFIG} there, so this is not a pyratok model")
    try:
        return folder, read_json(folder / CONFIG)
    except ValueError as error:
        raise ModelLoadError(f"{folder}: {error}") from error


def resolve(source: str | os.PathLike[str] | None) -> Path:
    """Folder of a model: embedded, given, or fetched from the hub by its id."""
    if source is None:
        return Path(str(resources.files("pyratok"))) / "assets" / "nano"
    try:
        return resolve_folder(source, HUB_FILES)
    except ValueError as error:
        raise ModelLoadError(str(error)) from None


def packed(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state of a model as a file of ``dtype`` holds it, contiguous.

    With int8, every weight ``w`` of a linear layer or convolution becomes whole numbers ``q`` in -127 .. 127 under its
    own name, and one bfloat16 scale per output channel beside it, ``w ~ scale q``; all else stays in float32. The
    largest weight of a channel gets the number 127, up to the rounding of the scale. A scale has 8 significant bits and
    a number 7, so their product is exact in float32, and packing it again gives the same file.
    """
    if dtype != torch.int8:
        return {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    state = {name: value.float() for name, value in model.state_dict().items()}
    for name, axis in _output_axes(model).items():
        weight = state[name]
        largest = weight.abs().amax([other for other in range(weight.ndim) if other != axis], keepdim=True)
        scale = (largest / 127).to(torch.bfloat16)
        scale[scale == 0] = 1  # a silent channel
        state[name] = (weight / scale.float()).round().clamp(-127, 127).to(torch.int8)
        state[name + SCALE] = scale
    return {name: value.contiguous() for name, value in state.items()}


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`packed`, in float32; ValueError for a scale that belongs to no weight."""
    state = {name: value.float() for name, value in tensors.items() if not name.endswith(SCALE)}
    for name in tensors.keys() - state.keys():
        weight, scale = state.get(name.removesuffix(SCALE)), tensors[name].float()
        if weight is None or scale.ndim != weight.ndim:
            raise ValueError(f"{name} is the scale of no weight in this file")
        if any(n not in (1, m) for n, m in zip(scale.shape, weight.shape, strict=True)):
            raise ValueError(f"{name} has shape {tuple(scale.shape)}, its weight {tuple(weight.shape)}")
        state[name.removesuffix(SCALE)] = weight * scale
    return state


def _output_axes(model: nn.Module) -> dict[str, int]:
    """Every weight of a linear layer or convolution, and which of its axes counts output channels."""
    axes = {nn.Linear: 0, nn.Conv2d: 0, nn.Conv3d: 0, nn.ConvTranspose3d: 1}
    return {
        f"{name}.weight": axis
        for name, layer in model.named_modules()
        for kind, axis in axes.items()
        if isinstance(layer, kind)
    }


def _build(kind: str, config: dict[str, Any]) -> PyraTok | BaselineTokenizer:
    """The untrained tokenizer of a configuration."""
    if kind == BASELINE:
        return BaselineTokenizer(from_dict(BaselineConfig, config))
    return PyraTok(from_dict(PyraTokConfig, config))


def _load_native(folder: Path, config: dict[str, Any]) -> PyraTok | BaselineTokenizer:
    kind = config.pop("format", None)
    if kind not in (FORMAT, BASELINE):
        raise ValueError(f'{CONFIG} is not that of a pyratok model (no "format": "{FORMAT}")')
    version = config.pop("version", None)
    if version != VERSION:
        raise ValueError(f"format version {version}, this pyratok reads version {VERSION}; upgrade it")
    fingerprint, digest = config.pop("fingerprint", None), config.pop("digest", None)
    weights = config.pop("weights", WEIGHTS)
    if not isinstance(weights, str) or Path(weights).name != weights:
        raise ValueError(f"weights: expected the name of a file in this folder, got {weights!r}")
    with torch.device("meta"):
        model = _build(kind, config)
    load_weights(model, unpacked(read_weights(folder / weights)))
    # The fingerprint leaves out the text head, the digest nothing.
    if model.eval().pin_fingerprint() != fingerprint or digest not in (None, model.digest()):
        raise ValueError(f"configuration and weights do not match their fingerprint {fingerprint}; a file is damaged")
    return model
