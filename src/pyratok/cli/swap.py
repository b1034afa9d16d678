"""``pyratok swap``: the same prior on the words of several tokenizers, and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import TaskID

from pyratok.cli.common import Output, check_folder, progress_bar
from pyratok.cli.train import parse_settings

if TYPE_CHECKING:
    from pyratok.recipes.swap import SwapRecord

EMBEDDED = "embedded"
MEASURES = ("noun", "colour", "way", "fd", "tc")
"""Of which the scores of the rendered clips through a tokenizer are shown too: what its best prior could reach."""


def swap(
    world: Annotated[Path, typer.Argument(metavar="WORLD", help="The folder that pyratok render made.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for tokens, priors and results.")],
    named: Annotated[
        list[str],
        typer.Option(
            "--tokenizer",
            metavar="NAME=MODEL",
            help=f"A model folder or hub id, or {EMBEDDED}, by the name it has in the table; given several times.",
        ),
    ],
    recipe_name: Annotated[str, typer.Option("--recipe", metavar="NAME", help="The prior.")] = "prior-ar",
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Steps of every prior.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Train every prior N times.")] = 2,
    prompts: Annotated[int, typer.Option("--prompts", min=2, metavar="N", help="Clips to ask every prior for.")] = 200,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a field of the prior's recipe.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, metavar="N", help="Processes that tokenise and sample.")
    ] = 1,
) -> None:
    """Train the same prior on the tokens of each tokenizer and ask all for the same clips; run again, it goes on."""
    overrides = parse_settings(settings or []) | ({"train.steps": steps} if steps is not None else {})
    tokenizers = parse_tokenizers(named)

    from pyratok.cli.train_prior import build_prior_recipe
    from pyratok.eval.benchmarks.world import WorldProtocol
    from pyratok.recipes import PRIORS
    from pyratok.recipes.swap import run_swap
    from pyratok.train.checkpoint import write_json

    if recipe_name not in PRIORS:
        raise ValueError(f"there is no prior {recipe_name!r}; there are {', '.join(PRIORS)}")
    recipe = build_prior_recipe(recipe_name, overrides)
    check_folder(out)
    console, shown = Console(stderr=True), Output(None)

    def write(record: SwapRecord) -> None:
        write_json(out / "swap.json", record.to_dict())

    with progress_bar(console, transient=False) as bar:
        tasks: list[TaskID] = []

        def begin(name: str, total: int) -> None:
            tasks.append(bar.add_task(name, total=total or None))

        record = run_swap(
            tokenizers,
            world,
            recipe,
            out,
            seeds=seeds,
            protocol=WorldProtocol(prompts=prompts),
            workers=workers,
            on_step=begin,
            on_progress=lambda done: bar.update(tasks[-1], completed=done),
            on_record=write,
        )
    shown.table(*swap_table(record))
    shown.console.print(f"[dim]{out / 'swap.json'}, protocol {record.protocol.digest}[/]")
    if not record.is_whole:
        console.print("stopped; the same command goes on from here")


def parse_tokenizers(named: Sequence[str]) -> dict[str, str | None]:
    """``NAME=MODEL`` to models by name, None for the embedded one.

    Raises ValueError for an entry without a name or model, and a name that comes twice or is no name of a folder.
    """
    found: dict[str, str | None] = {}
    for entry in named:
        name, _, model = (part.strip() for part in entry.partition("="))
        if not name or not model:
            raise ValueError(f"--tokenizer wants NAME=MODEL, such as --tokenizer rvq=runs/rvq/model, got {entry!r}")
        if name in found or Path(name).name != name:
            raise ValueError(f"--tokenizer {name}: names are different and have no slashes, for each gets a folder")
        found[name] = None if model == EMBEDDED else model
    return found


def swap_table(record: SwapRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a tokenizer each, means over seeds with their standard deviation; in brackets the rendered
    clips through the tokenizer alone."""
    from pyratok.report.results_measures import describe

    measures = [describe(name) for name in MEASURES]
    labels = [measure.label for measure in measures]
    columns = ["prior on the tokens of", "tokens", "bits", "held-out bits", "parameters", "seeds", *labels]

    def value(name: str, measure: Any) -> str:
        found, best = record.summary(name, measure.key), record.summary(name, f"{measure.key}, tokenizer")
        if found is None:
            return "-"
        mean, spread = found
        text = f"{mean * measure.scale:.{measure.digits}f}"
        text += "" if spread is None else f" ± {spread * measure.scale:.{measure.digits}f}"
        return text if best is None else f"{text} ({best[0] * measure.scale:.{measure.digits}f})"

    rows = []
    for name in record.tokenizers:
        runs = record.of(name)
        if not runs:
            rows.append([name, *("-" for _ in columns[1:])])
            continue
        held_out = sum(run.held_out_bits for run in runs) / len(runs)
        facts = [f"{runs[0].tokens:,}", f"{runs[0].bits:,}", f"{held_out:,.0f}", f"{runs[0].parameters:,}"]
        rows.append([name, *facts, str(len(runs)), *(value(name, measure) for measure in measures)])
    return columns, rows
