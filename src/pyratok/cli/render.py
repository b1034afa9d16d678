"""``pyratok render``: a small world of captioned clips, of which everything is known, for priors to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyratok.cli.common import JsonOption, Output, check_folder, progress_bar


def render(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Captioned sprites and photographs.")],
    folder: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder of the world.")],
    clips: Annotated[int, typer.Option("--clips", min=0, metavar="N", help="Clips to render.")] = 1000,
    frames: Annotated[int, typer.Option("--frames", min=3, metavar="N", help="Frames of a clip.")] = 17,
    size: Annotated[int, typer.Option("--size", min=16, max=128, metavar="S", help="Pixels of its side.")] = 64,
    fps: Annotated[float, typer.Option("--fps", metavar="R", help="Frames per second.")] = 12.0,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Other clips of the same world.")] = 0,
    things: Annotated[int, typer.Option("--things", min=1, metavar="N", help="How many nouns there are.")] = 16,
    places: Annotated[int, typer.Option("--places", min=1, max=99, metavar="N", help="How many backgrounds.")] = 8,
    nouns: Annotated[
        list[str] | None, typer.Option("--noun", metavar="NOUN", help="These nouns; may be given several times.")
    ] = None,
    named_places: Annotated[
        list[str] | None,
        typer.Option("--place", metavar="CAPTION", help="Photographs with these captions; may be given several times."),
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", metavar="SHARE", help="Share of noun, colour and way that no clip shows.")
    ] = 0.2,
    json_file: JsonOption = None,
) -> None:
    """Render clips in which one coloured thing goes one way before one place, with captions.

    DIR then holds the world, clips/*.mp4, and manifest.jsonl, which ``pyratok tokenize`` takes. The same command goes
    on where it was stopped; with more --clips it adds some. ``pyratok evaluate world`` asks for what no clip shows.
    """
    from pyratok.data.rendering import MANIFEST, RenderConfig, render_clips
    from pyratok.data.world import open_or_make

    out = Output(json_file, folder, *data)
    check_folder(folder)
    world = open_or_make(
        folder,
        data,
        things=things,
        places=places,
        nouns=nouns or (),
        named_places=named_places or (),
        held_out=held_out,
    )
    config = RenderConfig(clips=clips, frames=frames, size=size, fps=fps, seed=seed)
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("clips", total=clips)
        made = render_clips(world, config, on_clip=lambda done: bar.update(task, completed=done))
    shown = {name: ", ".join(getattr(world.config, name)) for name in ("nouns", "colours", "ways")}
    counts = [len(world.config.combinations(held_out=held)) for held in (True, False)]
    out.facts(
        {
            "wrote": folder / MANIFEST,
            "clips": f"{clips:,} of {frames} frames, {size}x{size}, {made:,} of them now",
            **shown,
            "places": len(world.config.places),
            "combinations": f"{sum(counts)}, of which {counts[0]} are held out",
        }
    )
    out.finish({"output": folder, "clips": clips, "made": made, "held_out": counts[0]})
