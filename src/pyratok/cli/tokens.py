"""``pyratok encode``, ``decode`` and ``reconstruct``: video files of any length to tokens and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyratok.cli import common
from pyratok.cli.common import (
    CaptionOption,
    FramesOption,
    JsonOption,
    LevelsOption,
    MemoryOption,
    ModelOption,
    Output,
    ShownStopwatch,
    SizeOption,
)
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.model.base import VideoTokenizer
    from pyratok.runtime.long import Outcome
    from pyratok.types import Geometry, ModelId, TokenPyramid

InputVideo = Annotated[Path, typer.Argument(metavar="IN", help="A video or image, anything FFmpeg reads.")]
OutputVideo = Annotated[Path, typer.Option("-o", "--output", metavar="OUT.mp4", help="The video to write.")]


def encode(
    video: InputVideo,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.pyra", help="The token file to write.")],
    caption: CaptionOption = None,
    size: SizeOption = None,
    frames: FramesOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with OUT.pyra where it was cut off; give the same options again.")
    ] = False,
    memory: MemoryOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Turn a video of any length into a .pyra file of tokens.

    The file of a long video grows as it is encoded: what is there when the command is cut off can be read, and
    --resume goes on behind it.
    """
    from pyratok.codec.container import open_tokens
    from pyratok.data.video_io import probe
    from pyratok.runtime.long import encode_file

    out, watch = Output(json_file, video, output, model), ShownStopwatch()
    common.check_output(output, video)
    info = probe(video)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    _check_memory(tokenizer, video, info.frames if frames is None else frames, info.height, info.width, size)
    with _saying_what_is_left(output), watch.counted("encoding") as progress:
        done = encode_file(
            tokenizer,
            video,
            output,
            caption=caption,
            size=size,
            frames=frames,
            memory=memory,
            resume=resume,
            progress=progress,
        )

    reader = open_tokens(output)
    facts = stored_facts(reader.geometry, reader.num_levels, reader.num_bits, reader.model)
    facts |= {"bytes": output.stat().st_size, "encoded_frames": done.frames, "memory": memory_facts(done)}
    shown = readable_facts(facts) | readable_memory(done)
    if done.frames < done.geometry.frames:
        shown["resumed"] = f"{done.geometry.frames - done.frames} frames were there, {done.frames} were added"
    out.facts({"wrote": output} | shown)
    out.finish({"input": video, "output": output} | facts | {"seconds": watch.seconds})


def decode(
    file: Annotated[Path, typer.Argument(metavar="IN.pyra", help="A token file.")],
    output: OutputVideo,
    levels: LevelsOption = None,
    start: Annotated[
        float | None, typer.Option("--from", min=0, metavar="SECONDS", help="Begin here; default: at the beginning.")
    ] = None,
    stop: Annotated[
        float | None, typer.Option("--to", min=0, metavar="SECONDS", help="End before this; default: at the end.")
    ] = None,
    memory: MemoryOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Turn a .pyra file, its first levels or a span of its time, back into a video.

    Only what the span needs is read and decoded: any minute of a long file costs the same.
    """
    from pyratok.codec.container import open_tokens
    from pyratok.data.video_io import FALLBACK_FPS
    from pyratok.runtime.long import decode_file, frame_span

    out, watch = Output(json_file, file, output, model), ShownStopwatch()
    reader = open_tokens(file)
    g, span = reader.geometry, frame_span(reader, start, stop)
    count = reader.num_levels if levels is None else levels
    if count > reader.num_levels:
        raise ValueError(f"{file} holds {reader.num_levels} levels, asked for the first {levels}")
    common.check_video_output(output, g.fps or (FALLBACK_FPS if g.frames > 1 else None), len(span), file)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    _check_memory(tokenizer, file, g.frames, g.height, g.width)
    with watch.counted("decoding") as progress:
        done = decode_file(
            tokenizer, file, output, levels=levels, start=start, stop=stop, memory=memory, progress=progress
        )

    facts = stored_facts(g, count, reader.num_bits, reader.model)
    facts |= {"first_frame": span.start, "written_frames": len(span), "memory": memory_facts(done)}
    cut = {"cut": f"frames {span.start} to {span.stop - 1}"} if len(span) < g.frames else {}
    out.facts({"wrote": output} | cut | readable_facts(facts) | readable_memory(done))
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
    memory: MemoryOption = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Send a video through the tokens and back, and measure what is lost."""
    from pyratok.data.video_io import probe
    from pyratok.runtime.long import reconstruct_file

    out, watch = Output(json_file, video, output, model), ShownStopwatch()
    info = probe(video)
    common.check_video_output(output, info.fps, 1 if frames == 1 else info.frames, video)
    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
    _check_memory(tokenizer, video, info.frames if frames is None else frames, info.height, info.width, size)
    with watch.counted("encoding, decoding and measuring") as progress:
        done = reconstruct_file(
            tokenizer,
            video,
            output,
            levels=levels,
            size=size,
            frames=frames,
            side_by_side=side_by_side,
            memory=memory,
            progress=progress,
        )

    held = tokenizer.num_levels if levels is None else levels
    facts = stored_facts(done.geometry, held, tokenizer.num_bits, tokenizer.model_id)
    facts |= {"psnr": math.fsum(done.psnr) / done.frames, "ssim": math.fsum(done.ssim) / done.frames}
    facts["memory"] = memory_facts(done)
    out.facts({"wrote": output} | readable_facts(facts) | readable_memory(done))
    per_frame = {"psnr_per_frame": done.psnr, "ssim_per_frame": done.ssim}
    out.finish({"input": video, "output": output} | facts | per_frame | {"seconds": watch.seconds})


def token_facts(tokens: TokenPyramid) -> dict[str, Any]:
    return stored_facts(tokens.geometry, len(tokens.levels), tokens.num_bits, tokens.model)


def stored_facts(g: Geometry, levels: int, num_bits: int, model: ModelId) -> dict[str, Any]:
    """What there is to say of tokens without having them in memory."""
    grids = [g.grid(level) for level in range(levels)]
    tokens = sum(map(math.prod, grids))
    return {
        "frames": g.frames,
        "height": g.height,
        "width": g.width,
        "fps": g.fps,
        "levels": levels,
        "grids": grids,
        "tokens": tokens,
        "bits_per_pixel": tokens * num_bits / (g.frames * g.height * g.width),
        "model": {"name": model.name, "fingerprint": model.fingerprint},
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


def memory_facts(done: Outcome) -> dict[str, int | None]:
    """Bytes; ``predicted`` only where a plan was made."""
    return {"predicted": done.predicted, "peak": done.peak}


def readable_memory(done: Outcome) -> dict[str, str]:
    """How a plan was kept; nothing where none was needed."""
    from pyratok.runtime.memory import format_bytes

    if done.predicted is None or done.peak is None:
        return {}
    return {"memory": f"{format_bytes(done.peak)} at most, {format_bytes(done.predicted)} planned for"}


def _check_memory(
    model: VideoTokenizer, path: Path, frames: int | None, height: int, width: int, size: int | None = None
) -> None:
    """Refuse what is hopeless for a model that nobody can plan for, its layers being unknown. Raises ValueError."""
    from pyratok.runtime.pieces import PIECE_STEPS, field_of

    if field_of(model, "encode") is None:
        scale = 1.0 if size is None else size / min(height, width)
        count = min(frames or 1, PIECE_STEPS * model.latent_stride)
        common.check_memory(path, count, round(height * scale), round(width * scale))


@contextmanager
def _saying_what_is_left(path: Path) -> Iterator[None]:
    """Whatever cuts an encode off: tell that the part of the file that is whole was not for nothing."""
    from pyratok.codec.container import PyraFileError, open_tokens

    try:
        yield
    except (Exception, KeyboardInterrupt):
        with suppress(OSError, PyraFileError):
            reader = open_tokens(path)
            if not reader.complete:
                kept = f"{path} holds the first {reader.geometry.frames} frames; --resume goes on behind them"
                print(f"pyratok: {kept}", file=sys.stderr)
        raise
