"""``pyratok evaluate NAME`` for every benchmark of the registry, and ``pyratok evaluate --list``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch
from pyratok.eval.benchmarks.registry import ENTRIES, Entry

if TYPE_CHECKING:
    from pyratok.eval.benchmarks.contract import BenchmarkRecord, Loaded
    from pyratok.eval.benchmarks.registry import Options

SHOWN_MISSING = 5


def add_to(app: typer.Typer) -> None:
    """Give the app a command per benchmark, and the option that lists them."""
    app.callback()(_root)
    for name, entry in ENTRIES.items():
        app.command(name, help=f"{entry.measures[0].upper()}{entry.measures[1:]}.")(_command(name))


def _print_list(context: typer.Context, wanted: bool) -> None:
    if wanted:
        commands = getattr(context.command, "commands", {})
        others = {name: str(command.help or "") for name, command in commands.items() if name not in ENTRIES}
        list_benchmarks(others)
        raise typer.Exit


def _root(
    listed: Annotated[
        bool,
        typer.Option(
            "--list", callback=_print_list, is_eager=True, help="Say what each needs, where from, what is missing."
        ),
    ] = False,
) -> None:
    pass


def _command(name: str) -> Callable[..., None]:
    def evaluate(
        data: Annotated[
            Path, typer.Option("--data", metavar="DIR", help="The dataset; evaluate --list says what is in it.")
        ],
        model: ModelOption = None,
        limit: Annotated[
            int | None, typer.Option("--limit", min=1, metavar="N", help="Ask N items, drawn the same every time.")
        ] = None,
        workers: Annotated[
            int, typer.Option("--workers", min=1, metavar="N", help="Share the items out to N processes.")
        ] = 1,
        out: Annotated[
            Path | None,
            typer.Option(
                "--out", metavar="DIR", help="Keep answers and record here, and go on from there; evaluation-NAME."
            ),
        ] = None,
        settings: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="FIELD=VALUE", help="Another protocol: change one of its fields."),
        ] = None,
        networks: Annotated[
            list[str] | None,
            typer.Option("--network", metavar="NAME=FILE", help="A frozen network that this computer holds."),
        ] = None,
        any_revision: Annotated[
            bool, typer.Option("--any-revision", help="Take annotations other than the distributed ones.")
        ] = False,
        check: Annotated[bool, typer.Option("--check", help="Only say what of the dataset is there.")] = False,
        json_file: JsonOption = None,
    ) -> None:
        from pyratok.eval.benchmarks.contract import check_revision
        from pyratok.eval.benchmarks.registry import build
        from pyratok.eval.runner import run_benchmark
        from pyratok.files import write_atomically
        from pyratok.report.results_plots import rate_distortion_svg

        if absent := ENTRIES[name].missing_packages():
            raise ValueError(f"{name} needs {' and '.join(absent)}: pip install 'pyratok[text,train]'")
        benchmark = build(name, data, options_of(name, pairs("--set", settings), pairs("--network", networks), model))
        folder = Path(f"evaluation-{name}") if out is None else out
        output, watch = Output(json_file, model, data), ShownStopwatch()
        if check:
            with watch.step("examining the dataset"):
                loaded = benchmark.load()
            _tell_dataset(output, loaded)
            if not any_revision:
                check_revision(name, loaded)
            return
        common.check_folder(folder)
        with common.progress_bar(watch.console) as bar:
            task = bar.add_task(name, total=None)
            record = run_benchmark(
                benchmark,
                partial(common.load_model, model),
                folder,
                workers=workers,
                limit=limit,
                any_revision=any_revision,
                on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        if curves := record.scores.details.get("curves"):
            write_atomically(folder / "curves.svg", rate_distortion_svg(curves))
        output.table(*record_table(record))
        output.console.print(f"[dim]{record.model or 'no model'}, protocol {record.protocol.digest}, in {folder}[/]")
        output.finish(record.to_dict())

    return evaluate


def options_of(name: str, settings: dict[str, str], networks: dict[str, str], model: str | None) -> Options:
    """What was asked for; where nothing is said of a reader, or a prior, the one that ships with the model, if one
    does."""
    from pyratok.eval.benchmarks.registry import Options
    from pyratok.model.companions import ANSWERER, shipped_companion
    from pyratok.tasks.generation.files import find_prior, shipped_prior

    if "reader" in networks and "reader" not in settings:
        raise ValueError(
            "--network reader=DIR needs to be told what it is: --set reader=answerer, =tokens or =language"
        )
    wanted = settings.get("reader", "answerer") == "answerer" and "reader" not in networks
    if wanted and "reader" in ENTRIES[name].networks and (shipped := shipped_companion(model, ANSWERER)):
        settings, networks = settings | {"reader": "answerer"}, networks | {"reader": str(shipped)}
    prior, entry = networks.get("prior"), ENTRIES[name]
    if "prior" in entry.networks and (prior or shipped_prior(model)):
        networks = networks | {"prior": str(find_prior(prior, model, default=entry.prior))}
    return Options(settings=settings, networks={key: Path(path) for key, path in networks.items()})


def pairs(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` each. Raises ValueError for a text without the sign, and for a name that comes twice."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or name.strip() in found:
            raise ValueError(f"{option} is NAME=VALUE, each name once; got {text!r}")
        found[name.strip()] = value
    return found


def record_table(record: BenchmarkRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the numbers, then how much of the dataset they are of."""
    rows = [[name, f"{value:.4f}"] for name, value in record.scores.values.items()]
    if note := record.scores.details.get("note"):
        rows.append([str(note), ""])
    rows.append(["items scored", f"{record.scored:,} of {record.found:,} found"])
    absent = len(record.missing) + len(record.unreadable)
    rows.append(["missing, unreadable", f"{len(record.missing):,}, {len(record.unreadable):,}" if absent else "none"])
    return [record.protocol.benchmark, "value"], rows


def list_benchmarks(others: dict[str, str], console: Console | None = None) -> None:
    """Every benchmark: what it measures, what its folder holds, where that comes from, what this computer lacks."""
    console = console or Console(soft_wrap=True)
    for entry in ENTRIES.values():
        console.print(f"[bold]{entry.name}[/]  {entry.measures}", highlight=False)
        for title, text in _needs(entry):
            console.print(f"  [dim]{title:<8}[/] {text}", highlight=False, markup=True)
    for name, text in others.items():
        console.print(f"[bold]{name}[/]  {text.partition(chr(10))[0]}", highlight=False)


def _needs(entry: Entry) -> list[tuple[str, str]]:
    lines = [("--data", entry.layout), ("from", entry.source)]
    lines += [("network", f"{name}: {what}") for name, what in entry.networks.items()]
    if absent := entry.missing_packages():
        lines.append(("missing", f"{', '.join(absent)} (pip install 'pyratok\\[text,train]')"))
    return lines


def _tell_dataset(output: Output, loaded: Loaded[Any]) -> None:
    facts = {name: f"{count:,}" for name, count in loaded.counts.items()}
    facts |= {"items found": f"{len(loaded.items):,}", "missing": f"{len(loaded.missing):,}"}
    if loaded.missing:
        more = len(loaded.missing) - SHOWN_MISSING
        shown = ", ".join(loaded.missing[:SHOWN_MISSING])
        facts["such as"] = f"{shown}, and {more:,} more" if more > 0 else shown
    output.facts(facts)
