"""Priors on disk: safetensors and JSON, strict, bound to the tokenizer whose tokens they have learned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pyratok.config import from_dict, to_dict
from pyratok.model.companions import companion, require_tokenizer, save_companion, shipped_companion
from pyratok.tasks.generation.config import PriorConfig
from pyratok.tasks.generation.generate import build_prior
from pyratok.tasks.generation.prior import Prior
from pyratok.types import ModelId
from pyratok.vae.hub import read_weights

FORMAT, VERSION = "pyratok-prior", 1
FOOTAGE = "footage"
SHIPPED = ("ar", "scale", "masked", FOOTAGE)
"""Priors that a model may bring, each in the folder ``prior-NAME`` within its own: by kind those that know captions, of
which the first is the default; and one that has learned real video without captions, to go on with videos."""


def shipped_prior(model: str | os.PathLike[str] | None, name: str = SHIPPED[0]) -> Path | None:
    """The folder of the prior of that name that a model, as ``from_pretrained`` takes it, brings; None for none."""
    return shipped_companion(model, f"prior-{name}")


def find_prior(
    prior: str | os.PathLike[str] | None,
    model: str | os.PathLike[str] | None = None,
    *,
    default: str = SHIPPED[0],
) -> Path:
    """The folder of a ``prior``, told by its folder or as one of :data:`SHIPPED` with ``model``.

    Where none is told it is the ``default`` or, where the model brings no such, the first. ``model`` as
    ``from_pretrained`` takes it. Raises ValueError where the model brings no such prior.
    """
    if prior is not None and str(prior) not in SHIPPED:
        return Path(prior)
    names = (str(prior),) if prior is not None else (default, SHIPPED[0])
    for name in names:
        if found := shipped_prior(model, name):
            return found
    raise ValueError(
        f"no {names[-1]} prior ships with {model or 'the model of the package'}; give the folder of one that "
        "pyratok train made of its tokens"
    )


def save_prior(prior: Prior, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``config.json`` and ``model.safetensors``, weights in ``dtype``, whole or not at all."""
    header: dict[str, Any] = {"format": FORMAT, "version": VERSION, "prior": to_dict(prior.config)}
    if lent := prior.lent_digest():
        header["language_model"] = lent
    save_companion(folder, header, {name: value.to(dtype) for name, value in prior.own_state().items()})


def load_prior(folder: str | os.PathLike[str], tokenizer: ModelId | None = None) -> Prior:
    """Read a prior for inference (evaluation mode, float32, no gradients).

    Raises :class:`~pyratok.model.pretrained.ModelLoadError` for a damaged or foreign folder, and, where ``tokenizer``
    is given, for a prior that has learned the tokens of another one: both are named.
    """
    with companion(folder, FORMAT, VERSION) as (weights, header):
        config = from_dict(PriorConfig, header["prior"])
        require_tokenizer("prior", config.tokenizer, tokenizer)
        # A language model reads weights of its own first.
        with torch.device("cpu" if config.kind == "llm" else "meta"):
            prior = build_prior(config)
        if (lent := prior.lent_digest()) != header.get("language_model", ""):
            raise ValueError(
                f"the language model at {config.language_model} is another one (weights {lent}) than it adapts"
            )
        prior.load_own(read_weights(weights))
    return prior.eval().requires_grad_(False)
