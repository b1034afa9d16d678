"""From a recipe to a trained model on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from pyratok.config import PyraTokConfig, to_dict
from pyratok.data.mixes import DataConfig, mixed_clips
from pyratok.losses.perceptual import st_lpips
from pyratok.model.lapq import LaPQLevel
from pyratok.model.pretrained import from_pretrained
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import LoRAConfig, inject
from pyratok.train.checkpoint import checkpoint_to_resume, write_json
from pyratok.train.objectives import Objective, TokenizerObjective, VAEObjective
from pyratok.train.trainer import TrainConfig, train
from pyratok.types import Geometry
from pyratok.vae.wan_blocks import channels_last_, near_identity_


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. ``stage``: "vae" trains the continuous VAE, "tokenizer" LaPQ on top of it.

    In the tokenizer stage the encoder is frozen; ``encoder_lora`` adapts it, ``decoder`` says how the decoder learns.
    """

    name: str
    stage: Literal["vae", "tokenizer"]
    model: PyraTokConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig
    encoder_lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    decoder: Literal["frozen", "lora", "full"] = "full"

    def __post_init__(self) -> None:
        if self.stage not in ("vae", "tokenizer") or self.decoder not in ("frozen", "lora", "full"):
            raise ValueError(f"stage {self.stage!r} or decoder {self.decoder!r} is not one of the documented choices")
        frames, size = self.train.frames, self.train.size
        shape = Geometry(frames=frames, height=size, width=size, strides=self.model.lapq.strides)
        if shape.padded != (frames, size, size):
            raise ValueError(f"clips of {frames}x{size}x{size} do not fill the token grids; next is {shape.padded}")


def run(
    recipe: Recipe,
    roots: Sequence[str | Path],
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    cache: Path | None = None,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Path:
    """Train a recipe on the media under ``roots``; returns the folder of the trained model, ``out/model``.

    ``init``: a model folder whose weights one starts from; the tokenizer stage needs one for its VAE.
    """
    checkpoint_to_resume(out, resume)  # refuses before hours of footage are decoded
    torch.manual_seed(recipe.train.seed)
    objective = build_objective(recipe, init)
    settings = recipe.train
    dataset = mixed_clips(
        recipe.data,
        roots,
        cache or out / "frames",
        frames=settings.frames,
        size=settings.size,
        length=settings.steps * settings.batch_size,
        seed=settings.seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", to_dict(recipe))
    averaged = train(objective, dataset, recipe.train, out, resume=resume, on_log=on_log)
    return export(recipe, averaged, out / "model")


def build_objective(recipe: Recipe, init: Path | None) -> Objective:
    """The model of a recipe, initialised, with the right parts frozen, inside its objective."""
    model = PyraTok(recipe.model)
    near_identity_(model.vae)
    if init is not None:
        load_init(model, init)
    elif recipe.stage == "tokenizer":
        raise ValueError("the tokenizer stage starts from a trained VAE; give its model folder with --init")
    channels_last_(model)
    weights = recipe.train.losses
    perceptual = st_lpips(frames_per_clip=1) if weights.perceptual else None
    if recipe.stage == "vae":
        return VAEObjective(model.vae, weights, perceptual)
    vae = model.vae
    for level in model.lapq.levels:
        # Without captions to learn from, an open gate would let untrained attention disturb the words.
        cast(LaPQLevel, level).text.requires_grad_(False)
    # The head of the continuous latent is not on the path of the tokens.
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    if recipe.encoder_lora is not None:
        inject(vae.encoder, recipe.encoder_lora, ("conv_in", "down_blocks", "mid_block"))
    if recipe.decoder != "full":
        vae.decoder.requires_grad_(False)
    if recipe.decoder == "lora":
        inject(vae.decoder, recipe.encoder_lora or LoRAConfig())
    return TokenizerObjective(model, weights, perceptual)


def load_init(model: PyraTok, folder: Path) -> None:
    """Take over the weights of a saved model: its VAE, and its quantizer where both have the same layout."""
    saved = from_pretrained(folder)
    if not isinstance(saved, PyraTok) or saved.config.vae != model.config.vae:
        raise ValueError(f"{folder}: its VAE is not the one this recipe trains")
    model.vae.load_state_dict(saved.vae.state_dict())
    # How often levels are dropped is a matter of training, not of the weights' layout.
    layout = replace(saved.config.lapq, level_dropout=model.config.lapq.level_dropout)
    if layout == model.config.lapq:
        model.lapq.load_state_dict(saved.lapq.state_dict())


def export(recipe: Recipe, averaged: nn.Module, folder: Path) -> Path:
    """Save the averaged weights of a run as a whole model; after the VAE stage its quantizer is still untrained."""
    if isinstance(averaged, PyraTok):
        model = averaged
    else:
        model = PyraTok(recipe.model)
        model.vae.load_state_dict(averaged.state_dict())
    model.save_pretrained(folder)
    return folder
