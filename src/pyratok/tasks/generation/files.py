"""Priors on disk: safetensors and JSON, strict, bound to the tokenizer whose tokens they have learned."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from pyratok.config import from_dict, to_dict
from pyratok.model.pretrained import CONFIG, WEIGHTS, ModelLoadError
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.generate import build_prior
from pyratok.tasks.generation.prior import Prior
from pyratok.types import ModelId
from pyratok.vae.hub import load_weights, read_json, read_weights, replacing_folder, resolve_folder

FORMAT, VERSION = "pyratok-prior", 1


def save_prior(prior: Prior, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and ``model.safetensors``, weights in ``dtype``; the folder appears whole or not at all.

    Where there is one already, what a crash leaves in between is refused by :func:`load_prior`.
    """
    header = {"format": FORMAT, "version": VERSION, "prior": to_dict(prior.config)}
    with replacing_folder(Path(folder)) as unfinished:
        state = {name: value.to(dtype).contiguous() for name, value in prior.state_dict().items()}
        save_file(state, unfinished / WEIGHTS)
        (unfinished / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
        (unfinished / CONFIG).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
        (Path(folder) / CONFIG).unlink(missing_ok=True)  # it would say whose tokens the new weights have learned


def load_prior(folder: str | os.PathLike[str], tokenizer: ModelId | None = None) -> Prior:
    """Read a prior for inference (evaluation mode, float32, no gradients).

    Raises :class:`ModelLoadError` for a damaged or foreign folder, and, where ``tokenizer`` is given, for a prior that
    has learned the tokens of another one: both are named.
    """
    try:
        path = resolve_folder(folder)
        header = read_json(path / CONFIG)
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"{CONFIG} is not that of a {FORMAT} of version {VERSION}")
        config = from_dict(PriorConfig, header["prior"])
        if tokenizer is not None and config.tokenizer.fingerprint != tokenizer.fingerprint:
            raise ValueError(f"this prior has learned the tokens of {config.tokenizer}, not of {tokenizer}")
        with torch.device("meta"):
            prior = build_prior(config)
        load_weights(prior, read_weights(path / WEIGHTS))
    except KeyError as error:
        raise ModelLoadError(f"{folder}: {CONFIG} has no {error}") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{folder}: {error}") from error
    return prior.eval().requires_grad_(False)
