"""``pyratok encode``, ``decode`` and ``reconstruct``: video to tokens and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyratok.cli import common
from pyratok.cli.common import FramesOption, JsonOption, LevelsOption, ModelOption, Output, ShownStopwatch, SizeOption
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.types import TokenPyramid

InputVideo = Annotated[Path, typer.Argument(metavar="IN", help="A video or image, anything FFmpeg reads.")]
OutputVideo = Annotated[Path, typer.Option("-o", "--output", metavar="OUT.mp4", help="The video to write.")]


def encode(
    video: InputVideo,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.pyra", help="The token file to write.")],
    caption: Annotated[
        str | None, typer.Option("--caption", metavar="TEXT", help="What the video shows; decoding never needs it.")
    ] = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Turn a video into a .pyra file of tokens."""
    from pyratok.codec.container import save_tokens
    from pyratok.data.video_io import load_video

    out, watch = Output(json_file, video, output, model), ShownStopwatch()
    common.check_output(output, video)
    common.check_clip(video, size, frames)
    with watch.step("reading the video"):
        clip = load_video(video, size=size, frames=frames)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    with watch.step(f"encoding {clip.shape[2]} frames"):
        tokens = tokenizer.encode(clip, caption)
    save_tokens(tokens, output)

    facts = token_facts(tokens) | {"bytes": output.stat().st_size}
    out.facts({"wrote": output} | readable_facts(facts))
    out.finish({"input": video, "output": output} | facts | {"seconds": watch.seconds})


def decode(
    file: Annotated[Path, typer.Argument(metavar="IN.pyra", help="A token file.")],
    output: OutputVideo,
    levels: LevelsOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Turn a .pyra file, or its first levels, back into a video."""
    from pyratok.codec.container import load_tokens
    from pyratok.data.video_io import FALLBACK_FPS, save_video

    out, watch = Output(json_file, file, output, model), ShownStopwatch()
    tokens = load_tokens(file, levels)
    if tokens.batch_size != 1:
        raise ValueError(f"{file} holds a batch of {tokens.batch_size} clips; decode it in Python, one video per clip")
    g = tokens.geometry
    fps = g.fps or (FALLBACK_FPS if g.frames > 1 else None)
    common.check_video_output(output, fps, g.frames, file)
    common.check_memory(file, g.frames, g.height, g.width, "encode with --size S or --frames N")
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    with watch.step(f"decoding {g.frames} frames"):
        clip = tokenizer.decode(tokens)
    with watch.step("writing the video"):
        save_video(clip, output, fps=fps)

    facts = token_facts(tokens)
    out.facts({"wrote": output} | readable_facts(facts))
    out.finish({"input": file, "output": output} | facts | {"seconds": watch.seconds})


def reconstruct(
    video: InputVideo,
    output: OutputVideo,
    levels: LevelsOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Show the original to the left of the reconstruction.")
    ] = False,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Send a video through the tokens and back, and measure what is lost."""
    import torch

    from pyratok.data.video_io import load_video, save_video
    from pyratok.metrics.reconstruction import psnr_per_frame, ssim_per_frame

    out, watch = Output(json_file, video, output, model), ShownStopwatch()
    info = common.check_clip(video, size, frames)
    common.check_video_output(output, info.fps, 1 if frames == 1 else info.frames, video)
    with watch.step("reading the video"):
        clip = load_video(video, size=size, frames=frames)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    with watch.step("encoding"):
        tokens = tokenizer.encode(clip)
        tokens = tokens if levels is None else tokens.prefix(levels)
    with watch.step("decoding"):
        back = tokenizer.decode(tokens)
    with watch.step("measuring"):
        psnr, ssim = psnr_per_frame(back, clip)[0], ssim_per_frame(back, clip)[0]
    with watch.step("writing the video"):
        shown = torch.cat([clip.plain(), back.plain()], dim=-1) if side_by_side else back
        save_video(shown, output, fps=clip.fps, audio_from=video)

    facts = token_facts(tokens) | {"psnr": float(psnr.mean()), "ssim": float(ssim.mean())}
    out.facts({"wrote": output} | readable_facts(facts))
    per_frame = {"psnr_per_frame": psnr.tolist(), "ssim_per_frame": ssim.tolist()}
    out.finish({"input": video, "output": output} | facts | per_frame | {"seconds": watch.seconds})


def token_facts(tokens: TokenPyramid) -> dict[str, Any]:
    g = tokens.geometry
    return {
        "frames": g.frames,
        "height": g.height,
        "width": g.width,
        "fps": g.fps,
        "levels": len(tokens.levels),
        "grids": [g.grid(level) for level in range(len(tokens.levels))],
        "tokens": tokens.num_tokens,
        "bits_per_pixel": tokens.bits_per_pixel,
        "model": {"name": tokens.model.name, "fingerprint": tokens.model.fingerprint},
    }


def readable_facts(facts: dict[str, Any]) -> dict[str, str]:
    """The same facts for a person, fewer of them."""
    rate = f" at {facts['fps']:.5g} fps" if facts["fps"] else ""
    grids = ", ".join("x".join(map(str, grid)) for grid in facts["grids"])
    shown = {
        "video": f"{facts['frames']} frames of {facts['width']}x{facts['height']}{rate}",
        "tokens": f"{facts['tokens']:,} on {facts['levels']} levels ({grids})",
        "bits per pixel": f"{facts['bits_per_pixel']:.4f}",
    }
    if "bytes" in facts:
        shown["size"] = human_bytes(facts["bytes"])
    if "psnr" in facts:
        shown |= {"PSNR": f"{facts['psnr']:.2f} dB", "SSIM": f"{facts['ssim']:.4f}"}
    return shown | {"model": f"{facts['model']['name']} ({facts['model']['fingerprint']})"}
