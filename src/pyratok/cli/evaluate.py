"""``pyratok evaluate``: measure a model by a fixed protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch

if TYPE_CHECKING:
    from pyratok.eval.codebook_usage import UsageRecord
    from pyratok.eval.reconstruction import ClipScore, PrefixScore, ReconstructionRecord

app = typer.Typer(help="Measure a model by a fixed protocol.", no_args_is_help=True)


@app.command()
def reconstruction(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of clips, or one clip.")],
    size: Annotated[int, typer.Option("--size", min=1, metavar="S", help="Scale the short side to S pixels.")] = 256,
    crop: Annotated[int, typer.Option("--crop", min=1, metavar="S", help="Cut out the centre S x S pixels.")] = 256,
    frames: Annotated[int, typer.Option("--frames", min=1, metavar="N", help="Take the first N frames.")] = 33,
    levels: Annotated[
        str, typer.Option("--levels", metavar="LIST", help="Level prefixes to score, such as 1,2,4.")
    ] = "all",
    x265: Annotated[bool, typer.Option("--x265", help="Also encode with x265 at the rate of every prefix.")] = False,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """PSNR and SSIM of every level prefix, clip by clip."""
    from pyratok.eval.reconstruction import EvalProtocol, evaluate_reconstruction, find_clips

    out, watch = Output(json_file), ShownStopwatch()
    protocol = EvalProtocol(size=size, crop=crop, frames=frames)
    counts = parse_levels(levels)
    clips = find_clips(data)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = watch.console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=watch.console, transient=True, disable=not terminal) as bar:
        task = bar.add_task("clips", total=len(clips))

        def advance(score: ClipScore) -> None:
            bar.advance(task)

        record = evaluate_reconstruction(tokenizer, clips, protocol, levels=counts, with_x265=x265, on_clip=advance)
    out.table(*score_table(record), last_is_total=True)
    out.console.print(f"[dim]{record.model}, protocol {protocol.digest}[/]")
    out.finish(record.to_dict())


@app.command("codebook-usage")
def codebook_usage(
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="DIR_OR_MANIFEST", help="Training media; may be given several times."),
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Count N tokens per level.")] = 1_000_000,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", metavar="DIR", help="Keep decoded frames here; default: a temporary folder."),
    ] = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Share of the vocabulary in use, perplexity and bit balance per level, on the training mix."""
    from pyratok.data.mixes import mixed_clips
    from pyratok.eval.codebook_usage import UsageProtocol, evaluate_usage
    from pyratok.recipes.nano import DATA

    out, watch = Output(json_file), ShownStopwatch()
    protocol = UsageProtocol(tokens=tokens)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    shape = {"frames": protocol.frames, "size": protocol.size, "seed": protocol.seed}
    with TemporaryDirectory() as temporary:
        with watch.step("reading the media"):
            clips = mixed_clips(DATA, data, cache or Path(temporary), **shape, length=protocol.most_clips)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        terminal = watch.console.is_terminal
        with Progress(*columns, console=watch.console, transient=True, disable=not terminal) as bar:
            task = bar.add_task("tokens", total=1.0)
            record = evaluate_usage(tokenizer, clips, protocol, lambda share: bar.update(task, completed=share))
    out.table(*usage_table(record))
    out.console.print(f"[dim]{record.model}, {record.clips} clips[/]")
    out.finish(record.to_dict())


def usage_table(record: UsageRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: use of the vocabulary by every level, and by all of them pooled."""
    columns = ["level", "tokens", "words used", "perplexity", "bit means", "dead bits"]
    named = [*((str(i), level) for i, level in enumerate(record.usage.levels, 1)), ("all", record.usage.pooled)]
    rows = []
    for name, use in named:
        words = "-" if use.unique is None else f"{use.unique:,} ({use.share:.1%})"
        perplexity = "-" if use.perplexity is None else f"{use.perplexity:,.0f}"
        means = f"{min(use.bit_means):.2f} to {max(use.bit_means):.2f}"
        rows.append([name, f"{use.tokens:,}", words, perplexity, means, str(len(use.dead_bits))])
    return columns, rows


def parse_levels(text: str) -> list[int] | None:
    """``all`` to None, ``1,2,4`` to the prefixes, in order and once each.

    Raises: ValueError for anything else.
    """
    if text == "all":
        return None
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise ValueError(f"--levels is all, or numbers from 1 such as 1,2,4; got {text!r}")
    return counts


def score_table(record: ReconstructionRecord) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: per clip, and for the mean last, the PSNR in dB and SSIM of every prefix.

    Where x265 was run, a second line of each row has its PSNR at the same rate.
    """
    with_x265 = any(score.x265_psnr is not None for clip in record.clips for score in clip.prefixes)
    columns = ["clip", "frames"]
    for score in record.mean:
        name = "level 1" if score.levels == 1 else f"levels 1-{score.levels}"
        columns.append(f"{name}\n{score.bits_per_pixel:.4f} bpp\ndB   SSIM")

    def cell(score: PrefixScore) -> str:
        text = f"{score.psnr:.2f}  {score.ssim:.3f}"
        anchor = "-" if score.x265_psnr is None else f"{score.x265_psnr:.2f}"
        return f"{text}\n{anchor}       " if with_x265 else text

    def row(name: str, frames: str, scores: Sequence[PrefixScore]) -> list[str]:
        return [f"{name}\n  x265 at this rate" if with_x265 else name, frames, *map(cell, scores)]

    rows = [row(clip.clip, str(clip.frames), clip.prefixes) for clip in record.clips]
    return columns, [*rows, row("mean", "", record.mean)]
