"""``pyratok tokenize``: the videos of a manifest as shards of tokens, for training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch, check_folder, progress_bar


def tokenize(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A .jsonl or .csv manifest, or a folder.")],
    folder: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The folder for the shards.")],
    frames: Annotated[int, typer.Option("--frames", min=1, metavar="N", help="Frames of a clip.")] = 17,
    size: Annotated[
        int, typer.Option("--size", min=1, metavar="S", help="Scale the short side to S pixels and cut a square.")
    ] = 64,
    clips: Annotated[int, typer.Option("--clips", min=1, metavar="N", help="Take up to N clips of a video.")] = 1,
    cuts: Annotated[
        int, typer.Option("--cuts", min=0, metavar="N", help="N random cuts of every video in place of --clips.")
    ] = 0,
    camera_paths: Annotated[
        int, typer.Option("--camera-paths", min=0, metavar="N", help="N clips of every photograph: a camera moves.")
    ] = 0,
    fps: Annotated[float | None, typer.Option("--fps", metavar="R", help="Sample at R frames per second.")] = None,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Store embeddings of the captions too.")] = True,
    workers: Annotated[int, typer.Option("--workers", min=1, metavar="N", help="Processes that work at a time.")] = 1,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Turn the videos of a manifest into Parquet shards of tokens, captions and their embeddings.

    What is cut off goes on when the same command is given again: finished shards are left as they are.
    """
    from pyratok.data.cuts import CutConfig
    from pyratok.runtime.tokenize import TokenizeConfig, tokenize_manifest

    out, watch = Output(json_file, manifest, folder, model), ShownStopwatch()
    drawn = CutConfig(videos=cuts, photos=camera_paths)
    config = TokenizeConfig(frames=frames, size=size, clips=clips, fps=fps, text=text, cuts=drawn)
    check_folder(folder)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("shards", total=None)
        done = tokenize_manifest(
            tokenizer,
            manifest,
            folder,
            config,
            workers=workers,
            source=model,
            on_shard=lambda there, total: bar.update(task, completed=there, total=total),
        )
    geometry = done.header.geometry
    facts = {"shards": done.shards, "made": done.made, "clips": done.clips, "left_out": done.left_out}
    out.facts(
        {
            "wrote": folder,
            "shards": f"{done.shards}, {done.made} of them now",
            "clips": f"{done.clips:,} of {geometry.frames} frames, {geometry.width}x{geometry.height}",
            "left out": f"{len(done.left_out)} videos",
            "model": done.header.model,
        }
    )
    out.finish({"input": manifest, "output": folder, "model": str(done.header.model)} | facts)
