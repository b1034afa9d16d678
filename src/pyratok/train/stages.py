"""Several recipes, one after another, each from the weights of the one before.

Source: PyraTok (arXiv 2601.16210), App. D: self-supervised pretraining, text-visual token alignment, full-scale
fine-tuning.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyratok.data.manifests import gather
from pyratok.data.mixes import kinds_there
from pyratok.model.pretrained import CONFIG
from pyratok.train.assembly import resolve
from pyratok.train.checkpoint import checkpoint_to_resume, latest_checkpoint
from pyratok.train.ranks import join_ranks
from pyratok.train.run import ANSWERER, LM, Recipe, run
from pyratok.vae.hub import replacing_folder


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe of several stages, in order; stage names are different."""

    name: str
    stages: tuple[Recipe, ...]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a plan has one or more stages with different names, got {names}")

    def folder(self, out: Path, number: int) -> Path:
        """Where stage ``number`` (from 0) of a run in ``out`` is kept."""
        return out / f"{number + 1}-{self.stages[number].name}"


def run_plan(
    plan: Plan,
    roots: Sequence[str | Path],
    out: Path,
    *,
    init: Path | None = None,
    resume: bool = False,
    on_stage: Callable[[int], None] = lambda number: None,
    on_log: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Path:
    """Train every stage; returns the folder of the trained model, ``out/model``.

    The language model of the last stage, where it has one, is copied to ``out/lm``, an answerer to ``out/answerer``.

    ``resume``: finished stages are left as they are, an unfinished one goes on from its last checkpoint. A stage that
    was asked to stop (SIGTERM, SIGINT) ends the run; its folder then holds the weights so far.
    """
    folders = [plan.folder(out, number) for number in range(len(plan.stages))]
    if not resume and any(latest_checkpoint(folder / "checkpoints") for folder in folders):
        raise ValueError(f"{out} already holds checkpoints; pass --resume to go on, or choose another folder")
    model, ranks = init, join_ranks()
    with ranks.first_alone():  # a hub id is fetched once
        recipes = [resolve(recipe) for recipe in plan.stages]  # a wrong folder is found before the first stage
    finished = [resume and _is_finished(*pair) for pair in zip(recipes, folders, strict=True)]
    _require_media([recipe for recipe, done in zip(recipes, finished, strict=True) if not done], roots)
    for number, (recipe, folder) in enumerate(zip(recipes, folders, strict=True)):
        if finished[number]:
            checkpoint_to_resume(folder, resume, recipe.origin(model))
        else:
            on_stage(number)
            told = partial(_tell, on_log, recipe.name)
            run(recipe, roots, folder, init=model, resume=resume, cache=out / "frames", on_log=told)
        model = folder / "model"
        if _steps_done(folder) < recipe.train.steps:
            return model
    assert model is not None
    with ranks.first_alone():
        if ranks.first:
            for name in ("model", LM, ANSWERER):
                shutil.rmtree(out / name, ignore_errors=True)  # also where an earlier plan had it and this one has not
                if (model.parent / name).is_dir():
                    with replacing_folder(out / name) as unfinished:
                        shutil.copytree(model.parent / name, unfinished, dirs_exist_ok=True)
    return out / "model"


def _tell(on_log: Callable[[dict[str, Any]], None], stage: str, record: dict[str, Any]) -> None:
    on_log({"stage": stage, **record})


def _is_finished(recipe: Recipe, folder: Path) -> bool:
    return (folder / "model" / CONFIG).is_file() and _steps_done(folder) >= recipe.train.steps


def _require_media(recipes: Sequence[Recipe], roots: Sequence[str | Path]) -> None:
    """Raise ValueError for a stage that there are no clips for, before those ahead of it have taken hours."""
    found = {exclude: gather(roots, exclude=exclude) for exclude in {recipe.data.exclude for recipe in recipes}}
    for recipe in recipes:
        try:
            if recipe.buckets is None:
                kinds_there(recipe.data, found[recipe.data.exclude], captioned=recipe.names_objects)
        except ValueError as error:
            raise ValueError(f"stage {recipe.name}: {error}; or choose among the stages by --stage") from error


def _steps_done(folder: Path) -> int:
    """Steps that the newest checkpoint of a stage stands for."""
    newest = latest_checkpoint(folder / "checkpoints")
    return int(newest.name.rpartition("-")[2]) if newest else 0
