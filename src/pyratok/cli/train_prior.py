"""``pyratok train prior-...``: a prior on a folder of token shards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pyratok.cli.common import Output, progress_bar
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.train.priors import PriorRecipe


def train_prior(
    recipe: PriorRecipe, data: Sequence[Path], out: Path | None, *, init: Path | None, resume: bool
) -> None:
    """Train as :func:`pyratok.train.priors.run_prior` does, and show what was measured in the end."""
    from pyratok.train.priors import RECORD, run_prior
    from pyratok.train.ranks import join_ranks
    from pyratok.vae.hub import read_json

    shards = _only_folder(data)
    if out is None:
        raise ValueError("--out is missing; only --dry-run does without")
    first = join_ranks().first
    with progress_bar(Console(stderr=True, quiet=not first), transient=False) as bar:
        task = bar.add_task(recipe.name, total=recipe.train.steps)

        def show(record: Mapping[str, Any]) -> None:
            words = f"{recipe.name} nll {record['nll']:.4f} {record['clips_per_second']:.1f} clips/s"
            bar.update(task, completed=record["step"], description=words)

        folder = run_prior(recipe, shards, out, init=init, resume=resume, on_log=show)
    if not first:
        return
    output = Output(None)
    output.facts({"prior": folder})
    if (out / RECORD).is_file():
        found = read_json(out / RECORD)
        output.facts({"held out": f"{found['held_out_clips']} clips, beside {found['training_clips']} of training"})
        rows = [(f"level {x['level']}", _bits(x["held_out_bits"]), _bits(x["unigram_bits"])) for x in found["levels"]]
        output.table(("bits per token", "held out" if found["exact"] else "held out, at most", "unigram"), rows)


def show_prior(recipe: PriorRecipe, data: Sequence[Path], output: Output) -> None:
    """What would be trained, by the header of the shards alone; nothing is written but the JSON."""
    import torch

    from pyratok.data.token_shards import read_index
    from pyratok.tasks.generation.generate import build_prior
    from pyratok.train.dryrun import optimizer_bytes

    header, _ = read_index(_only_folder(data))
    config, train, g = recipe.config(header), recipe.train, header.geometry
    with torch.device("cpu" if config.kind == "llm" else "meta"):  # which counts without weights
        prior = build_prior(config)
    parameters = sum(weight.numel() for weight in prior.parameters())
    tokens = sum(map(math.prod, header.grids[: config.num_levels]))
    learned = sum(weight.numel() for weight in prior.parameters() if weight.requires_grad)
    # Weights and their moving average, gradients.
    memory = 8 * parameters + 4 * learned + optimizer_bytes(prior, train.optim)
    output.facts(
        {
            "steps": f"{train.steps:,} of {train.batch_size} clips",
            "clips": f"{g.frames}x{g.height}x{g.width}, {tokens:,} tokens of {header.model}",
            "captions": header.text_encoder or "none",
            "parameters": f"{parameters:,}" + (f", of which {learned:,} learn" if learned < parameters else ""),
            "memory": f"{human_bytes(memory)} for weights, gradients, moving average and optimizer",
        },
        title=recipe.name,
    )
    facts = {"recipe": recipe.name, "steps": train.steps, "batch_size": train.batch_size, "tokens": tokens}
    output.finish(facts | {"parameters": parameters, "standing_memory": memory})


def build_prior_recipe(name: str, overrides: Mapping[str, Any], stages: Sequence[str] | None = None) -> PriorRecipe:
    """The recipe of that name with dotted fields replaced.

    Raises: ValueError for ``stages``, an unknown field, or a value that the recipe refuses.
    """
    from pyratok.config import field_paths, from_dict, nearest, set_field, to_dict
    from pyratok.recipes import PRIORS
    from pyratok.train.priors import PriorRecipe

    if stages:
        raise ValueError(f"recipe {name} has no stages; leave out --stage {stages[0]}")
    fields = to_dict(PRIORS[name]())
    for key, value in overrides.items():
        if not set_field(fields, key, value):
            raise ValueError(f"recipe {name} has no field {key!r}{nearest(key, field_paths(fields))}")
    return from_dict(PriorRecipe, fields)


def _only_folder(data: Sequence[Path]) -> Path:
    if len(data) != 1:
        raise ValueError(f"a prior learns from one folder of token shards: --data DIR once, got {len(data)}")
    return data[0]


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
