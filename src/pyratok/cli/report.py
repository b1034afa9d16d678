"""``pyratok report``: all results on one page, with the paper's numbers beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyratok.cli import common
from pyratok.cli.common import Output


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="Records that evaluate or ablate wrote, or folders of them; JSON of pictures."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.html", help="The page; OUT.csv and OUT.tex go beside it.")
    ] = Path("report.html"),
) -> None:
    """Write one page of results, models side by side and the paper's numbers beside them, with CSV and LaTeX."""
    from pyratok.files import write_atomically
    from pyratok.report.results import render
    from pyratok.report.results_records import read_results
    from pyratok.report.results_tables import group_results, to_csv, to_latex

    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{output} should end in .html; OUT.csv and OUT.tex are written beside it")
    paths = output, output.with_suffix(".csv"), output.with_suffix(".tex")
    for path in paths:
        common.check_output(path, *results)
    records, pictures = read_results(results)
    groups = [group for members in group_results(records).values() for group in members]
    texts = render(records, pictures), to_csv(groups), to_latex(groups)
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, text.encode("utf-8", "replace"))

    rows = [[group.benchmark, group.digest, ", ".join(group.labels) or "-"] for group in groups]
    shown = Output(None)
    if rows:
        shown.table(["benchmark", "protocol", "models"], rows)
    shown.facts({"report": f"{output.resolve()}, open it in a browser", "numbers": f"{paths[1]}, {paths[2]}"})
