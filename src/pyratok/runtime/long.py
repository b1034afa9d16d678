"""Video files of any length to ``.pyra`` files and back, in the memory of one piece.

Frames are read, tokens appended and video written piece by piece (:mod:`pyratok.runtime.pieces`). A short clip, up to
:data:`~pyratok.runtime.pieces.WHOLE_STEPS` latent steps, becomes a file that is there whole or not at all; a longer
one grows segment by segment: who is killed leaves what was whole, and :func:`encode_file` goes on behind it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyratok.codec.container import PyraReader, open_tokens
from pyratok.data.video_io import FALLBACK_FPS, VideoWriter, from_uint8, probe
from pyratok.metrics.reconstruction import psnr_per_frame, ssim_per_frame
from pyratok.model.base import VideoTokenizer
from pyratok.runtime.frames import FrameSource
from pyratok.runtime.memory import resident_bytes
from pyratok.runtime.pieces import (
    Pieces,
    beginning_at,
    choose_pieces,
    read_pieces,
    restart_step,
)
from pyratok.runtime.tiled_streams import Frames, TiledDecoder, TiledEncoder
from pyratok.runtime.tiling import decode_tiled, encode_tiled
from pyratok.runtime.token_file import TokenFile, complete_file, continuing, later
from pyratok.types import Geometry, TokenPyramid, Video

Progress = Callable[[int, int | None], None]
"""Told the frames done and, where known, their number."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was done. ``geometry``: of the tokens read or written. ``frames``: worked on in this run. ``pieces``: how,
    None where nothing was left to do. ``predicted`` and ``peak``: most bytes that the process would hold by the plan,
    if one was made, and ever held, if the system tells. ``psnr`` and ``ssim``: per frame, where they were measured."""

    geometry: Geometry
    frames: int
    pieces: Pieces | None = None
    predicted: int | None = None
    peak: int | None = None
    psnr: tuple[float, ...] = ()
    ssim: tuple[float, ...] = ()


def encode_file(
    model: VideoTokenizer,
    source: Path,
    target: Path,
    *,
    caption: str | None = None,
    size: int | None = None,
    frames: int | None = None,
    memory: int | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Tokenise a video or image file; ids are those of ``model.encode`` of the whole.

    ``size`` and ``frames`` as in :func:`~pyratok.data.video_io.load_video`, ``memory`` as in
    :func:`~pyratok.runtime.pieces.choose_pieces`. ``resume``: go on behind the last whole segment of ``target``, with
    the same options as before. The frames that its tokens cover are read and dropped, but for those which the next
    tokens depend on, by the receptive field of the model; the last step that the file holds is computed again and
    compared. A complete file is left as it is; where there is none, encoding begins at the first frame.

    Raises: ValueError, before anything is written, for a budget that is too small, for a file of another model and
    for one whose last step is not the video's; :class:`~pyratok.data.video_io.VideoError` for a source that cannot be
    read, also midway: then the tokens before stay in a file that grows.
    """
    height, width, total = _shape(source, size, frames)
    stride = model.latent_stride
    if resume and (reader := complete_file(model, target)):
        return Outcome(geometry=reader.geometry, frames=0, peak=resident_bytes(peak=True))
    pieces = choose_pieces(model, "encode", total, height, width, memory)
    with TokenFile(target, resume=resume) as file:
        held = open_tokens(target) if file.next_step else None
        begin = 0 if held is None else restart_step(model, "encode", held.num_steps - 1)
        clips = read_pieces(source, pieces, stride, size=size, frames=frames, skip=begin * stride)
        steps = _encoded(model, clips, pieces, caption, may_be_whole=held is None)
        parts: Iterator[TokenPyramid] = (step.tokens for step in steps)
        if held is not None:
            parts = continuing(later(parts, begin), held, source)
        there = 0 if held is None else held.geometry.frames
        done = 0
        for part in parts:
            file.append(part)
            done += part.geometry.frames
            if progress is not None:
                progress(there + done, total)
    return Outcome(
        geometry=open_tokens(target).geometry,
        frames=done,
        pieces=pieces,
        predicted=pieces.predicted,
        peak=resident_bytes(peak=True),
    )


def decode_file(
    model: VideoTokenizer,
    source: Path,
    target: Path,
    *,
    levels: int | None = None,
    start: float | None = None,
    stop: float | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Decode a ``.pyra`` file of one clip, or its frames from ``start`` to ``stop`` seconds, into a video file.

    The frames of :func:`frame_span` are written. Only their latent steps are read, and those before that they depend
    on, by the receptive field of the model: frames equal those of the whole decode to rounding.

    Raises: ValueError for tokens that ``model.decode`` would refuse, for a span that holds no frame and for a budget
    that is too small; :class:`~pyratok.codec.container.PyraFileError` for a damaged file; VideoError where the target
    cannot be written. Then there is no target.
    """
    reader = open_tokens(source)
    g, span = reader.geometry, frame_span(reader, start, stop)
    _check_decodable(model, reader)
    if not reader.complete and stop is None:
        warnings.warn(
            f"{source} is unfinished, its writer was killed or is still at work: its first {g.frames} frames are used",
            stacklevel=2,
        )
    begin = restart_step(model, "decode", _step_of(span.start, g.latent_stride))
    steps = range(begin, 1 + _step_of(span.stop - 1, g.latent_stride))
    first = begin * g.latent_stride
    pieces = choose_pieces(model, "decode", span.stop - first, g.height, g.width, memory)
    with VideoWriter(target, fps=g.fps or FALLBACK_FPS) as writer:
        for frames in _decoded(model, reader, steps, pieces, levels):
            count = _length(frames)
            wanted = slice(max(0, span.start - first), max(0, min(count, span.stop - first)))
            first += count
            if wanted.start < wanted.stop:
                writer.write(frames.plain()[:, :, wanted] if isinstance(frames, Video) else frames[wanted])
            if progress is not None:
                progress(writer.num_frames, len(span))
    return Outcome(
        geometry=g, frames=len(span), pieces=pieces, predicted=pieces.predicted, peak=resident_bytes(peak=True)
    )


def frame_span(reader: PyraReader, start: float | None, stop: float | None) -> range:
    """Frames of a file whose time k / fps lies in ``[start, stop)`` seconds; what is beyond the end does not count.

    Raises ValueError where there are none.
    """
    frames, rate = reader.geometry.frames, reader.geometry.fps or FALLBACK_FPS
    if any(time is not None and not 0 <= time < math.inf for time in (start, stop)):
        raise ValueError(f"a span of time is given in seconds >= 0, got {start} to {stop}")
    # A time that was rounded when it was printed still means its frame.
    first, last = (None if time is None else math.ceil(time * rate - 1e-3) for time in (start, stop))
    span = range(first or 0, frames if last is None else min(frames, last))
    if not span:
        asked = f"from {start or 0:g} s" + ("" if stop is None else f" to {stop:g} s")
        raise ValueError(f"{reader.path} holds no frame {asked}; it lasts {frames / rate:.2f} s")
    return span


def reconstruct_file(
    model: VideoTokenizer,
    source: Path,
    target: Path,
    *,
    levels: int | None = None,
    size: int | None = None,
    frames: int | None = None,
    side_by_side: bool = False,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Send a video file through the tokens and back, with its sound, and measure every frame.

    ``side_by_side``: the original to the left. Frames that were put together from tiles are measured as bytes, others
    as floats. Raises as :func:`encode_file` and :func:`decode_file`; then there is no target.
    """
    if levels is not None and not 1 <= levels <= model.num_levels:
        raise ValueError(f"levels must be 1 to {model.num_levels}, got {levels}")
    height, width, total = _shape(source, size, frames)
    pieces = choose_pieces(model, "encode", total, height, width, memory, both=True)
    back = choose_pieces(model, "decode", total, height, width, memory, both=True)
    clips = read_pieces(source, pieces, model.latent_stride, size=size, frames=frames)
    geometry: Geometry | None = None
    psnr, ssim = list[float](), list[float]()
    decoder: TiledDecoder | None = None
    piece: FrameSource | None = None
    at = 0
    with VideoWriter(target, fps=probe(source).fps or FALLBACK_FPS, audio_from=source) as writer:
        for step in _encoded(model, clips, pieces, None):
            part = step.tokens if levels is None else step.tokens.prefix(levels)
            geometry = part.geometry if geometry is None else geometry.join(part.geometry)
            at = at if step.piece is piece else 0
            piece = step.piece
            decoder = decoder or TiledDecoder(model, part.geometry, back.layout)
            at_once = step.is_whole and back.is_one
            for decoded in [_decoded_at_once(model, part, back)] if at_once else decoder.push(part):
                original = _frames_of(piece, slice(at, at + _length(decoded)))
                at += _length(decoded)
                shown = decoded.plain() if isinstance(decoded, Video) else from_uint8(decoded)
                for one, other in zip(shown.split(1, dim=2), original.split(1, dim=2), strict=True):
                    psnr.append(float(psnr_per_frame(one, other)))
                    ssim.append(float(ssim_per_frame(one, other)))
                writer.write(torch.cat([original, shown], dim=-1) if side_by_side else shown)
                if progress is not None:
                    progress(writer.num_frames, total)
    assert geometry is not None, "a video has a frame"
    return Outcome(
        geometry=geometry,
        frames=geometry.frames,
        pieces=pieces,
        predicted=None if pieces.predicted is None else max(pieces.predicted, back.predicted or 0),
        peak=resident_bytes(peak=True),
        psnr=tuple(psnr),
        ssim=tuple(ssim),
    )


class _Step(NamedTuple):
    """Tokens of a piece; of the last one they may come in two parts, whole latent steps and the rest."""

    piece: FrameSource
    tokens: TokenPyramid
    is_whole: bool = False


def _encoded(
    model: VideoTokenizer,
    pieces_read: Iterator[FrameSource],
    pieces: Pieces,
    caption: str | None,
    *,
    may_be_whole: bool = True,
) -> Iterator[_Step]:
    """Every piece and its tokens; a clip of a single piece goes through in one pass, where memory is plenty."""
    piece = next(pieces_read, None)
    if piece is None:
        return
    ahead = list(islice(pieces_read, 1)) if may_be_whole and pieces.is_one else []
    if may_be_whole and pieces.is_one and not ahead:
        if pieces.predicted is None:
            clip = Video(_frames_of(piece, slice(0, piece.frames)), piece.fps)
            yield _Step(piece, model.encode(clip, caption), is_whole=True)
        else:
            yield _Step(piece, encode_tiled(model, piece, pieces.layout, caption=caption), is_whole=True)
        return
    encoder = TiledEncoder(model, piece.height, piece.width, pieces.layout, piece.fps, caption)
    while piece is not None:
        if (tokens := encoder.push(piece)) is not None:
            yield _Step(piece, tokens)
        last = piece
        piece = ahead.pop() if ahead else next(pieces_read, None)
    if (tokens := encoder.flush()) is not None:
        yield _Step(last, tokens)


def _frames_of(piece: FrameSource, times: slice) -> Tensor:
    return piece.crop(times, slice(0, piece.height), slice(0, piece.width))


def _decoded(
    model: VideoTokenizer, reader: PyraReader, steps: range, pieces: Pieces, levels: int | None
) -> Iterator[Frames]:
    """Frames from the last one of latent step ``steps.start`` on; only a segment's tokens are in memory."""
    if pieces.is_one:
        tokens = beginning_at(reader.read(steps.start, steps.stop, levels), steps.start)
        yield _decoded_at_once(model, tokens, pieces)
        return
    decoder = TiledDecoder(model, reader.geometry, pieces.layout)
    for segment in reader.segments:
        begin, end = segment.geometry.first_step, segment.geometry.first_step + segment.geometry.latent_steps
        held = range(max(begin, steps.start), min(end, steps.stop))
        if held:
            yield from decoder.push(beginning_at(reader.read(held.start, held.stop, levels), steps.start))


def _decoded_at_once(model: VideoTokenizer, tokens: TokenPyramid, pieces: Pieces) -> Frames:
    if pieces.predicted is None:
        return model.decode(tokens)
    g = tokens.geometry
    pixels = np.empty((g.frames, g.height, g.width, 3), np.uint8)
    decode_tiled(model, tokens, pixels, pieces.layout)
    return pixels


def _check_decodable(model: VideoTokenizer, reader: PyraReader) -> None:
    """Refuse what ``model.decode`` would, before anything is planned or read. Raises ValueError."""
    if reader.model.fingerprint != model.model_id.fingerprint:
        raise ValueError(f"these tokens were made by {reader.model}, this model is {model.model_id}")
    if reader.batch_size != 1:
        raise ValueError(
            f"{reader.path} holds a batch of {reader.batch_size} clips; decode it in Python, one video per clip"
        )
    if reader.geometry.first_step:
        raise ValueError(
            f"{reader.path} begins at latent step {reader.geometry.first_step}; decoding is causal and needs the steps "
            "before it: decode the whole, and cut with --from and --to"
        )


def _shape(source: Path, size: int | None, frames: int | None) -> tuple[int, int, int | None]:
    """Rows, columns and, where the header tells, frames of what is read, to plan with."""
    info = probe(source)
    scale = 1.0 if size is None else size / min(info.height, info.width)
    total = info.frames if frames is None or info.frames is None else min(frames, info.frames)
    return max(1, round(info.height * scale)), max(1, round(info.width * scale)), total


def _step_of(frame: int, stride: int) -> int:
    """The latent step that a frame belongs to."""
    return 0 if frame == 0 else 1 + (frame - 1) // stride


def _length(frames: Frames) -> int:
    return frames.shape[2] if isinstance(frames, Video) else len(frames)
