"""What commands about the content of a clip read: stored tokens, or a video that is tokenised first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pyratok.cli import common
from pyratok.cli.common import ShownStopwatch

if TYPE_CHECKING:
    from pyratok.codec.container import PyraReader
    from pyratok.model.base import VideoTokenizer
    from pyratok.report.canvas import Pixels

ClipArgument = Annotated[
    Path, typer.Argument(metavar="IN", help="A .pyra file, or a video or an image, which is tokenised first.")
]
STILLS = 8
STILL_SIDE = 240
"""The most pixels on the short side of a still."""


class Clip(NamedTuple):
    """``levels`` of stored tokens, None for a video; ``fps`` None for an image; ``frames`` None where nothing tells."""

    levels: int | None
    fps: float | None
    frames: int | None
    height: int
    width: int

    @property
    def is_tokens(self) -> bool:
        return self.levels is not None


def look_at(source: Path, size: int | None, frames: int | None) -> Clip:
    """What the input is. Raises ValueError or OSError, before any work, for one that cannot be used."""
    from pyratok.codec.container import open_tokens
    from pyratok.data.video_io import FALLBACK_FPS, probe

    if common.is_pyra(source):
        reader = open_tokens(source)
        if reader.batch_size != 1:
            raise ValueError(f"{source} holds {reader.batch_size} clips; save each of them to a file of its own")
        if size is not None or frames is not None:
            raise ValueError(f"--size and --frames are for videos; {source} holds tokens already")
        g = reader.geometry
        fps = g.fps or (FALLBACK_FPS if g.frames > 1 else None)
        return Clip(reader.num_levels, fps, g.frames, g.height, g.width)
    info = probe(source)
    scale = 1.0 if size is None else size / min(info.height, info.width)
    count = info.frames if frames is None else min(frames, info.frames or frames)
    return Clip(None, info.fps, count, round(info.height * scale), round(info.width * scale))


def load_reading(model: str | None, watch: ShownStopwatch) -> VideoTokenizer:
    """The model; ValueError, before any long work, for one whose tokens say nothing in words."""
    import torch

    with watch.step("loading the model"):
        tokenizer = common.load_model(model)
        tokenizer.text_features(tokenizer.encode(torch.zeros(1, 3, 1, 8, 8)))
    return tokenizer


@contextmanager
def tokens_of(
    tokenizer: VideoTokenizer, source: Path, size: int | None, frames: int | None, watch: ShownStopwatch
) -> Iterator[PyraReader]:
    """The tokens of the input; those of a video lie in a file that is gone when the block ends."""
    from pyratok.codec.container import open_tokens
    from pyratok.runtime.long import encode_file

    if common.is_pyra(source):
        yield open_tokens(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.pyra")
        with watch.counted("tokenising") as progress:
            encode_file(tokenizer, source, path, size=size, frames=frames, progress=progress)
        yield open_tokens(path)


def stills_of(tokenizer: VideoTokenizer, source: Path, clip: Clip, reader: PyraReader) -> list[Pixels]:
    """Up to :data:`STILLS` frames from the middles of equal parts of the clip; none of a part without its beginning."""
    from pyratok.data.video_io import FALLBACK_FPS, load_video, to_uint8

    g = reader.geometry
    count = min(STILLS, g.frames)
    times = [int((part + 0.5) * g.frames / count) / (g.fps or FALLBACK_FPS) for part in range(count)]
    if clip.is_tokens:
        found = [token_still(tokenizer, source, time) for time in times]
        return [still for still in found if still is not None]
    side = min(STILL_SIDE, clip.height, clip.width)
    return [to_uint8(load_video(source, start=time, frames=1, size=side))[0] for time in times]


def token_still(tokenizer: VideoTokenizer, path: Path, seconds: float | None) -> Pixels | None:
    """The frame of a .pyra file at some time, decoded and made small: uint8 ``[H, W, 3]``.

    ``seconds`` None is the first frame. None for a part without its beginning, which cannot be decoded.
    """
    from pyratok.codec.container import open_tokens
    from pyratok.data.video_io import FALLBACK_FPS, load_video, to_uint8
    from pyratok.runtime.long import decode_file

    g = open_tokens(path).geometry
    if g.first_step:
        return None
    rate = g.fps or FALLBACK_FPS
    frame = min(round((seconds or 0.0) * rate), g.frames - 1)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "frame.png")
        decode_file(tokenizer, path, image, start=frame / rate, stop=(frame + 0.5) / rate)
        return to_uint8(load_video(image, size=min(STILL_SIDE, g.height, g.width)))[0]
