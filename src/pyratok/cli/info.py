"""``pyratok info``: what a token file, a video or a model is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pyratok.cli import common
from pyratok.cli.common import JsonOption, ModelOption, Output
from pyratok.cli.tokens import readable_facts, token_facts
from pyratok.report.units import human_bytes

if TYPE_CHECKING:
    from pyratok.codec.container import PyraReader

Facts = dict[str, Any]
"""What JSON gets."""
Shown = dict[str, str]
"""What people see, line by line."""


def info(
    subject: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE|MODEL]", help="A .pyra file, a video, or a model directory; default: the model."),
    ] = None,
    model: ModelOption = None,
    json_file: JsonOption = None,
) -> None:
    """Say what a token file, a video or a model is."""
    out = Output(json_file, subject, model)
    if subject is not None and model is not None:
        raise ValueError("give a file or --model, not both")
    if subject is None or subject.is_dir():
        kind, facts, shown = "model", *_model(model if subject is None else str(subject))
    elif not subject.exists():
        raise ValueError(f"there is no file or folder {subject}")
    elif common.is_pyra(subject):
        kind, facts, shown = "tokens", *_tokens(subject)
    else:
        kind, facts, shown = "video", *_video(subject)
    out.facts(shown, title=f"{subject or model or 'the model in the package'} ({kind})")
    out.finish({"kind": kind, "path": subject or model} | facts)


def _tokens(path: Path) -> tuple[Facts, Shown]:
    from pyratok.codec.container import open_tokens, read_header

    reader = open_tokens(path)
    g = reader.geometry
    begin = g.first_step
    for segment in reader.segments:  # the whole file, so that damage anywhere is seen, but never all of it in memory
        stop = segment.geometry.first_step + segment.geometry.latent_steps
        tokens = reader.read(segment.geometry.first_step - begin, stop - begin)
    grids = [g.grid(level) for level in range(reader.num_levels)]
    num_tokens = sum(map(math.prod, grids))
    whole = {
        "frames": g.frames,
        "grids": grids,
        "tokens": num_tokens,
        "bits_per_pixel": num_tokens * reader.num_bits / (g.frames * g.height * g.width),
        "bytes": path.stat().st_size,
    }
    facts = token_facts(tokens) | whole
    segments, state = _segments(reader)
    levels = {}
    for index, ((t, h, w), grid) in enumerate(zip(g.strides, grids, strict=False)):
        cell = f"{'a frame' if t == 1 else f'{t} frames'} of {h}x{w} pixels"
        size = human_bytes(reader.level_bytes[index])
        levels[f"level {index + 1}"] = f"{'x'.join(map(str, grid))} tokens, each {cell}; {size}"
    clips = {"clips": str(reader.batch_size)} if reader.batch_size > 1 else {}
    return facts | {"header": read_header(path)} | segments, clips | readable_facts(facts) | state | levels


def _segments(reader: PyraReader) -> tuple[Facts, Shown]:
    """Of a file that grows: the parts it has, and whether its writer came to an end."""
    if reader.segment_steps is None:
        return {}, {}
    segments = [
        {
            "first_step": segment.geometry.first_step,
            "steps": segment.geometry.latent_steps,
            "frames": segment.geometry.frames,
            "offset": segment.offset,
            "bytes": sum(segment.sizes),
        }
        for segment in reader.segments
    ]
    end = "complete" if reader.complete else "unfinished: the writer was killed, or is still at work"
    shown = f"{len(segments)} of up to {reader.segment_steps} latent steps; {end}"
    return {"complete": reader.complete, "segments": segments}, {"segments": shown}


def _video(path: Path) -> tuple[Facts, Shown]:
    from pyratok.data.video_io import probe

    facts = dataclasses.asdict(probe(path)) | {"bytes": path.stat().st_size}
    return facts, _lines(facts)


def _model(name_or_path: str | None) -> tuple[Facts, Shown]:
    facts = common.load_model(name_or_path).describe()
    return facts, _lines(facts)


def _lines(facts: Mapping[str, Any], prefix: str = "") -> Shown:
    """Nested facts as lines: ``decoder.width 96``; what is unknown (None) is left out."""
    lines: Shown = {}
    for key, value in facts.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            lines |= _lines(value, f"{name}.")
        elif value is not None:
            lines[name] = human_bytes(value) if key == "bytes" else _word(value)
    return lines


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, (list, tuple)) for item in value)
        return (", " if nested else "x").join(map(_word, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
