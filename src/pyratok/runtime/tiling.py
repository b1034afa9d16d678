"""Encode and decode large video tile by tile, in chunks of time if asked for.

A tile is computed with a halo around it, cut off afterwards. With the halo of the receptive field
(:mod:`pyratok.runtime.receptive`) ids and pixels are those of the whole frame: at the true borders a tile has no halo,
so that the padding there is the model's own. A model that mixes whole frames (Wan's middle attention) has no such halo;
with a finite one its tiles are approximate, and the decoder may blend them over ``feather`` pixels.

Chunks continue from the state of the chunk before (one state per tile), so they change nothing at any length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyratok.model.base import VideoTokenizer
from pyratok.model.state import StreamState
from pyratok.quantization.bits import ids_to_signs, signs_to_ids
from pyratok.runtime.frames import FrameSource, Sink, as_sink, as_source
from pyratok.runtime.receptive import Halo, decode_halo, encode_halo, spatial_multiple
from pyratok.types import Geometry, Stride, TokenPyramid


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a clip is cut.

    ``tile``: most rows and columns of a tile, without its halo; None for whole frames. Tiles are made equally large,
    up to the multiple that the model needs. ``chunk_steps``: latent steps of a pass; None for all at once.
    ``halo``: pixels on each side of a tile; None for all that matter, which not every model allows.
    ``feather``: half the width in pixels over which the decoder blends approximate tiles.
    ``in_order``: all tiles of a chunk before the next chunk, as for frames that come or go one after the other; the
    states of all tiles are then held at once. Else a tile goes through the whole clip before the next tile.
    """

    tile: tuple[int, int] | None = None
    chunk_steps: int | None = None
    halo: int | None = None
    feather: int = 0
    in_order: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("chunk_steps", self.chunk_steps, 1), ("halo", self.halo, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least} or None, got {value}")
        if self.tile is not None and (len(self.tile) != 2 or min(self.tile) < 1):
            raise ValueError(f"tile is two positive numbers (rows, columns), got {self.tile}")
        if self.feather < 0:
            raise ValueError(f"feather must be at least 0, got {self.feather}")
        if self.feather and self.halo is None:
            raise ValueError("tiles with their full halo fit without feathering: give a halo, or leave feather at 0")
        if self.halo is not None and self.feather > self.halo:
            raise ValueError(f"feather {self.feather} goes beyond the halo {self.halo}")


WHOLE = Layout()


class Span(NamedTuple):
    """One tile along one axis, in pixels of the padded frame: what it answers for, and what it looks at."""

    inner: slice
    outer: slice


class Tile(NamedTuple):
    rows: Span
    columns: Span

    @property
    def corner(self) -> tuple[int, int]:
        """Its first row and column, which no other tile has."""
        return self.rows.inner.start, self.columns.inner.start


def spans(length: int, size: int, multiple: int, before: float, after: float) -> list[Span]:
    """Cut an axis of ``length`` into the fewest parts of at most ``size``, equal up to ``multiple``, and add halos.

    All are multiples of ``multiple``; a part is never below it, also where ``size`` is.
    """
    units = length // multiple
    count = math.ceil(units / max(1, size // multiple))
    borders = [units * index // count * multiple for index in range(count + 1)]
    front, back = (math.ceil(min(n, length) / multiple) * multiple for n in (before, after))
    return [
        Span(slice(start, stop), slice(max(0, start - front), min(length, stop + back)))
        for start, stop in pairwise(borders)
    ]


def halo_of(layout: Layout, full: Halo) -> Halo:
    """The halo that tiles get: the model's own, or the smaller one asked for.

    Raises ValueError for a model whose own is the whole frame where none is asked for.
    """
    if layout.halo is not None:
        # What the decoder blends lies beyond its tile, and wants a halo of its own.
        before, after = (
            (min(layout.halo, rows + layout.feather), min(layout.halo, columns + layout.feather))
            for rows, columns in (full.before, full.after)
        )
        return replace(full, before=before, after=after)
    if not full.is_finite:
        raise ValueError(
            "this model has a layer that mixes whole frames, so that no tile can equal the whole frame; "
            "for an approximation give a halo, such as 64 pixels"
        )
    return full


def tiles_of(layout: Layout, geometry: Geometry, full: Callable[[], Halo]) -> list[Tile]:
    """The tiles of a clip, row by row; ``full`` tells the model's own halo where there are several.

    Raises ValueError as :func:`halo_of`, and where tiles are too small to blend.
    """
    _, height, width = geometry.padded
    multiple = spatial_multiple(geometry.strides)
    size = layout.tile or (height, width)
    if any(wanted < least for wanted, least in zip(size, multiple, strict=True)):
        raise ValueError(f"a tile has at least {multiple[0]}x{multiple[1]} pixels for this model, got {size}")
    if size[0] >= height and size[1] >= width:
        rows, columns = Span(slice(0, height), slice(0, height)), Span(slice(0, width), slice(0, width))
        return [Tile(rows, columns)]
    halo = halo_of(layout, full())
    cut = [spans(*axis) for axis in zip((height, width), size, multiple, halo.before, halo.after, strict=True)]
    least = min(span.inner.stop - span.inner.start for axis in cut if len(axis) > 1 for span in axis)
    if 2 * layout.feather > least:
        raise ValueError(f"feather {layout.feather} blends {2 * layout.feather} pixels, tiles have {least}")
    return [Tile(*pair) for pair in product(*cut)]


def chunks_of(layout: Layout, geometry: Geometry) -> list[range]:
    """Latent steps of every chunk."""
    steps = geometry.latent_steps
    size = layout.chunk_steps or steps
    return [range(start, min(start + size, steps)) for start in range(0, steps, size)]


def frames_of(chunk: range, geometry: Geometry) -> slice:
    """Frames of the padded clip that belong to a chunk."""
    return slice(*(0 if step == 0 else 1 + (step - 1) * geometry.latent_stride for step in (chunk.start, chunk.stop)))


def encode_tiled(
    model: VideoTokenizer,
    video: FrameSource | np.ndarray | Tensor,
    layout: Layout = WHOLE,
    *,
    caption: str | None = None,
    fps: float | None = None,
) -> TokenPyramid:
    """``model.encode`` of a clip that is read crop by crop; see :func:`~pyratok.runtime.frames.as_source`.

    Ids equal those of the whole clip, up to rounding (at most one bit in 10^6, only where the value before the sign
    is below 1e-4), unless ``layout`` has a smaller halo than the model's. Raises ValueError for pixels that
    ``model.encode`` would refuse and for a layout that does not go with the model.
    """
    source = as_source(video, fps)
    geometry = _geometry(model, source)
    levels = [torch.empty((source.batch, *geometry.grid(i)), dtype=torch.int32) for i in range(model.num_levels)]
    for chunk, tile, parts in _encoded(model, source, layout, caption):
        for index, (whole, part) in enumerate(zip(levels, parts, strict=True)):
            steps = slice(*geometry.level_steps(index, chunk.start, chunk.stop))
            rows, columns = _cells(tile, model.strides[index])
            whole[:, steps, rows, columns] = part
    return TokenPyramid(tuple(levels), geometry, model.model_id, model.num_bits)


def encode_tiled_parts(
    model: VideoTokenizer,
    video: FrameSource | np.ndarray | Tensor,
    layout: Layout = WHOLE,
    *,
    caption: str | None = None,
    fps: float | None = None,
) -> Iterator[TokenPyramid]:
    """:func:`encode_tiled` chunk by chunk, in order: the parts of a stream, as ``TokenPyramid.time_slice`` cuts them.

    The source is read in order too, each chunk of frames once per tile.
    """
    source = as_source(video, fps)
    geometry = _geometry(model, source)
    passes = _encoded(model, source, replace(layout, in_order=True), caption)
    for chunk, results in groupby(passes, key=lambda result: result[0]):
        frames = frames_of(chunk, geometry)
        part = replace(geometry, frames=min(frames.stop, source.frames) - frames.start, first_step=chunk.start)
        levels = [torch.empty((source.batch, *part.grid(i)), dtype=torch.int32) for i in range(model.num_levels)]
        for _, tile, ids in results:
            for whole, new, stride in zip(levels, ids, model.strides, strict=True):
                rows, columns = _cells(tile, stride)
                whole[..., rows, columns] = new
        yield TokenPyramid(tuple(levels), part, model.model_id, model.num_bits)


def decode_tiled(
    model: VideoTokenizer,
    tokens: TokenPyramid,
    out: Sink | np.ndarray | Tensor,
    layout: Layout = WHOLE,
    *,
    levels: int | None = None,
) -> None:
    """``model.decode`` into ``out``, tile by tile: an array or tensor of the clip's true size, or a function that takes
    pixels as they come; see :func:`~pyratok.runtime.frames.as_sink`.

    Pixels equal those of the whole clip to rounding unless ``layout`` has a smaller halo than the model's. Raises
    ValueError for tokens that ``model.decode`` would refuse and for a layout that does not go with the model.
    """
    model.check_tokens(tokens)
    geometry = tokens.geometry
    if geometry.first_step:
        raise ValueError(f"these tokens begin at latent step {geometry.first_step}; decode the whole pyramid")
    held = tokens if levels is None else tokens.prefix(levels)
    sink = as_sink(out, tokens.batch_size, geometry)
    tiles, chunks = tiles_of(layout, geometry, partial(decode_halo, model)), chunks_of(layout, geometry)
    states: dict[tuple[int, int], StreamState] = {}
    feather = _Feather(layout.feather, geometry)
    for tile, chunk in _visits(tiles, chunks, layout.in_order):
        pixels, rows, columns = feather.join(_decoded(model, held, tile, chunk, states), tile, chunk)
        frames = frames_of(chunk, geometry)
        # What the padding added ends here.
        true = [
            slice(axis.start, min(axis.stop, size))
            for axis, size in zip(
                (frames, rows, columns), (geometry.frames, geometry.height, geometry.width), strict=True
            )
        ]
        t, h, w = (axis.stop - axis.start for axis in true)
        kept = pixels[:, :, :t, :h, :w]
        sink(kept.float().clamp(-1, 1), *true)
        # Not to be held during the next pass.
        del pixels, kept


def _geometry(model: VideoTokenizer, source: FrameSource) -> Geometry:
    return Geometry(
        frames=source.frames, height=source.height, width=source.width, strides=model.strides, fps=source.fps
    )


def _visits(tiles: Sequence[Tile], chunks: Sequence[range], in_order: bool) -> Iterator[tuple[Tile, range]]:
    if in_order:
        yield from ((tile, chunk) for chunk, tile in product(chunks, tiles))
    else:
        yield from product(tiles, chunks)


def _cells(tile: Tile, stride: Stride) -> tuple[slice, slice]:
    """Rows and columns of a level that a tile answers for."""
    rows, columns = tile.rows.inner, tile.columns.inner
    return _divide(rows, stride[1]), _divide(columns, stride[2])


def _divide(pixels: slice, stride: int) -> slice:
    return slice(pixels.start // stride, pixels.stop // stride)


def _shift(part: slice, origin: int) -> slice:
    return slice(part.start - origin, part.stop - origin)


def _encoded(
    model: VideoTokenizer, source: FrameSource, layout: Layout, caption: str | None
) -> Iterator[tuple[range, Tile, list[Tensor]]]:
    """Chunk, tile, and the ids of every level there, halo cut off."""
    geometry = _geometry(model, source)
    tiles, chunks = tiles_of(layout, geometry, partial(encode_halo, model)), chunks_of(layout, geometry)
    text = model.embed_captions(caption, source.batch)
    states: dict[tuple[int, int], StreamState] = {}

    def one_pass(tile: Tile, chunk: range) -> list[Tensor]:
        crop = source.crop(frames_of(chunk, geometry), tile.rows.outer, tile.columns.outer)
        if len(chunks) == 1:
            parameter = next(model.parameters())
            signs = model.signs(crop.to(parameter.device, parameter.dtype), text)
        else:
            signs, state = model.encode_chunk(crop, states.pop(tile.corner, None), text)
            if chunk.stop < geometry.latent_steps:
                states[tile.corner] = state
        rows = _shift(tile.rows.inner, tile.rows.outer.start)
        columns = _shift(tile.columns.inner, tile.columns.outer.start)
        return [
            signs_to_ids(level[..., _divide(rows, down), _divide(columns, across)]).cpu()
            for level, (_, down, across) in zip(signs, model.strides, strict=True)
        ]

    for tile, chunk in _visits(tiles, chunks, layout.in_order):
        with torch.no_grad():
            ids = one_pass(tile, chunk)
        yield chunk, tile, ids


@torch.no_grad()
def _decoded(
    model: VideoTokenizer,
    tokens: TokenPyramid,
    tile: Tile,
    chunk: range,
    states: dict[tuple[int, int], StreamState],
) -> Tensor:
    """Padded pixels of a tile with its halo."""
    parameter = next(model.parameters())
    signs = []
    for index, (ids, (_, down, across)) in enumerate(zip(tokens.levels, model.strides, strict=False)):
        steps = slice(*tokens.geometry.level_steps(index, chunk.start, chunk.stop))
        crop = ids[:, steps, _divide(tile.rows.outer, down), _divide(tile.columns.outer, across)]
        signs.append(ids_to_signs(crop.to(parameter.device), model.num_bits, dtype=parameter.dtype))
    steps_in_all = tokens.geometry.latent_steps
    if len(chunk) == steps_in_all:
        return model.reconstruct(signs)
    video, state = model.decode_chunk(signs, states.pop(tile.corner, None))
    if chunk.stop < steps_in_all:
        states[tile.corner] = state
    return video


class _Feather:
    """Cuts halos off, and blends neighbouring tiles linearly over ``width`` pixels on either side of their border.

    What lies that near to the next tile is held back until that tile comes: of the tile to the left a few columns, of
    the row of tiles above a few rows.
    """

    def __init__(self, width: int, geometry: Geometry) -> None:
        self.width = width
        _, self.height, self.columns = geometry.padded
        self._left: dict[int, Tensor] = {}
        self._above: dict[tuple[int, int], Tensor] = {}

    def join(self, video: Tensor, tile: Tile, chunk: range) -> tuple[Tensor, slice, slice]:
        """What is now settled, and the rows and columns of the padded frame where it belongs."""
        rows, hold_rows = self._reach(tile.rows, self.height)
        columns, hold_columns = self._reach(tile.columns, self.columns)
        piece = video[..., _shift(rows, tile.rows.outer.start), _shift(columns, tile.columns.outer.start)]
        if not self.width:
            return piece, rows, columns
        key = chunk.start
        piece, held = _blend(self._left.pop(key, None) if columns.start else None, piece, -1, hold_columns)
        if held is not None:
            self._left[key] = held
        above = (tile.columns.inner.start, key)
        piece, held = _blend(self._above.pop(above, None), piece, -2, hold_rows)
        if held is not None:
            self._above[above] = held
        return piece, slice(rows.start, rows.stop - hold_rows), slice(columns.start, columns.stop - hold_columns)

    def _reach(self, span: Span, length: int) -> tuple[slice, int]:
        """Pixels of a tile that are kept or blended, and how many of them wait for the next tile."""
        start, stop = span.inner.start, span.inner.stop
        front, back = (self.width if start else 0), (self.width if stop < length else 0)
        return slice(start - front, stop + back), 2 * back


def _blend(before: Tensor | None, piece: Tensor, dim: int, hold: int) -> tuple[Tensor, Tensor | None]:
    """Blend the start of ``piece`` with what was held ``before`` it, and hold back its own end."""
    if before is not None:
        count = before.shape[dim]
        shape = (-1, 1) if dim == -2 else (-1,)
        ramp = ((torch.arange(count, device=piece.device, dtype=piece.dtype) + 0.5) / count).view(shape)
        head = torch.lerp(before, piece.narrow(dim, 0, count), ramp)
        piece = torch.cat([head, piece.narrow(dim, count, piece.shape[dim] - count)], dim=dim)
    if not hold:
        return piece, None
    keep = piece.shape[dim] - hold
    return piece.narrow(dim, 0, keep), piece.narrow(dim, keep, hold).clone()
