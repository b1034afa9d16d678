"""Priors over stored tokens in the project's trainer: neither video nor encoder in sight.

    shards ── ids, captions' embeddings ──► prior ──► nats per predicted word
       └───── the clips held out ─────────► bits per token, beside the entropy of the words as they come

Source: autoregressive modelling of a pyramid after its caption, PyraTok (arXiv 2601.16210), sec. 3.2.2; the other kinds
of prior are told of in :mod:`pyratok.tasks.generation`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyratok.config import to_dict
from pyratok.data.token_shards import ShardHeader, TokenClips, TokenShards
from pyratok.tasks.generation.config import NO_TEXT, PriorConfig
from pyratok.tasks.generation.files import load_prior, save_prior
from pyratok.tasks.generation.generate import build_prior
from pyratok.tasks.generation.prior import Prior
from pyratok.tasks.generation.prompts import save_examples, save_words
from pyratok.text.hf_loading import read_config as read_text_config
from pyratok.train.checkpoint import checkpoint_to_resume, latest_checkpoint, write_json
from pyratok.train.held_out import Survey, TrainingClips, bits_per_token, survey
from pyratok.train.objectives import LossWeights, Named, Objective, Part
from pyratok.train.ranks import join_ranks
from pyratok.train.trainer import TrainConfig, train
from pyratok.types import LossTerms, TextEmbedding, TokenPyramid
from pyratok.vae.hub import resolve_folder

PRIOR, RECORD = "prior", "prior.json"
"""In the folder of a run: the folder of the trained prior, and what was measured."""


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """A run that trains a prior; fields up to ``levels`` as of :class:`PriorConfig`, sizes of a ``language_model``
    its own.

    The shards say all else: whose tokens, their grids, the size of clips (``train.frames`` and ``train.size`` are not
    read), the width of captions. ``held_out``: share of the videos that is never trained on, for measuring.
    """

    name: str
    kind: Literal["ar", "scale", "masked", "llm"]
    hidden_size: int = 192
    num_layers: int = 5
    num_heads: int = 3
    chunk_bits: int = 8
    order: Literal["level", "time", "cell"] = "level"
    text_dropout: float = 0.1
    language_model: str | None = None
    lora_rank: int = 0
    levels: int = 0
    held_out: float = 0.02
    train: TrainConfig

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share in [0, 1), got {self.held_out}")
        if self.train.losses != LossWeights():
            raise ValueError("a prior has one loss, its negative log-likelihood; train.losses has no say here")

    def config(self, header: ShardHeader) -> PriorConfig:
        """The prior for such shards. Raises ValueError for fields that do not go together, or with the words."""
        g = header.geometry
        hidden_size, num_layers, num_heads = self.hidden_size, self.num_layers, self.num_heads
        if self.language_model is not None:
            shape = read_text_config(resolve_folder(self.language_model)).get_text_config()
            hidden_size, num_heads = shape.hidden_size, shape.num_attention_heads
            num_layers = shape.num_hidden_layers
        return PriorConfig(
            kind=self.kind,
            tokenizer=header.model,
            strides=g.strides,
            num_bits=header.num_bits,
            frames=g.frames,
            height=g.height,
            width=g.width,
            text_dim=header.text_dim or NO_TEXT,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            chunk_bits=self.chunk_bits,
            order=self.order,
            text_dropout=self.text_dropout,
            language_model=self.language_model,
            lora_rank=self.lora_rank,
            levels=self.levels,
        )

    def origin(self, header: ShardHeader, init: Prior | None) -> dict[str, Any]:
        """What a run learns follows from this and the rows of the shards, JSON-ready."""
        digest = None if init is None else hashlib.sha256()
        if init is not None and digest is not None:
            for value in init.state_dict().values():
                digest.update(value.cpu().numpy().tobytes())
        began = None if digest is None else digest.hexdigest()[:16]
        return to_dict(self) | {"train": self.train.origin(), "shards": to_dict(header), "init": began}


class Learner(nn.Module):
    """A prior, and the bits per token that each level cost when words of it were last predicted.

    A step of kind ``scale`` looks at one level alone. Kept with the weights: a resumed run logs what an uninterrupted
    one does.
    """

    bits: Tensor

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("bits", torch.full((prior.config.num_levels,), float(prior.config.num_bits)))


class PriorObjective(Objective):
    """``nll``: nats per predicted word, mean over clips. Watched: ``bits_1`` ... ``bits_L``, bits per token by level.

    Captions are those of the batch; which of them are dropped, and which words hidden, is drawn by the prior.
    """

    model: Learner

    def __init__(self, prior: Prior) -> None:
        super().__init__(Learner(prior), LossWeights())

    def prepare(self, batch: TokenClips, part: Part | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The words of the last level, int32 ``[B, 1, t, h, w]``, take the place of the clips; those of the others, and
        the captions, are choices."""
        part = part or Part.whole(batch.tokens.batch_size)
        drawn = self.model.prior.draw(part.total, batch.tokens.geometry)
        choices = {name: part.of(value) if value.ndim else value for name, value in drawn.items()}
        *others, last = batch.tokens.levels[: self.model.prior.config.num_levels]
        choices |= {f"ids_{level}": ids for level, ids in enumerate(others, start=1)}
        if batch.text is not None:
            text = batch.text
            choices |= {"text_tokens": text.tokens, "text_mask": text.mask, "text_pooled": text.pooled}
        return last[:, None], choices

    def terms(self, video: Tensor, **choices: Tensor) -> tuple[Named, Named]:
        config = self.model.prior.config
        others = [choices[f"ids_{level}"] for level in range(1, config.num_levels)]
        tokens = TokenPyramid((*others, video[:, 0]), config.geometry, config.tokenizer, config.num_bits)
        text = None
        if "text_tokens" in choices:
            text = TextEmbedding(
                tokens=choices["text_tokens"], mask=choices["text_mask"], pooled=choices["text_pooled"]
            )
        output = self.model.prior(tokens, text, choices)
        with torch.no_grad():
            for level, bits in output.bits_per_token.items():
                self.model.bits[level] = bits
        return {"nll": output.total}, {f"bits_{n}": bits for n, bits in enumerate(self.model.bits.clone(), start=1)}

    def forward(self, video: Tensor, **choices: Tensor) -> LossTerms:
        terms, metrics = self.terms(video, **choices)
        return LossTerms(terms=terms, weights={"nll": 1.0}, metrics=metrics)


def run_prior(
    recipe: PriorRecipe,
    shards_folder: str | os.PathLike[str],
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Path:
    """Train a prior on a folder of token shards; returns its folder, ``out/prior``, with the averaged weights.

    A run that came to its end also leaves ``out/prior.json``: bits per token of the clips held out, per level, beside
    the entropy of the words of the training clips. ``init``: the folder of a prior whose weights one starts from.

    Raises ValueError for shards that cannot be read, are of another tokenizer than ``init`` has learned, or hold
    nothing to train on; and as :func:`~pyratok.train.trainer.train` does.
    """
    ranks, settings = join_ranks(), recipe.train
    begun = None if init is None else load_prior(init)
    tokenizer = None if begun is None else begun.config.tokenizer
    length = settings.steps * settings.batch_size
    shuffled = TokenShards(shards_folder, tokenizer, length=length, seed=settings.seed)
    in_order = TokenShards(shards_folder, shuffle=False)
    config, origin = recipe.config(shuffled.header), recipe.origin(shuffled.header, begun)
    checkpoint_to_resume(out, resume, origin)
    torch.manual_seed(settings.seed)
    objective = PriorObjective(begin(config, begun))
    found = survey(in_order, recipe.held_out)
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "recipe.json", to_dict(recipe))
        (out / RECORD).unlink(missing_ok=True)  # of the run before it was lengthened
    clips = TrainingClips(shuffled, recipe.held_out)
    averaged = train(objective, clips, settings, out, resume=resume, origin=origin, on_log=on_log)
    assert isinstance(averaged, Learner)
    with ranks.first_alone():
        if ranks.first:
            prior = averaged.prior.eval()
            save_prior(prior, out / PRIOR)
            if prior.config.text_dim != NO_TEXT:
                save_words(out / PRIOR, found.words)
                save_examples(out / PRIOR, found.examples)
            newest = latest_checkpoint(out / "checkpoints")
            if newest is not None and int(newest.name.rpartition("-")[2]) >= settings.steps:
                write_json(out / RECORD, measured(recipe, prior, in_order, found))
    return out / PRIOR


def begin(config: PriorConfig, begun: Prior | None = None) -> Prior:
    """A prior to train, with the weights of another one where there is one.

    Raises ValueError where they differ in more than the largest clips, the share of captions that is dropped, and the
    number of levels where no weight belongs to one.
    """
    prior = build_prior(config)
    if begun is not None:
        free = ["tokenizer", "frames", "height", "width", "text_dropout"]  # weights do not depend on these
        if begun.config.max_stack == config.max_stack:
            free.append("levels")
        before = replace(begun.config, **{name: getattr(config, name) for name in free})
        for name in (field.name for field in fields(config)):
            if getattr(before, name) != getattr(config, name):
                was, now = getattr(before, name), getattr(config, name)
                raise ValueError(f"the prior to start from has {name} = {was!r}, the recipe and shards say {now!r}")
        prior.load_state_dict(begun.state_dict())
    return prior


def measured(recipe: PriorRecipe, prior: Prior, shards: TokenShards, found: Survey) -> dict[str, Any]:
    """What is known of a trained prior, JSON-ready; None where there is no clip to measure by."""
    seed = recipe.train.seed
    unigram = found.unigram[: prior.config.num_levels]
    bits = bits_per_token(prior, shards, found.held_out, seed=seed) if found.held_out else [None] * len(unigram)
    return {
        "recipe": recipe.name,
        "kind": recipe.kind,
        "parameters": sum(weight.numel() for weight in prior.parameters()),
        "tokenizer": to_dict(prior.config.tokenizer),
        "steps": recipe.train.steps,
        "training_clips": found.training,
        "held_out_clips": len(found.held_out),
        "exact": prior.config.is_sequential,
        "levels": [
            {"level": level, "held_out_bits": spent, "unigram_bits": unigram}
            for level, (spent, unigram) in enumerate(zip(bits, unigram, strict=True), start=1)
        ],
    }
