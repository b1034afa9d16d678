"""From a recipe to a trained model on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from pyratok.config import to_dict
from pyratok.data.bucketed import BucketedClips, bucketed_clips
from pyratok.data.captioned import CaptionedMix
from pyratok.data.datasets import ClipDataset, MixedClips
from pyratok.data.mixes import captioned_clips, mixed_clips
from pyratok.data.questioned import QuestionedMix, questioned_clips
from pyratok.model.answerer import save_answerer
from pyratok.model.companions import ANSWERER, LM
from pyratok.model.pretrained import read_config
from pyratok.model.pyratok import PyraTok
from pyratok.model.token_lm_files import save_token_lm
from pyratok.train.answering import AnsweringParts, StoredQuestions
from pyratok.train.assembly import build_objective, load_init, resolve
from pyratok.train.checkpoint import checkpoint_to_resume, write_json
from pyratok.train.language import LanguageObjective, LanguageParts
from pyratok.train.ranks import join_ranks
from pyratok.train.recipe import Recipe, Sources
from pyratok.train.stored import StoredClips, store_clips
from pyratok.train.trainer import train
from pyratok.types import ModelId

__all__ = ["ANSWERER", "LM", "Recipe", "Sources", "build_objective", "clips_of", "export", "load_init", "run"]


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

    ``init``: a model folder whose weights one starts from; from the tokenizer stage on the VAE comes from there, or
    from ``sources.vae``.
    """
    ranks = join_ranks()
    with ranks.first_alone():  # a hub id is fetched once
        recipe = resolve(recipe)
    origin = recipe.origin(init)
    checkpoint_to_resume(out, resume, origin)  # refuses before hours of footage are decoded
    torch.manual_seed(recipe.train.seed)
    objective = build_objective(recipe, init)
    cache = cache or out / "frames"
    absent = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    try:
        with ranks.first_alone():
            dataset: ClipDataset = clips_of(recipe, roots, cache)
    except ValueError:
        if absent:  # decoding makes the folder before it is known that the data will not do
            shutil.rmtree(absent[-1], ignore_errors=True)
        raise
    if isinstance(objective, LanguageObjective) and isinstance(dataset, CaptionedMix):
        objective.texts.learn_names(dataset.nouns if recipe.language.vocabulary else ())
    if recipe.stored and isinstance(dataset, CaptionedMix | QuestionedMix):
        with ranks.first_alone():
            parts = cast("LanguageParts | AnsweringParts", objective.to(ranks.device).model)
            dataset = stored(recipe, parts.tokenizer, dataset, cache.with_name("tokens"))
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "recipe.json", to_dict(recipe))
    averaged = train(objective, dataset, recipe.train, out, resume=resume, origin=origin, on_log=on_log)
    with ranks.first_alone():
        return export(recipe, averaged, out / "model") if ranks.first else out / "model"


def clips_of(
    recipe: Recipe, roots: Sequence[str | Path], cache: Path
) -> MixedClips | CaptionedMix | QuestionedMix | BucketedClips:
    """The clips that a recipe trains on, as many as it needs."""
    train = recipe.train
    length = recipe.stored or train.steps * train.batch_size
    if recipe.buckets is not None:
        stride = recipe.model.lapq.strides[-1] if recipe.stage == "language" else None
        return bucketed_clips(
            recipe.data,
            roots,
            recipe.buckets,
            batch_size=train.batch_size,
            length=length,
            seed=train.seed,
            stride=stride,
        )
    shape = {"frames": train.frames, "size": train.size, "seed": train.seed, "length": length}
    if recipe.stage == "language":
        return captioned_clips(recipe.data, roots, cache, **shape, stride=recipe.model.lapq.strides[-1])
    if recipe.answering is not None and recipe.stage == "answering":
        asking = recipe.answering
        return questioned_clips(recipe.data, roots, cache, **shape, most=asking.questions, kinds=asking.kinds)
    return mixed_clips(recipe.data, roots, cache, **shape)


def stored(
    recipe: Recipe, tokenizer: PyraTok, clips: CaptionedMix | QuestionedMix, folder: Path
) -> StoredClips | StoredQuestions:
    """The clips of a recipe as tokens, as often as its steps ask for them."""
    train, settings = recipe.train, to_dict(recipe.data)
    shape: dict[str, int] = {"length": train.steps * train.batch_size, "seed": train.seed}
    if isinstance(clips, QuestionedMix):
        settings |= {"questions": [clips.most, *clips.scenes.kinds]}
    shards = store_clips(tokenizer, clips, folder, settings, workers=train.workers, bf16=train.bf16)
    return (
        StoredQuestions(shards, **shape) if recipe.stage == "answering" else StoredClips(shards, clips.nouns, **shape)
    )


def export(recipe: Recipe, averaged: nn.Module, folder: Path) -> Path:
    """Save the averaged weights of a run as a whole model; after the VAE stage its quantizer is still untrained.

    A language model over its tokens goes into ``lm`` beside it, an answerer into ``answerer``.
    """
    if isinstance(averaged, LanguageParts | AnsweringParts):
        model = averaged.tokenizer
    elif isinstance(averaged, PyraTok):
        model = averaged
    else:
        model = PyraTok(recipe.model)
        model.vae.load_state_dict(averaged.state_dict())
    model.save_pretrained(folder)
    _, config = read_config(folder)
    tokenizer = ModelId(name=config["name"], fingerprint=config["fingerprint"])
    if isinstance(averaged, LanguageParts) and averaged.lm is not None:
        save_token_lm(averaged.lm, folder.parent / LM, tokenizer)
    if isinstance(averaged, AnsweringParts):
        save_answerer(averaged.answerer, folder.parent / ANSWERER, tokenizer)
    return folder
