"""Adapters in files of their own, in the layout of PEFT: a few hundred kilobytes beside the model they adapt.

A folder holds ``adapter_config.json`` (rank, alpha, names of the layers) and ``adapter_model.safetensors`` with
``base_model.model.<layer>.lora_A.weight`` and ``.lora_B.weight``, convolutions as a kernel of the base layer's size
followed by a 1x1 one. peft reads what is written here and the other way round. (peft itself cannot run adapters on
causal convolutions, since it builds A by calling the layer's class with arguments of a plain one.)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pyratok.model.base import VideoTokenizer
from pyratok.nn.lora import LoRAConfig, adaptable_layers, adapted_layers, adapter, base_weight, inject
from pyratok.vae.hub import read_json, read_weights, replacing_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")
FINGERPRINT = "base_fingerprint"

# PEFT options, beside those that begin with use_, under which two factors and a scale are not the whole adapter.
NOT_PLAIN = """
    alpha_pattern rank_pattern fan_in_fan_out layer_replication lora_bias modules_to_save target_parameters
    trainable_token_indices alora_invocation_tokens
""".split()


def save_adapters(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write every adapter of ``model`` to a folder, which appears whole or not at all.

    Only the low-rank factors are written, not what else was trained. The file remembers a fingerprint of the base
    weights of the adapted layers. Raises ValueError where there is no adapter (or a merged one: unmerge it first), or
    where ranks or scales differ from layer to layer.
    """
    layers = adapted_layers(model)
    configs = {adapter(layer).config for layer in layers.values()}
    if not configs:
        raise ValueError("the model has no adapters to save; unmerge them if they are merged")
    if len(configs) > 1:
        raise ValueError(f"one file holds adapters of one rank and alpha, the model has {_some(map(str, configs))}")
    (config,) = configs
    name = getattr(model, "name", None)
    tensors: dict[str, Tensor] = {}
    for layer_name, layer in layers.items():
        shapes = _factor_shapes(base_weight(layer), config.rank)
        for factor, matrix in (("A", adapter(layer).down), ("B", adapter(layer).up)):
            key = f"base_model.model.{layer_name}.lora_{factor}.weight"
            tensors[key] = matrix.detach().float().cpu().reshape(shapes[factor]).contiguous()
    header = {
        "peft_type": "LORA",
        "base_model_name_or_path": name if isinstance(name, str) else None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(layers),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    with replacing_folder(Path(folder)) as unfinished:
        save_file(tensors, unfinished / WEIGHTS, {"format": "pt", FINGERPRINT: base_fingerprint(layers)})
        (unfinished / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
        (unfinished / CONFIG).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def load_adapters(model: nn.Module, folder: str | os.PathLike[str]) -> list[str]:
    """Read adapters into ``model``, adapting layers that are not adapted yet; returns the names of all layers.

    Afterwards the adapted layers are those of the file. Raises ValueError naming the folder, before anything is
    changed, for a damaged file, a kind of adapter other than plain LoRA, layers that the model does not have, has in
    another shape or has adapted while the file says nothing of them, and, where the file tells, other base weights.
    Load into float32 weights, as they were trained on, and convert afterwards.
    """
    path = Path(folder)
    try:
        config = _read_config(path / CONFIG)
        factors = _read_factors(path / WEIGHTS)
        layers = _matching_layers(model, config, factors)
        wanted = _metadata(path / WEIGHTS).get(FINGERPRINT)
        if wanted is not None and wanted != (found := base_fingerprint(layers)):
            raise ValueError(f"these adapters were trained on other base weights (fingerprint {wanted}, here {found})")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    adapted = adapted_layers(model)
    for name, layer in layers.items():
        if name not in adapted:
            inject(layer, config)
        delta = adapter(layer)
        with torch.no_grad():
            for matrix, factor in ((delta.down, "A"), (delta.up, "B")):
                matrix.copy_(factors[name][factor].reshape(matrix.shape))
    if isinstance(model, VideoTokenizer) and not model.training:
        model.train().eval()  # a fingerprint that was kept is that of another model now
    return list(layers)


def base_fingerprint(layers: Mapping[str, nn.Module]) -> str:
    """16 hex digits of a SHA-256 over the names and own weights, in float32, of layers, adapted or not."""
    digest = hashlib.sha256()
    for name, layer in sorted(layers.items()):
        digest.update(name.encode())
        digest.update(base_weight(layer).detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_config(path: Path) -> LoRAConfig:
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG} is that of a {config.get('peft_type')} adapter, only LORA is supported")
    odd = [key for key, value in config.items() if value and (key in NOT_PLAIN or key.startswith("use_"))]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    # Other initialisations change the base weights as well.
    odd += ["init_lora_weights"] if config.get("init_lora_weights", True) not in (True, False, "gaussian") else []
    if odd:
        raise ValueError(
            f"{CONFIG} asks for more than plain LoRA: {', '.join(f'{key} = {config[key]}' for key in odd)}"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or type(alpha) not in (int, float):
        raise ValueError(f"{CONFIG} has r = {rank} and lora_alpha = {alpha}, which should be an integer and a number")
    return LoRAConfig(rank=rank, alpha=cast(float, alpha))


def _read_factors(path: Path) -> dict[str, dict[str, Tensor]]:
    """``{"A": ..., "B": ...}`` per layer, in the shapes of the file."""
    factors: dict[str, dict[str, Tensor]] = {}
    for key, value in read_weights(path).items():
        match = KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{WEIGHTS} holds {key}, which is no LoRA factor")
        factors.setdefault(match["layer"], {})[match["factor"]] = value
    return factors


def _matching_layers(
    model: nn.Module, config: LoRAConfig, factors: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, nn.Module]:
    """The layers of the model that the file adapts; ValueError listing everything that does not fit."""
    present, adapted = adaptable_layers(model), adapted_layers(model)
    layers = {name: present[name] for name in factors if name in present}
    shapes = {name: _factor_shapes(base_weight(layer), config.rank) for name, layer in layers.items()}
    found = {name: {factor: tuple(value.shape) for factor, value in factors[name].items()} for name in layers}
    problems = {
        "not in the model": factors.keys() - present.keys(),
        "adapted in the model but missing in the file": adapted.keys() - factors.keys(),
        "of another shape": {
            f"{name} {found[name]} instead of {shapes[name]}" for name in layers if found[name] != shapes[name]
        },
        "adapted in the model with another rank or alpha": {
            name for name in layers.keys() & adapted.keys() if adapter(layers[name]).config != config
        },
    }
    if any(problems.values()):
        raise ValueError("; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names))
    if not layers:
        raise ValueError(f"{WEIGHTS} holds no adapter")
    return layers


def _factor_shapes(weight: Tensor, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the two factors in a file, for a layer's weight."""
    return {"A": (rank, *weight.shape[1:]), "B": (weight.shape[0], rank, *(1,) * (weight.ndim - 2))}


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = sorted(names)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
