"""Streams of large frames: a :class:`~pyratok.model.streaming.EncodeStream` or ``DecodeStream`` per tile, side by side.

Tiles have the halo of the receptive field, so that ids and pixels are those of whole frames (see
:mod:`pyratok.runtime.tiling`); whole frames are a single tile. For as many frames as there are: nothing but the states
of the tiles is kept from piece to piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from pyratok.data.video_pixels import to_uint8
from pyratok.model.base import VideoTokenizer
from pyratok.runtime.frames import FrameSource
from pyratok.runtime.receptive import decode_halo, encode_halo
from pyratok.runtime.tiling import Layout, Tile, chunks_of, tiles_of
from pyratok.types import Geometry, Stride, TokenPyramid, Video

Frames = Video | np.ndarray
"""What video writers take: floats ``[1, 3, n, H, W]`` in [-1, 1], or uint8 ``[n, H, W, 3]``."""


class TiledEncoder:
    """Frames to tokens, piece by piece, for one clip of ``height`` x ``width`` pixels.

    Raises ValueError for a layout that does not go with the model.
    """

    def __init__(
        self,
        model: VideoTokenizer,
        height: int,
        width: int,
        layout: Layout,
        fps: float | None = None,
        caption: str | None = None,
    ) -> None:
        self._size = height, width
        frame = Geometry(frames=1, height=height, width=width, strides=model.strides)
        self._tiles = tiles_of(layout, frame, partial(encode_halo, model))
        self._streams = [model.stream(fps, caption) for _ in self._tiles]

    def push(self, piece: FrameSource) -> TokenPyramid | None:
        """Tokens of all latent steps that the frames of ``piece`` complete, None where they complete none.

        Raises ValueError for frames of another size, or that ``model.encode`` would refuse.
        """
        if (piece.height, piece.width) != self._size:
            began, got = ("{1}x{0}".format(*size) for size in (self._size, (piece.height, piece.width)))
            raise ValueError(f"this stream is of frames of {began} pixels, got {got}; open a new one")
        frames = slice(0, piece.frames)
        return self._join(
            [
                stream.push(piece.crop(frames, tile.rows.outer, tile.columns.outer))
                for tile, stream in zip(self._tiles, self._streams, strict=True)
            ]
        )

    def flush(self) -> TokenPyramid | None:
        """Tokens of the frames still waiting for their latent step, if any; the end of the stream."""
        return self._join([stream.flush() for stream in self._streams])

    def _join(self, parts: Sequence[TokenPyramid | None]) -> TokenPyramid | None:
        """Each tile's own ids, its halo cut off, side by side."""
        first = parts[0]
        if first is None:
            return None
        geometry = replace(first.geometry, height=self._size[0], width=self._size[1])
        levels = [torch.empty((1, *geometry.grid(i)), dtype=torch.int32) for i in range(len(first.levels))]
        for tile, part in zip(self._tiles, parts, strict=True):
            assert part is not None, "all tiles see the same frames"
            for whole, ids, stride in zip(levels, part.levels, geometry.strides, strict=False):
                to, of = (..., *_cells(tile, stride)), (..., *_cells(tile, stride, within=True))
                whole[to] = ids[of].cpu()
        return replace(first, levels=tuple(levels), geometry=geometry)


class TiledDecoder:
    """Tokens to frames, part by part, the first of which begins at latent step 0.

    ``geometry``: of any part. Raises ValueError for a layout that does not go with the model.
    """

    def __init__(self, model: VideoTokenizer, geometry: Geometry, layout: Layout) -> None:
        self._layout = layout
        self._tiles = tiles_of(layout, geometry, partial(decode_halo, model))
        self._streams = [model.decode_stream() for _ in self._tiles]

    def push(self, part: TokenPyramid) -> Iterator[Frames]:
        """The frames of a part, chunk by chunk: floats of whole frames, bytes of frames put together from tiles."""
        for chunk in chunks_of(self._layout, part.geometry):
            yield self._decode(part.time_slice(chunk.start, chunk.stop))

    def _decode(self, part: TokenPyramid) -> Frames:
        if len(self._tiles) == 1:
            return self._streams[0].push(part)
        g = part.geometry
        pixels = np.empty((g.frames, g.height, g.width, 3), np.uint8)
        for tile, stream in zip(self._tiles, self._streams, strict=True):
            video = stream.push(_crop(part, tile)).plain()
            rows, columns = tile.rows.inner, tile.columns.inner
            top, left = rows.start - tile.rows.outer.start, columns.start - tile.columns.outer.start
            place = pixels[:, rows, columns]  # ends where the true frame does
            height, width = place.shape[1:3]
            place[:] = to_uint8(video[..., top : top + height, left : left + width])
        return pixels


def _crop(part: TokenPyramid, tile: Tile) -> TokenPyramid:
    """What a tile sees of a part, as a part of a smaller video."""
    rows, columns = tile.rows.outer, tile.columns.outer
    geometry = replace(part.geometry, height=rows.stop - rows.start, width=columns.stop - columns.start)
    levels = [
        ids[..., _divide(rows, down), _divide(columns, across)]
        for ids, (_, down, across) in zip(part.levels, geometry.strides, strict=False)
    ]
    return replace(part, levels=tuple(levels), geometry=geometry)


def _cells(tile: Tile, stride: Stride, within: bool = False) -> tuple[slice, slice]:
    """The cells that a tile answers for: in the grid of the whole frame, or ``within`` its own, which has a halo."""
    spans = zip((tile.rows, tile.columns), stride[1:], strict=True)
    rows, columns = (_divide(span.inner, cell, span.outer.start if within else 0) for span, cell in spans)
    return rows, columns


def _divide(pixels: slice, stride: int, origin: int = 0) -> slice:
    return slice((pixels.start - origin) // stride, (pixels.stop - origin) // stride)
