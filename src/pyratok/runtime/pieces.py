"""Which piece of a long video goes through a model at a time, and where a stream can begin anew.

Pieces and tiles change no id and no pixel; they bound the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from pyratok.codec.container import SEGMENT_STEPS
from pyratok.data.memory import available_memory
from pyratok.data.video_io import iter_video, to_uint8
from pyratok.model.base import VideoTokenizer
from pyratok.runtime.frames import FrameSource
from pyratok.runtime.memory import format_bytes, parse_bytes, resident_bytes
from pyratok.runtime.planner import Direction, MemoryBudgetError, pass_need, plan
from pyratok.runtime.receptive import Halo, decode_halo, encode_halo
from pyratok.runtime.tiling import Layout
from pyratok.types import Geometry, TokenPyramid

WHOLE_STEPS = SEGMENT_STEPS
"""A clip of no more latent steps goes through in one pass where memory is plenty, and is stored in one go."""
PIECE_STEPS = 4
"""Latent steps of a piece of a longer one: what every layer copies from the steps before hardly counts any more."""

ENDLESS_STEPS = 1000
"""Length of the clip that stands in a plan for a longer one than a piece: all at once, which needs no state, is out."""

VALUE_BYTES = 64
"""Rough memory of a pass in bytes per value of its input, for a model of the size of pyratok-nano."""
PLENTY = 1 / 8
"""Share of the free memory that the rough estimate may take without a plan; larger models take several times more."""
PLANNED_SHARE = 0.8
"""Of the free memory, where a plan is made without a budget."""

READER_BYTES, WRITER_BYTES = 60, 120
"""Per pixel of a frame, beside the frames of a piece: what a decoder keeps for reference and one frame as floats; the
frames that the H.264 encoder looks ahead at."""

STREAM_BYTES = 64 << 20
"""What the allocator keeps besides when passes and states follow each other for long: measured, the peak of
pyratok-nano on 30 frames of 640x480 in two tiles was 59 MiB above the plan for one pass with all states."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """``layout``: of the passes; without ``chunk_steps`` the clip is a single piece and needs no state. ``steps``:
    latent steps of a piece. ``predicted``: most bytes that the process will hold, where that was planned; then frames
    wait as bytes, not floats."""

    layout: Layout
    steps: int
    predicted: int | None = None

    @property
    def is_one(self) -> bool:
        """Does the clip go through at once?"""
        return self.layout.chunk_steps is None


def field_of(model: VideoTokenizer, direction: Direction) -> Halo | None:
    """What a cell sees; None for a model whose layers nobody described."""
    try:
        return encode_halo(model) if direction == "encode" else decode_halo(model)
    except ValueError:
        return None


def restart_step(model: VideoTokenizer, direction: Direction, step: int) -> int:
    """The latent step whose last frame a new stream has to begin with, so that ``step`` and what follows are exact.

    Such a stream knows nothing before that frame and takes it for the first of all; so nothing from ``step`` on may
    see it. 0 where that is not known.
    """
    field = field_of(model, direction)
    return 0 if field is None else max(0, step - 1 - field.past_steps)


def beginning_at(part: TokenPyramid, start: int) -> TokenPyramid:
    """A part as a stream that began at latent step ``start`` counts it: of step ``start`` itself the last frame."""
    g = part.geometry
    if start == 0 or g.first_step > start:
        return replace(part, geometry=replace(g, first_step=g.first_step - start))
    assert g.first_step == start, "begins before the stream"
    levels = tuple(ids[:, g.latent_stride // t - 1 :] for ids, (t, _, _) in zip(part.levels, g.strides, strict=False))
    return replace(part, levels=levels, geometry=replace(g, first_step=0, frames=g.frames - (g.latent_stride - 1)))


def choose_pieces(
    model: VideoTokenizer,
    direction: Direction,
    frames: int | None,
    height: int,
    width: int,
    memory: int | str | None = None,
    *,
    both: bool = False,
) -> Pieces:
    """How to run a clip of ``frames`` (None: nobody knows) within ``memory``, bytes or text such as ``4GiB``.

    Without a budget: in one pass a clip of up to :data:`WHOLE_STEPS`, in pieces of :data:`PIECE_STEPS` a longer one, if
    by a rough estimate memory is plenty; else by a plan for most of what is free. ``both``: the other direction's state
    is held beside it.

    Raises: :class:`~pyratok.runtime.planner.MemoryBudgetError` with the smallest budget that would do.
    """
    stride = model.latent_stride
    known = field_of(model, direction)
    if memory is None:
        is_short = frames is not None and frames <= 1 + stride * (WHOLE_STEPS - 1)
        steps = WHOLE_STEPS if is_short else PIECE_STEPS
        count = stride * steps if frames is None else min(frames, stride * steps)
        free = available_memory()
        if free is None or count * height * width * 3 * VALUE_BYTES <= PLENTY * free:
            return Pieces(layout=Layout(chunk_steps=None if is_short else steps), steps=steps)
        if known is None:
            return Pieces(layout=Layout(chunk_steps=1), steps=1)
        memory = (resident_bytes() or 0) + int(PLANNED_SHARE * free)
    budget, pixels = parse_bytes(memory), height * width
    state = _other_state(model, direction, known is not None and known.is_finite) * pixels if both else 0.0
    for steps in (PIECE_STEPS, 1):
        is_one = frames is not None and frames <= 1 + stride * (steps - 1)
        count = frames if is_one and frames is not None else 1 + stride * ENDLESS_STEPS
        # The next piece is read, or decoded, while the last one is still in hand.
        buffers = pixels * 3 * stride * steps * (4 if both else 2)
        buffers += pixels * (WRITER_BYTES if direction == "decode" or both else READER_BYTES)
        # Of a clip in pieces the plan counts all ids, which are not held.
        ids = 0 if is_one else _id_bytes(model, count, height, width)
        try:
            extra = int(buffers + state) - ids + (0 if is_one else STREAM_BYTES)
            found = plan(model, (count, height, width), budget, direction, in_order=True, extra=extra)
        except MemoryBudgetError as error:
            refused = error
            continue
        chunk = found.layout.chunk_steps
        chunk = chunk if is_one else min(chunk or steps, steps)
        return Pieces(layout=replace(found.layout, chunk_steps=chunk), steps=chunk or steps, predicted=found.peak)
    least = -(-refused.minimum // 2**20)
    raise MemoryBudgetError(
        f"{format_bytes(budget)} do not suffice to {direction} video of {width}x{height}: "
        f"the smallest budget that would is {least}MiB",
        refused.minimum,
    )


def _id_bytes(model: VideoTokenizer, frames: int, height: int, width: int) -> int:
    geometry = Geometry(frames=frames, height=height, width=width, strides=model.strides)
    return 4 * sum(math.prod(geometry.grid(level)) for level in range(model.num_levels))


def _other_state(model: VideoTokenizer, direction: Direction, local: bool) -> float:
    """Bytes per pixel of the state of a stream of the other direction."""
    other: Direction = "decode" if direction == "encode" else "encode"
    return pass_need(model, other, 1, chunked=True, local=local).state


def read_pieces(
    path: Path, pieces: Pieces, stride: int, *, size: int | None = None, frames: int | None = None, skip: int = 0
) -> Iterator[FrameSource]:
    """A file in pieces of whole latent steps, behind its first ``skip`` frames; only the piece at hand is in memory.

    Frames are those of :func:`~pyratok.data.video_io.load_video`. Raises VideoError, on reading also midway.
    """
    as_bytes = pieces.predicted is not None
    wanted, held, fps = 1 + stride * (pieces.steps - 1), list[Tensor | np.ndarray](), None
    # One by one: the first latent step is a single frame, so that the first piece is shorter than the others.
    for frame in islice(iter_video(path, chunk=1, size=size, frames=frames), skip, None):
        fps = frame.fps
        held.append(to_uint8(frame) if as_bytes else frame.plain())
        if len(held) == wanted:
            yield _as_piece(held, fps)
            held, wanted = [], stride * pieces.steps
    if held:
        yield _as_piece(held, fps)


def _as_piece(frames: list[Tensor | np.ndarray], fps: float | None) -> FrameSource:
    """Floats ``[1, 3, 1, H, W]`` or bytes ``[1, H, W, 3]``, put together crop by crop: never in memory twice."""
    first = frames[0]
    is_bytes = isinstance(first, np.ndarray)
    height, width = first.shape[1:3] if is_bytes else first.shape[3:]

    def read(times: slice, rows: slice, columns: slice) -> np.ndarray | Tensor:
        if is_bytes:
            return np.concatenate([cast(np.ndarray, picture)[:, rows, columns] for picture in frames[times]])
        return torch.cat([cast(Tensor, frame)[..., rows, columns] for frame in frames[times]], dim=2)

    return FrameSource(frames=len(frames), height=height, width=width, read=read, fps=fps)
