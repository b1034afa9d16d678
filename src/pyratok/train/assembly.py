"""From a recipe to the objective that trains it: which models it is made of, and which of their parts learn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from pyratok.config import LaPQConfig, from_dict, to_dict
from pyratok.losses.perceptual import PerceptualLoss, st_lpips
from pyratok.model.alignment import TokenLM
from pyratok.model.answerer import Answerer
from pyratok.model.lapq import LaPQLevel
from pyratok.model.pretrained import from_pretrained, read_config
from pyratok.model.pyratok import PyraTok
from pyratok.nn.lora import inject
from pyratok.text.base import TextEncoder
from pyratok.text.hf import HFTextEncoder
from pyratok.text.hf_loading import read_config as read_text_config
from pyratok.text.minilm import MiniLM
from pyratok.text.references import DinoReference, ReferenceEncoder, reference_config
from pyratok.train.answering import AnsweringObjective, AnsweringParts
from pyratok.train.language import LanguageObjective, LanguageParts, NoText, frozen_copy
from pyratok.train.objectives import Objective, TokenizerObjective, VAEObjective
from pyratok.train.reading import ReadingObjective
from pyratok.train.recipe import Recipe
from pyratok.train.teachers import FeatureProjector
from pyratok.vae.hub import resolve_folder
from pyratok.vae.wan import WanVAE
from pyratok.vae.wan_blocks import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    channels_last_,
    near_identity_,
)
from pyratok.vae.wan_loading import load_wan_vae, read_wan_config

BLOCKS = ResidualBlock, AttentionBlock, Downsample, Upsample
"""What is computed again as a whole under ``Recipe.checkpointing``, beside the layers of the language model."""

WANTED = {
    "vae": "the folder of a diffusers AutoencoderKLWan, such as that of Wan 2.2",
    "text": "the folder of a transformers text encoder or language model and its tokenizer, such as Qwen2.5-VL",
    "lm": "the folder of a causal transformers language model, such as Qwen2.5-VL",
    "reference": "the folder of a transformers DINOv2 or DINOv3",
}


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with the shapes that its ``sources`` have; reads their configurations alone.

    Raises ValueError naming the setting, the folder and what belongs there.
    """
    sources, model, lm = recipe.sources, recipe.model, recipe.language.lm
    if sources.vae is not None:
        with naming("vae"):
            model = replace(model, vae=read_wan_config(sources.vae)[1])
    if sources.text is not None:
        with naming("text"):
            width: int = read_text_config(resolve_folder(sources.text)).get_text_config().hidden_size
        model = replace(model, lapq=replace(model.lapq, text_dim=width))
    if sources.reference is not None:
        with naming("reference"):
            reference_config(sources.reference)
    if sources.lm is not None:
        with naming("lm"):
            read_text_config(resolve_folder(sources.lm))
        if lm is not None:
            lm = replace(lm, backbone=sources.lm, load_in_4bit=sources.load_in_4bit)
    if lm is not None and sources.text is not None:
        lm = replace(lm, text_dim=model.lapq.text_dim)
    return replace(recipe, model=model, language=replace(recipe.language, lm=lm))


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Errors of this block say which of the ``sources`` they are about, and what it should be."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"sources.{source}: {error}; it is to be {WANTED[source]}") from error


def build_objective(recipe: Recipe, init: Path | None, text_encoder: TextEncoder | None = None) -> Objective:
    """The model of a recipe, initialised, with the right parts frozen, inside its objective.

    ``init``: a model folder whose weights one starts from; without it ``sources.vae`` gives those of the VAE.
    ``text_encoder``: for stages that read text; by default that of ``sources.text``, or MiniLM.
    """
    recipe = resolve(recipe)
    sources, weights = recipe.sources, recipe.train.losses
    given = None
    if init is None and sources.vae is not None:
        with naming("vae"):
            given = load_wan_vae(sources.vae)
    model = PyraTok(recipe.model, given)
    if given is None:
        near_identity_(model.vae)
    if init is not None:
        load_init(model, init)
    elif recipe.stage != "vae" and given is None:
        fix = "give its model folder with --init, or a diffusers folder with --set sources.vae=FOLDER"
        raise ValueError(f"the {recipe.stage} stage starts from a trained VAE; {fix}")
    if recipe.quantizer == "frozen" and recipe.stage != "vae":
        require_quantizer(recipe, init)
    channels_last_(model)

    def reference() -> ReferenceEncoder:
        assert sources.reference is not None
        with naming("reference"):
            return DinoReference(sources.reference, max_side=sources.reference_side)

    def text() -> TextEncoder:
        if text_encoder is not None:
            return text_encoder
        if sources.text is None:
            return MiniLM()
        with naming("text"):
            limit = recipe.language.max_text_tokens
            return HFTextEncoder(sources.text, max_tokens=limit, load_in_4bit=sources.load_in_4bit)

    perceptual = st_lpips(frames_per_clip=1) if weights.perceptual else None
    return assemble(recipe, model, text=text, reference=reference, perceptual=perceptual)


def assemble(
    recipe: Recipe,
    model: PyraTok,
    *,
    text: Callable[[], TextEncoder],
    reference: Callable[[], ReferenceEncoder],
    perceptual: PerceptualLoss | None,
    backbone: Any = None,
) -> Objective:
    """Freeze what does not learn, adapt what learns by adapters, and put the objective of the stage around it.

    ``text`` and ``reference`` make the frozen models beside it, if the stage has any use for them; ``backbone`` is that
    of the language model, by default what ``language.lm`` asks for.
    """
    weights, vae = recipe.train.losses, model.vae
    if recipe.answering is not None and recipe.stage == "answering":
        answerer = Answerer(recipe.answering.answerer)
        answerer.take_head(model.text_head)
        return AnsweringObjective(AnsweringParts(model.requires_grad_(False), answerer), recipe.answering, text())
    if recipe.checkpointing:
        recompute_(block for block in vae.modules() if isinstance(block, BLOCKS))
    if recipe.stage == "vae":
        return VAEObjective(vae, weights, perceptual)
    looked_up_to: WanVAE | ReferenceEncoder | None = None
    if recipe.stage == "language" and (weights.drift or weights.retention):
        looked_up_to = frozen_copy(vae) if recipe.sources.reference is None else reference()
    choose_what_learns(recipe, model)
    if recipe.stage == "tokenizer":
        return TokenizerObjective(model, weights, perceptual)
    lm = None
    if recipe.language.lm is not None and weights.autoregressive:
        with naming("lm") if recipe.sources.lm is not None else nullcontext():
            lm = TokenLM(recipe.language.lm, backbone)
        if recipe.checkpointing:
            recompute_(getattr(lm.backbone, "layers", ()))
    projector = None
    if looked_up_to is not None and not isinstance(looked_up_to, WanVAE):
        projector = FeatureProjector(recipe.model.vae.tap_channels[-1], looked_up_to.dim)
    parts = LanguageParts(model, lm, projector)
    captions = text() if recipe.reads_captions else NoText(recipe.model.lapq.text_dim)
    kind = ReadingObjective if recipe.stored else LanguageObjective
    return kind(parts, weights, recipe.language, captions, looked_up_to, perceptual)


def choose_what_learns(recipe: Recipe, model: PyraTok) -> None:
    """Freeze parts of the model and adapt others, in place, as the recipe says for a stage with tokens."""
    for level in model.lapq.levels:
        # Without captions to learn from, an open gate would let untrained attention disturb the words.
        cast(LaPQLevel, level).text.requires_grad_(recipe.reads_captions)
    if recipe.quantizer == "frozen":
        model.lapq.requires_grad_(False)
    if model.text_head is not None and not (recipe.stage == "language" and recipe.train.losses.aligns):
        model.text_head.requires_grad_(False)
    choose_how_halves_learn(recipe, model.vae)


def choose_how_halves_learn(recipe: Recipe, vae: WanVAE) -> None:
    """Freeze or adapt encoder and decoder around a quantizer, in place, as the recipe says."""
    # The head of the continuous latent is not on the path of the tokens.
    for part in (vae.encoder.norm_out, vae.encoder.conv_out, vae.quant_conv):
        part.requires_grad_(False)
    if recipe.encoder != "full":
        vae.encoder.requires_grad_(False)
    if recipe.encoder == "lora":
        inject(vae.encoder, recipe.lora, ("conv_in", "down_blocks", "mid_block"))
    if recipe.decoder != "full":
        vae.post_quant_conv.requires_grad_(False)
        vae.decoder.requires_grad_(False)
    if recipe.decoder == "lora":
        inject(vae.decoder, recipe.lora)


def recompute_(blocks: Iterable[nn.Module]) -> None:
    """Let every block keep its input alone and compute the rest again in the backward pass, in place."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def require_quantizer(recipe: Recipe, init: Path | None) -> None:
    """Raise ValueError where a quantizer that is to be frozen is not that of ``init``: it would stay untrained."""
    if init is None:
        raise ValueError("a frozen quantizer has to be trained before; give its model folder with --init")
    wanted, given = to_dict(recipe.model.lapq), to_dict(from_dict(LaPQConfig, read_config(init)[1]["lapq"]))
    if not recipe.encoder == recipe.decoder == "frozen":
        # Of tokens that stay as they are it is a part of the fingerprint, and has to stay too.
        del wanted["level_dropout"]
    if other := [name for name in wanted if wanted[name] != given[name]]:
        fix = " ".join(f"--set model.lapq.{name}={json.dumps(given[name], separators=(',', ':'))}" for name in other)
        raise ValueError(f"{init}: its quantizer, which is to be frozen, is another one; it needs {fix}")


def load_init(model: PyraTok, folder: Path) -> None:
    """Take over the weights of a saved model: its VAE, and its quantizer where both have the same layout.

    Where only the grids differ, those layers of the quantizer that bridge other strides than before begin anew.
    """
    saved = from_pretrained(folder)
    if not isinstance(saved, PyraTok) or saved.config.vae != model.config.vae:
        raise ValueError(f"{folder}: its VAE is not the one this recipe trains")
    model.vae.load_state_dict(saved.vae.state_dict())
    # How often levels are dropped is a matter of training, not of the weights' layout.
    wanted = model.config.lapq
    layout = replace(saved.config.lapq, level_dropout=wanted.level_dropout)
    if layout.num_levels == wanted.num_levels and replace(layout, strides=wanted.strides) == wanted:
        own = model.lapq.state_dict()
        given = {name: value for name, value in saved.lapq.state_dict().items() if name in own}
        model.lapq.load_state_dict(own | {k: v for k, v in given.items() if v.shape == own[k].shape})
    if model.text_head is not None and saved.text_head is not None:
        if saved.config.text_head != model.config.text_head:
            raise ValueError(f"{folder}: its text head is not the one this recipe trains")
        model.text_head.load_state_dict(saved.text_head.state_dict())
