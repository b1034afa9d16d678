"""``pyratok train``: run a training recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import TaskID

from pyratok.cli.common import JsonOption, Output, progress_bar
from pyratok.cli.train_prior import build_prior_recipe, show_prior, train_prior
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.train.stages import Plan


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The name of a recipe: nano, prior-ar ...")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder for checkpoints, logs and the model.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="What to train on; may be given several times."),
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="MODEL", help="Start from the weights of this model directory.")
    ] = None,
    stages: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="NAME", help="Run this stage alone; may be given several times."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[STAGE.]a.b=c", help="Change a field of one stage, or of all of them."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be trained and the memory it takes; train nothing.")
    ] = False,
    json_target: JsonOption = None,
) -> None:
    """Train a model by a recipe, or go on with it; Ctrl-C saves and stops, --resume goes on."""
    overrides = parse_settings(settings or [])
    if json_target is not None and not dry_run:
        raise ValueError("--json goes with --dry-run; a run writes its numbers to log.jsonl")
    from pyratok.recipes import PRIORS

    if recipe in PRIORS:
        prior = build_prior_recipe(recipe, overrides, stages)
        if dry_run:
            show_prior(prior, data or [], Output(json_target, out, init, *(data or [])))
        else:
            train_prior(prior, data or [], out, init=init, resume=resume)
        return
    if dry_run:
        show_outline(build_plan(recipe, overrides, stages), Output(json_target, out, init, *(data or [])))
        return
    if out is None or not data:
        raise ValueError(f"{'--data' if out else '--out'} is missing; only --dry-run does without")

    from pyratok.train.ranks import join_ranks
    from pyratok.train.stages import run_plan

    plan = build_plan(recipe, overrides, stages)
    first = join_ranks().first
    with progress_bar(Console(stderr=True, quiet=not first), transient=False) as bar:
        tasks: list[TaskID] = []

        def begin(number: int) -> None:
            tasks.append(bar.add_task(plan.stages[number].name, total=plan.stages[number].train.steps))

        def show(record: Mapping[str, Any]) -> None:
            words = f"loss {record['total']:.4f} {record['clips_per_second']:.1f} clips/s"
            bar.update(tasks[-1], completed=record["step"], description=f"{record['stage']} {words}")

        model = run_plan(plan, data, out, init=init, resume=resume, on_stage=begin, on_log=show)
    if first:
        Output(None).facts({"model": model})


def show_outline(plan: Plan, output: Output) -> None:
    """What every stage of a plan would do, on its models alone: no media are read, nothing is written but the JSON."""
    from pyratok.train.dryrun import outline_plan

    outlines = outline_plan(plan)
    for stage in outlines:
        memory, shapes = stage.memory, stage.shapes
        facts = {
            "steps": f"{stage.steps:,} of {stage.batch_size} clips",
            "clips": shapes[0] if len(shapes) == 1 else f"{len(shapes)} buckets, {shapes[0]} to {shapes[-1]}",
            "terms": ", ".join(f"{name} {weight:g}" for name, weight in stage.terms.items()),
        }
        output.facts(facts, title=f"{plan.name}: {stage.name}")
        parts = dict.fromkeys([*stage.trainable, *stage.frozen])
        rows = [(part, f"{stage.trainable.get(part, 0):,}", f"{stage.frozen.get(part, 0):,}") for part in parts]
        rows.append(("all", f"{sum(stage.trainable.values()):,}", f"{sum(stage.frozen.values()):,}"))
        output.table(("parameters", "trainable", "frozen"), rows, last_is_total=True)
        kinds = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
        kinds |= {"moving average": memory.average}
        kinds |= {f"activations, {stage.micro_batch} x {shape}": size for shape, size in memory.activations.items()}
        sizes = [(name, human_bytes(size)) for name, size in kinds.items()]
        output.table(
            ("memory", "expected"), [*sizes, ("all, largest batch", human_bytes(memory.total))], last_is_total=True
        )
    stages = [asdict(stage) | {"memory_total": stage.memory.total} for stage in outlines]
    output.finish({"recipe": plan.name, "stages": stages})


def build_plan(name: str, overrides: Mapping[str, Any], stages: Sequence[str] | None = None) -> Plan:
    """The plan of that name, some of its ``stages`` alone if asked, with dotted fields replaced.

    ``{"alignment.train.steps": 10}`` is for one stage, ``{"train.steps": 10}`` for all.
    Raises: ValueError for an unknown recipe, stage or field, or a value that the recipe refuses.
    """
    from pyratok.config import field_paths, from_dict, nearest, set_field, to_dict
    from pyratok.recipes import PRIORS, RECIPES
    from pyratok.train.stages import Plan

    if name not in RECIPES:
        known_names = [*RECIPES, *PRIORS]
        raise ValueError(
            f"there is no recipe {name!r}{nearest(name, known_names)}; recipes are {', '.join(known_names)}"
        )
    plan = RECIPES[name]()
    known = {stage.name: to_dict(stage) for stage in plan.stages}
    if unknown := [stage for stage in stages or () if stage not in known]:
        hint = nearest(unknown[0], known)
        raise ValueError(f"recipe {name} has no stage {unknown[0]!r}{hint}; stages are {', '.join(known)}")
    chosen = {stage: fields for stage, fields in known.items() if not stages or stage in stages}
    for key, value in overrides.items():
        first, _, rest = key.partition(".")
        targets, field = ([known[first]], rest) if first in known else (list(chosen.values()), key)
        for fields in targets:
            if not set_field(fields, field, value):
                raise ValueError(f"recipe {name} has no field {key!r}{nearest(field, field_paths(fields))}")
    return from_dict(Plan, {"name": name, "stages": list(chosen.values())})


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``a.b=c`` to ``{"a.b": c}``; c is read as JSON where it is JSON, else as text.

    Raises: ValueError for an entry without a name or without ``=``.
    """
    overrides: dict[str, Any] = {}
    for entry in settings:
        name, equals, text = entry.partition("=")
        if not (name.strip() and equals):
            raise ValueError(f"--set wants name=value, such as --set train.steps=1000, got {entry!r}")
        try:
            overrides[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            overrides[name.strip()] = text
    return overrides
