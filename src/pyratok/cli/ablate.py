"""``pyratok ablate``: train the variants of the method alike, and print one table beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import TaskID

from pyratok.cli.common import Output, check_folder, plain, progress_bar
from pyratok.cli.train import parse_settings

if TYPE_CHECKING:
    from pyratok.eval.ablation import AblationRecord


def ablate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="ABLATION...", help="One or more of components, blocks, losses, quantizers, vocabulary."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for runs and tables.")],
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="What to train on; may be given several times."),
    ],
    val: Annotated[
        Path | None,
        typer.Option("--val", metavar="DIR", help="Clips to score; default: a tenth of the videos of --data."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option("--init", metavar="MODEL", help="Start from the VAE of this model; default: the packaged one."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", help="Steps of every variant.")] = None,
    reading_steps: Annotated[
        int | None,
        typer.Option(
            "--reading-steps", min=0, metavar="N", help="Steps in which text heads then read finished tokens; 0: none."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Train every variant N times.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="VARIANT", help="Train this variant alone; may be given several times."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="Change a field of every variant's recipe.")
    ] = None,
    clips: Annotated[
        int, typer.Option("--clips", min=1, metavar="N", help="Rendered clips per measure of language.")
    ] = 100,
) -> None:
    """Train every variant of an ablation alike and measure it; run again, it goes on where it was stopped."""
    overrides = parse_settings(settings or []) | ({"train.steps": steps} if steps is not None else {})

    from pyratok.eval.ablation import AblationProtocol
    from pyratok.eval.language import LanguageProtocol
    from pyratok.recipes.ablations import base, find_ablation, reading, with_changes
    from pyratok.recipes.compare import run_ablation
    from pyratok.report.ablation import render

    ablations = [find_ablation(name) for name in dict.fromkeys(names)]
    for ablation in ablations:
        ablation.chosen(only or ())
    recipe, then = with_changes(base(), overrides), reading()
    if reading_steps:
        then = with_changes(then, {"train.steps": reading_steps})
    protocol = AblationProtocol(language=LanguageProtocol(clips=clips))
    check_folder(out)
    console, shown = Console(stderr=True), Output(None)

    def write(record: AblationRecord) -> None:
        from pyratok.files import write_atomically
        from pyratok.train.checkpoint import write_json

        out.mkdir(exist_ok=True)
        write_json(out / f"{record.name}.json", plain(record.to_dict()))
        write_atomically(out / f"{record.name}.html", render(record))

    for ablation in ablations:
        with progress_bar(console, transient=False) as bar:
            tasks: list[TaskID] = []

            def begin(name: str, seed: int, bar: Any = bar, tasks: list[TaskID] = tasks) -> None:
                tasks.append(bar.add_task(f"{name}, seed {seed}", total=recipe.train.steps))

            def measure(name: str, bar: Any = bar, tasks: list[TaskID] = tasks) -> None:
                variant, _, _ = bar.tasks[tasks[-1]].description.partition(":")
                bar.update(tasks[-1], description=f"{variant}: {name}")

            def show(values: Mapping[str, Any], bar: Any = bar, tasks: list[TaskID] = tasks) -> None:
                bar.update(tasks[-1], completed=values["step"])

            record = run_ablation(
                ablation,
                recipe,
                data,
                out,
                init=init,
                val=val,
                reading=None if reading_steps == 0 else then,
                seeds=seeds,
                only=only or (),
                protocol=protocol,
                on_variant=begin,
                on_step=measure,
                on_log=show,
                on_record=write,
            )
        shown.table(*ablation_table(record))
        shown.console.print(f"[dim]{out / ablation.name}.html, .json, protocol {record.protocol.digest}[/]")
        wanted = ablation.chosen(only or ())
        if any(len(row.runs) < seeds for row in record.rows if row.variant in wanted):
            console.print("stopped; the same command goes on from here")
            return


def ablation_table(record: AblationRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: rate and measures of every variant, and where the paper's order holds."""
    from pyratok.eval.ablation import MEASURES
    from pyratok.report.ablation import order_text, value_text

    columns = [record.name, "bpp", *(measure.label for measure in MEASURES.values()), "order of the paper holds?"]
    rows = []
    for row in record.rows:
        rate = "-" if row.bits_per_pixel is None else f"{row.bits_per_pixel:.4f}"
        rows.append([row.label, rate, *(value_text(row, name) for name in MEASURES), order_text(row)])
    return columns, rows
