"""``pyratok train``: run a training recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyratok.cli.common import Output

if TYPE_CHECKING:
    from pyratok.train.run import Recipe


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The name of a recipe, such as nano-vae or nano.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for checkpoints, log and model.")],
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="What to train on; may be given several times."),
    ],
    init: Annotated[
        Path | None, typer.Option("--init", metavar="MODEL", help="Start from the weights of this model directory.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="a.b=c", help="Change a field of the recipe; may be given several times."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
) -> None:
    """Train a model by a recipe, or go on with it; Ctrl-C saves and stops, --resume goes on."""
    overrides = parse_settings(settings or [])

    from pyratok.train.run import run

    config = build_recipe(recipe, overrides)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(config.name, total=config.train.steps)

        def show(record: Mapping[str, Any]) -> None:
            words = f"{config.name} loss {record['total']:.4f} {record['clips_per_second']:.1f} clips/s"
            bar.update(task, completed=record["step"], description=words)

        model = run(config, data, out, init=init, resume=resume, on_log=show)
    Output(None).facts({"model": model})


def build_recipe(name: str, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of that name with dotted fields replaced: ``{"train.steps": 10}``.

    Raises: ValueError for an unknown recipe or field, or a value that the recipe refuses.
    """
    from pyratok.config import from_dict, nearest, to_dict
    from pyratok.recipes import RECIPES
    from pyratok.train.run import Recipe

    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}{nearest(name, RECIPES)}; recipes are {', '.join(RECIPES)}")
    fields = to_dict(RECIPES[name]())
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section: Any = fields
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise ValueError(f"recipe {name} has no field {key!r}{nearest(key, _paths(fields))}")
        section[last] = value
    return from_dict(Recipe, fields)


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


def _paths(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    return [
        path
        for key, value in fields.items()
        for path in (_paths(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"])
    ]
