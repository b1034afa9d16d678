"""How to run a clip in a given memory: the tile and chunk that fit with the least work.

The peak of a pass is found by running the real layers over a few small frames and counting what tensors live at once;
so it follows whatever the layers do, whole and in slices of frames. It grows linearly with the frames of a pass, and
with the area of a tile linearly without attention over the frame, at most quadratically with it. What kernels and the
allocator take beyond tensors is :data:`SLACK` and :data:`FRAGMENTS`. To it come what the process holds already, the
states of tiles in waiting, the ids, and what the caller says is still to come.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import torch

from pyratok.model.base import VideoTokenizer
from pyratok.nn.carry import Carry
from pyratok.runtime.memory import TensorMemory, format_bytes, parse_bytes, resident_bytes, tensor_bytes
from pyratok.runtime.receptive import decode_halo, encode_halo, spatial_multiple
from pyratok.runtime.tiling import Layout, Span, halo_of, spans
from pyratok.types import Geometry
from pyratok.vae.sliced import SLICE_BYTES, SLICES, slices_of

Direction = Literal["encode", "decode"]

SLACK = 1.05
"""Real memory of a pass over that of its tensors; measured, convolutions in channels-last memory need no more."""

FRAGMENTS: dict[Direction, float] = {"encode": 0.75, "decode": 1.25}
MOST_FRAGMENTS: dict[Direction, int] = {"encode": 416 << 20, "decode": 384 << 20}
"""Share of the tensors, and bytes at most, that the allocator keeps beside them. glibc gives freed blocks below 32 MiB
not back at once: those of windows, slices and deep layers still lie there when the large ones come. Measured on
pyratok-nano, 17 frames in tiles of 4K and 8K: beside 0.5 to 4 GB of tensors 60 to 380 MiB when encoding; up to 320 MiB
beside 0.3 GB when decoding, from one run to the next 60 MiB apart."""

HEADROOM = 64 << 20
"""Bytes for what a large pass adds to the process besides: kernels for its shapes, buffers of threads."""

CHUNK_COST = 0.15
"""Work of a pass of one latent step beyond that per frame: every layer copies the frames before in front."""

CHUNK_STEPS = (1, 2, 4)


class MemoryBudgetError(ValueError):
    """No plan fits. ``minimum``: the smallest budget in bytes with which one would."""

    def __init__(self, message: str, minimum: int) -> None:
        super().__init__(message)
        self.minimum = minimum


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What :func:`plan` chose.

    ``layout``: for ``encode_tiled`` and ``decode_tiled``. ``geometry``: of the clip. ``tiles``: along rows and columns.
    ``chunks``: passes per tile. ``peak``: most bytes that the process is predicted to hold, within ``budget``.
    ``work``: pixels computed over pixels of the clip, 1 where no halo is computed twice.
    """

    direction: Direction
    layout: Layout
    geometry: Geometry
    tiles: tuple[int, int]
    chunks: int
    peak: int
    budget: int
    work: float

    @property
    def passes(self) -> int:
        return self.tiles[0] * self.tiles[1] * self.chunks

    def __str__(self) -> str:
        g, tile = self.geometry, self.layout.tile
        how = "whole frames" if tile is None else f"{self.tiles[0]} x {self.tiles[1]} tiles of {tile[0]}x{tile[1]}"
        steps = self.layout.chunk_steps
        when = "all steps at once" if steps is None else f"{steps} latent step{'s' * (steps > 1)} at a time"
        return (
            f"{self.direction} {g.frames}x{g.height}x{g.width}: {how}, {when}, {self.work:.2f}x the pixels, "
            f"about {format_bytes(self.peak)} of {format_bytes(self.budget)}"
        )


def plan(
    model: VideoTokenizer,
    shape: tuple[int, int, int],
    memory: int | str,
    direction: Direction = "encode",
    *,
    in_order: bool = False,
    halo: int | None = None,
    batch: int = 1,
    resident: int | None = None,
    extra: int = 0,
) -> Plan:
    """The layout with the least work for a clip of ``shape`` (frames, rows, columns) that stays within ``memory``.

    ``memory``: bytes that the process may hold, a number or text such as ``4GiB``. ``in_order``: frames come or go
    one after the other, see :class:`Layout`. ``halo``: as in :class:`Layout`; by default the model's own, and whole
    frames where it has none. ``resident``: bytes held before the first pass, among them the weights; by default what
    this process holds now. ``extra``: bytes that the caller is still going to hold, such as the decoded video.

    Raises :class:`MemoryBudgetError`, naming the smallest budget that would do, when nothing fits; ValueError for an
    amount of memory that cannot be read.
    """
    budget = parse_bytes(memory)
    geometry = Geometry(frames=shape[0], height=shape[1], width=shape[2], strides=model.strides)
    options = list(_options(model, geometry, direction, in_order, halo, batch))
    # Only now: the small passes have made the libraries take what they take when first used.
    held = resident if resident is not None else resident_bytes() or tensor_bytes(list(model.parameters()))
    tokens = 4 * batch * sum(math.prod(geometry.grid(level)) for level in range(model.num_levels))
    fixed = held + HEADROOM + extra + tokens
    fitting = [option for option in options if option.peak + fixed <= budget]
    if not fitting:
        minimum = min(option.peak for option in options) + fixed
        raise MemoryBudgetError(
            f"{format_bytes(budget)} do not suffice to {direction} {'x'.join(map(str, shape))}: the smallest budget "
            f"that would is {_up(minimum)}, of which {format_bytes(fixed)} are taken whatever the plan",
            minimum,
        )
    best = min(fitting, key=lambda option: (option.cost, option.passes, option.peak))
    rows, columns = best.rows, best.columns
    tiled = rows.parts * columns.parts > 1
    return Plan(
        direction=direction,
        layout=Layout(
            tile=(rows.inner, columns.inner) if tiled else None,
            chunk_steps=best.chunk_steps,
            halo=halo if tiled else None,
            in_order=in_order,
        ),
        geometry=geometry,
        tiles=(rows.parts, columns.parts),
        chunks=best.chunks,
        peak=best.peak + fixed,
        budget=budget,
        work=best.work,
    )


class _Cut(NamedTuple):
    """An axis cut into ``parts``: the largest without and with its halo, and all together with theirs."""

    parts: int
    inner: int
    outer: int
    total: int

    @staticmethod
    def whole(length: int) -> _Cut:
        return _Cut(1, length, length, length)

    @staticmethod
    def of(cut: list[Span]) -> _Cut:
        inner, outer = ([span[i].stop - span[i].start for span in cut] for i in (0, 1))
        return _Cut(len(cut), max(inner), max(outer), sum(outer))


class _Option(NamedTuple):
    """One way to run a clip; ``peak`` without what every other way takes as well."""

    rows: _Cut
    columns: _Cut
    chunk_steps: int | None
    chunks: int
    peak: int
    work: float

    @property
    def passes(self) -> int:
        return self.rows.parts * self.columns.parts * self.chunks

    @property
    def cost(self) -> float:
        return self.work * (1 + (CHUNK_COST / self.chunk_steps if self.chunk_steps else 0))


def _up(count: int) -> str:
    """Rounded up to whole MiB, so that asking for it is enough."""
    return f"{math.ceil(count / 2**20)}MiB"


def _options(
    model: VideoTokenizer, geometry: Geometry, direction: Direction, in_order: bool, halo: int | None, batch: int
) -> Iterator[_Option]:
    """Every way to run the clip."""
    _, height, width = geometry.padded
    full = encode_halo(model) if direction == "encode" else decode_halo(model)
    rows, columns = [_Cut.whole(height)], [_Cut.whole(width)]
    if halo is not None or full.is_finite:
        around = halo_of(Layout(halo=halo), full)
        rows, columns = (
            [_Cut.of(spans(length, size, unit, before, after)) for size in _sizes(length, unit)]
            for length, unit, before, after in zip(
                (height, width), spatial_multiple(model.strides), around.before, around.after, strict=True
            )
        )
    steps = geometry.latent_steps
    for chunk_steps in (*(n for n in CHUNK_STEPS if n < steps), None):
        taken = chunk_steps or steps
        need = pass_need(model, direction, taken, batch, chunked=chunk_steps is not None, local=full.is_finite)
        for down, across in product(rows, columns):
            area, computed = down.outer * across.outer, down.total * across.total
            # In order, the states of all tiles wait for their turn; that of the tile at hand is in its pass.
            waiting = need.state * (computed - area) if in_order else 0.0
            peak = math.ceil(need.peak(area, direction) + waiting)
            work = computed / (height * width)
            yield _Option(down, across, chunk_steps, math.ceil(steps / taken), peak, work)


def _sizes(length: int, unit: int) -> list[int]:
    """Tile sizes that differ: the whole, a half, a third ... of an axis, rounded up to units."""
    units = length // unit
    return [unit * size for size in sorted({math.ceil(units / count) for count in range(1, units + 1)}, reverse=True)]


class Growth(NamedTuple):
    """Bytes as a function of the area in pixels."""

    linear: float
    quadratic: float

    def at(self, area: int) -> float:
        return self.linear * area + self.quadratic * area**2

    @staticmethod
    def through(areas: list[int], peaks: list[float]) -> Growth:
        per_pixel = [peak / area for peak, area in zip(peaks, areas, strict=True)]
        quadratic = max(0.0, (per_pixel[-1] - per_pixel[0]) / (areas[-1] - areas[0])) if len(areas) > 1 else 0.0
        return Growth(per_pixel[-1] - quadratic * areas[-1], quadratic)


class Need(NamedTuple):
    """Bytes of the tensors of one pass, and of the state per pixel.

    ``at_once``: where all frames fit into one slice of :mod:`pyratok.vae.sliced`; ``by_frame``: where each fills one.
    """

    at_once: Growth
    by_frame: Growth
    state: float

    def tensors(self, area: int) -> float:
        return min(self.at_once.at(area), self.by_frame.at(area) + SLICES * SLICE_BYTES)

    def peak(self, area: int, direction: Direction) -> float:
        tensors = self.tensors(area)
        return SLACK * tensors + min(FRAGMENTS[direction] * tensors, MOST_FRAGMENTS[direction])


def pass_need(
    model: VideoTokenizer, direction: Direction, steps: int, batch: int = 1, *, chunked: bool, local: bool
) -> Need:
    """What a pass of ``steps`` latent steps takes: in the middle of a stream if ``chunked``, else a whole clip.

    Fitted to passes over frames large enough to drown what does not grow with them: of one size where all layers are
    ``local``, of two where attention may make tensors grow with the square.
    """
    multiple = spatial_multiple(model.strides)
    sizes = [(k * multiple[0], k * multiple[1]) for k in ((8,) if local else (4, 12))]
    areas = [height * width for height, width in sizes]
    growths = list[Growth]()
    for slice_bytes in (sys.maxsize, 0):
        with slices_of(slice_bytes):
            found = [_measure(model, direction, steps, batch, size, chunked) for size in sizes]
        growths.append(Growth.through(areas, [peak for peak, _ in found]))
    _, state = found[-1]
    return Need(growths[0], growths[1], state / areas[-1])


def _measure(
    model: VideoTokenizer, direction: Direction, steps: int, batch: int, size: tuple[int, int], chunked: bool
) -> tuple[float, float]:
    """Peak bytes of a pass and bytes of the state that it takes; long passes by extrapolation from two short ones."""
    measure = _chunk_peak if chunked else _clip_peak
    near = 1 if chunked else 2  # a first frame alone says nothing of those after it
    if steps <= near + 1:
        return measure(model, direction, steps, batch, size)
    (first, state), (second, _) = (measure(model, direction, n, batch, size) for n in (near, near + 1))
    return first + (second - first) * (steps - near), state


def _clip_peak(
    model: VideoTokenizer, direction: Direction, steps: int, batch: int, size: tuple[int, int]
) -> tuple[float, float]:
    clip = Geometry(frames=1 + (steps - 1) * model.latent_stride, height=size[0], width=size[1], strides=model.strides)
    with TensorMemory() as memory:
        _run(model, direction, clip, batch, None)
    return memory.peak, 0.0


def _chunk_peak(
    model: VideoTokenizer, direction: Direction, steps: int, batch: int, size: tuple[int, int]
) -> tuple[float, float]:
    first = Geometry(frames=1, height=size[0], width=size[1], strides=model.strides)
    later = Geometry(
        frames=steps * model.latent_stride, height=size[0], width=size[1], strides=model.strides, first_step=1
    )
    with TensorMemory() as memory:
        carry = Carry()
        _run(model, direction, first, batch, carry)
        tails = carry.tails()
        memory.peak = memory.live
        carry = Carry(tails)
        _run(model, direction, later, batch, carry)
    return memory.peak, tensor_bytes(carry.tails())


@torch.no_grad()
def _run(model: VideoTokenizer, direction: Direction, geometry: Geometry, batch: int, carry: Carry | None) -> None:
    parameter = next(model.parameters())
    frames, height, width = geometry.padded
    if direction == "encode":
        model.signs(parameter.new_zeros(batch, 3, frames, height, width), None, carry)
    else:
        grids = [geometry.grid(level) for level in range(model.num_levels)]
        model.reconstruct([parameter.new_ones(batch, model.num_bits, *grid) for grid in grids], carry)
