"""From a recipe to a trained model on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from pyratok.config import PyraTokConfig, to_dict
from pyratok.data.captioned import CaptionedMix
from pyratok.data.datasets import MixedClips
from pyratok.data.mixes import DataConfig, captioned_clips, mixed_clips
from pyratok.losses.perceptual import st_lpips
from pyratok.model.alignment import TokenLM
from pyratok.model.lapq import LaPQLevel
from pyratok.model.pretrained import from_pretrained, read_config
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import LoRAConfig, inject
from pyratok.text.base import TextEncoder
from pyratok.text.minilm import MiniLM
from pyratok.train.checkpoint import checkpoint_to_resume, write_json
from pyratok.train.language import LanguageConfig, LanguageObjective, LanguageParts, frozen_copy
from pyratok.train.objectives import Objective, TokenizerObjective, VAEObjective
from pyratok.train.trainer import TrainConfig, train
from pyratok.types import Geometry
from pyratok.vae.wan_blocks import channels_last_, near_identity_


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. ``stage``: "vae" trains the continuous VAE, "tokenizer" LaPQ on top of it, "language" both with
    captions, as ``language`` says.

    From the tokenizer stage on ``encoder`` and ``decoder`` say how the halves of the VAE learn: not at all, by adapters
    of shape ``lora``, or in full. The paper's encoder is frozen under adapters, which asks for a VAE that was
    trained to the end.
    """

    name: str
    stage: Literal["vae", "tokenizer", "language"]
    model: PyraTokConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig
    encoder: Literal["frozen", "lora", "full"] = "lora"
    decoder: Literal["frozen", "lora", "full"] = "full"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)

    def __post_init__(self) -> None:
        halves = {self.encoder, self.decoder}
        if self.stage not in ("vae", "tokenizer", "language") or not halves <= {"frozen", "lora", "full"}:
            choices = f"stage {self.stage!r}, encoder {self.encoder!r}, decoder {self.decoder!r}"
            raise ValueError(f"one of {choices} is not one of the documented choices")
        frames, size = self.train.frames, self.train.size
        shape = Geometry(frames=frames, height=size, width=size, strides=self.model.lapq.strides)
        if shape.padded != (frames, size, size):
            raise ValueError(f"clips of {frames}x{size}x{size} do not fill the token grids; next is {shape.padded}")

    def origin(self, init: Path | None) -> dict[str, Any]:
        """What a run learns follows from this (and the media), JSON-ready: the settings, and which model it began with.

        Raises ValueError where ``init`` is no model folder.
        """
        found: dict[str, Any] = to_dict(self) | {"train": self.train.origin()}
        if init is not None:
            _, config = read_config(init)
            found["init"] = str(config.get("digest", config.get("fingerprint")))[:16]
        return found


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
    origin = recipe.origin(init)
    checkpoint_to_resume(out, resume, origin)  # refuses before hours of footage are decoded
    torch.manual_seed(recipe.train.seed)
    objective = build_objective(recipe, init)
    cache = cache or out / "frames"
    absent = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    try:
        dataset = clips_of(recipe, roots, cache)
    except ValueError:
        if absent:  # decoding makes the folder before it is known that the data will not do
            shutil.rmtree(absent[-1], ignore_errors=True)
        raise
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "recipe.json", to_dict(recipe))
    averaged = train(objective, dataset, recipe.train, out, resume=resume, origin=origin, on_log=on_log)
    return export(recipe, averaged, out / "model")


def clips_of(recipe: Recipe, roots: Sequence[str | Path], cache: Path) -> MixedClips | CaptionedMix:
    """The clips that a recipe trains on, as many as it needs."""
    train = recipe.train
    shape = {"frames": train.frames, "size": train.size, "seed": train.seed, "length": train.steps * train.batch_size}
    if recipe.stage == "language":
        return captioned_clips(recipe.data, roots, cache, **shape, stride=recipe.model.lapq.strides[-1])
    return mixed_clips(recipe.data, roots, cache, **shape)


def build_objective(recipe: Recipe, init: Path | None, text_encoder: TextEncoder | None = None) -> Objective:
    """The model of a recipe, initialised, with the right parts frozen, inside its objective.

    ``text_encoder``: for the language stage; MiniLM by default.
    """
    model = PyraTok(recipe.model)
    near_identity_(model.vae)
    if init is not None:
        load_init(model, init)
    elif recipe.stage != "vae":
        raise ValueError(f"the {recipe.stage} stage starts from a trained VAE; give its model folder with --init")
    channels_last_(model)
    weights = recipe.train.losses
    perceptual = st_lpips(frames_per_clip=1) if weights.perceptual else None
    if recipe.stage == "vae":
        return VAEObjective(model.vae, weights, perceptual)
    vae = model.vae
    reference = frozen_copy(vae) if weights.drift or weights.retention else None
    for level in model.lapq.levels:
        # Without captions to learn from, an open gate would let untrained attention disturb the words.
        cast(LaPQLevel, level).text.requires_grad_(recipe.stage == "language")
    # The head of the continuous latent is not on the path of the tokens.
    for part in (vae.encoder.norm_out, vae.encoder.conv_out, vae.quant_conv):
        part.requires_grad_(False)
    if recipe.encoder != "full":
        vae.encoder.requires_grad_(False)
    if recipe.encoder == "lora":
        inject(vae.encoder, recipe.lora, ("conv_in", "down_blocks", "mid_block"))
    if recipe.decoder != "full":
        vae.decoder.requires_grad_(False)
    if recipe.decoder == "lora":
        inject(vae.decoder, recipe.lora)
    if recipe.stage == "tokenizer":
        return TokenizerObjective(model, weights, perceptual)
    lm = TokenLM(recipe.language.lm) if recipe.language.lm is not None and weights.autoregressive else None
    parts = LanguageParts(model, lm)
    return LanguageObjective(parts, weights, recipe.language, text_encoder or MiniLM(), reference, perceptual)


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
    if model.text_head is not None and saved.text_head is not None:
        if saved.config.text_head != model.config.text_head:
            raise ValueError(f"{folder}: its text head is not the one this recipe trains")
        model.text_head.load_state_dict(saved.text_head.state_dict())


def export(recipe: Recipe, averaged: nn.Module, folder: Path) -> Path:
    """Save the averaged weights of a run as a whole model; after the VAE stage its quantizer is still untrained."""
    if isinstance(averaged, LanguageParts):
        model = averaged.tokenizer
    elif isinstance(averaged, PyraTok):
        model = averaged
    else:
        model = PyraTok(recipe.model)
        model.vae.load_state_dict(averaged.state_dict())
    model.save_pretrained(folder)
    return folder
