"""``pyratok demo``: the whole way of a clip on one page."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch
from pyratok.files import write_atomically
from pyratok.report.units import human_bytes


def demo(
    clip: Annotated[
        Path | None, typer.Option("--input", metavar="CLIP", help="Your own video or image; default: a sample clip.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the report, the tokens and the video.")
    ] = Path("pyratok-demo"),
    size: Annotated[int, typer.Option("--size", min=1, metavar="S", help="Scale the short side to S pixels.")] = 256,
    frames: Annotated[int, typer.Option("--frames", min=1, metavar="N", help="Take the first N frames.")] = 49,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Send a clip through the model and write a report to look at: report.html, the tokens and the video."""
    from pyratok.report.demo import run_demo, sample_clip
    from pyratok.report.page import render
    from pyratok.tasks.generation.files import shipped_prior

    clip, watch = clip or sample_clip(), ShownStopwatch(keep=True)
    with watch.step("examine the clip"):
        is_image = common.check_clip(clip, size, frames).is_image
    name = "sample" if clip == sample_clip() else clip.stem
    tokens_path = out / f"{name}.pyra"
    video_path = out / f"{name}-reconstructed{'.png' if is_image else '.mp4'}"
    report_path = out / "report.html"
    paths = tokens_path, video_path, report_path
    output = Output(json_file, clip, model, *paths)
    common.check_folder(out)
    if out.is_dir():
        for path in paths:
            common.check_output(path, clip)
    with watch.step("load the model"):
        tokenizer = common.load_model(model)
    prior = shipped_prior(model)

    # All three files or none: they are made in a folder beside and moved when the last one is there.
    with TemporaryDirectory(prefix=".pyratok-", dir=out if out.is_dir() else out.parent) as folder:
        drafts = [Path(folder, path.name) for path in paths]
        result = run_demo(tokenizer, clip, drafts[0], drafts[1], size=size, frames=frames, watch=watch, prior=prior)
        write_atomically(drafts[2], render(result))
        out.mkdir(exist_ok=True)
        for draft, path in zip(drafts, paths, strict=True):
            draft.replace(path)

    whole = result.prefixes[-1]
    output.facts(
        {
            "quality": f"{whole.mean_psnr:.2f} dB PSNR, {whole.mean_ssim:.4f} SSIM",
            "rate": f"{whole.bits_per_pixel:.4f} bits per pixel on {whole.levels} levels",
            "tokens": f"{tokens_path} ({human_bytes(whole.file_bytes)})",
            "video": video_path,
            "report": f"{report_path.resolve()}, open it in a browser",
        }
    )
    files = {"tokens": tokens_path, "video": video_path, "report": report_path}
    output.finish(result.numbers() | {"files": files})
