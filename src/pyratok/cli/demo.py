"""``pyratok demo``: the whole way of a clip on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output, ShownStopwatch
from pyratok.report.files import write_atomically
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

    output, watch = Output(json_file), ShownStopwatch(keep=True)
    clip = clip or sample_clip()
    with watch.step("examine the clip"):
        is_image = common.check_clip(clip, size, frames).is_image
    with watch.step("load the model"):
        tokenizer = common.load_model(model)
    name = "sample" if clip == sample_clip() else clip.stem
    tokens_path = out / f"{name}.pyra"
    video_path = out / f"{name}-reconstructed{'.png' if is_image else '.mp4'}"
    report_path = out / "report.html"
    common.make_folder(out)
    for path in (tokens_path, video_path, report_path):
        common.check_output(path, clip)

    result = run_demo(tokenizer, clip, tokens_path, video_path, size=size, frames=frames, watch=watch)
    write_atomically(report_path, render(result))

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
