"""Which input a cell may depend on: interval arithmetic over the layers of a model, per axis.

A feature is described by three :class:`Extent`, one per axis: for every cell the first and the last input position that
it may depend on. :func:`through` has a rule per kind of layer and walks them in the order of their ``forward``; nothing
is typed in, and a layer without a rule is an error. Positions are frames, rows and columns of the video in both
directions: a token stands for those that it covers. Sources of the layers: Wan (arXiv 2503.20314), sec. 4.1; PyraTok
(arXiv 2601.16210), sec. 3.2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import cast

import numpy as np
from torch import nn

from pyratok.model.base import VideoTokenizer
from pyratok.model.lapq import LaPQ, LaPQLevel
from pyratok.model.pyratok import PyraTok
from pyratok.model.released import ResidualLatentTokenizer
from pyratok.nn.attention import TextAttention
from pyratok.nn.grids import Fold, Resample
from pyratok.types import Stride
from pyratok.vae.wan import Decoder, Encoder, ResidualDownStage, UpStage, WanVAE
from pyratok.vae.wan_blocks import (
    AttentionBlock,
    AverageDown,
    CausalConv3d,
    Downsample,
    DuplicateUp,
    MidBlock,
    ResidualBlock,
    RMSNorm,
    Upsample,
)

EVERYWHERE = 1 << 40
"""Beyond every border: where a layer that mixes a whole frame looks."""


@dataclass(frozen=True, eq=False)
class Extent:
    """Along one axis: the first and last input position that each of n cells may depend on, int64 ``[n]``.

    A cell that depends on nothing (padding) has ``first > last``.
    """

    first: np.ndarray
    last: np.ndarray

    @staticmethod
    def cells(count: int, size: int = 1, lead: int = 0) -> Extent:
        """``count`` cells of ``size`` positions each; the first ``lead`` of them lie before the input."""
        start = np.arange(count, dtype=np.int64) * size - lead
        return Extent(np.maximum(start, 0), start + size - 1)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: slice | np.ndarray) -> Extent:
        return Extent(self.first[index], self.last[index])

    def __add__(self, other: Extent) -> Extent:
        """One behind the other."""
        return Extent(np.concatenate([self.first, other.first]), np.concatenate([self.last, other.last]))

    def __or__(self, other: Extent) -> Extent:
        """Cell by cell, what either depends on."""
        return Extent(np.minimum(self.first, other.first), np.maximum(self.last, other.last))

    def pad(self, before: int, after: int = 0) -> Extent:
        return _nothing(before) + self + _nothing(after)

    def windows(self, kernel: int, stride: int = 1) -> Extent:
        """Every ``stride``-th window of ``kernel`` neighbours, none reaching beyond the ends."""
        first, last = (np.lib.stride_tricks.sliding_window_view(x, kernel)[::stride] for x in (self.first, self.last))
        return Extent(first.min(axis=1), last.max(axis=1))

    def repeat(self, times: int) -> Extent:
        return self[np.arange(len(self) * times) // times]


def _nothing(count: int) -> Extent:
    return Extent(np.full(count, 2 * EVERYWHERE), np.full(count, -2 * EVERYWHERE))


@dataclass(frozen=True)
class Field:
    """What every cell of a feature may depend on: a box of frames, rows and columns."""

    time: Extent
    rows: Extent
    columns: Extent

    def __or__(self, other: Field) -> Field:
        return Field(self.time | other.time, self.rows | other.rows, self.columns | other.columns)

    def spatially(self, change: Callable[[Extent], Extent]) -> Field:
        return replace(self, rows=change(self.rows), columns=change(self.columns))


def video_field(frames: int, height: int, width: int) -> Field:
    """A video: every pixel depends on itself."""
    return Field(Extent.cells(frames), Extent.cells(height), Extent.cells(width))


def token_field(stride: Stride, frames: int, height: int, width: int) -> Field:
    """The tokens of a level: each stands for the frames, rows and columns that it covers."""
    t, h, w = stride
    return Field(
        Extent.cells(1 + (frames - 1) // t, t, lead=t - 1), Extent.cells(height // h, h), Extent.cells(width // w, w)
    )


@singledispatch
def through(layer: nn.Module, x: Field) -> Field:
    """What the output of ``layer`` depends on, given what its input does."""
    raise NotImplementedError(f"no rule says what a cell behind {type(layer).__name__} depends on: add one here")


@through.register(nn.Identity)
@through.register(RMSNorm)
@through.register(TextAttention)
def _(layer: nn.Module, x: Field) -> Field:
    """Every cell for itself."""
    return x


@through.register
def _(layer: nn.Sequential, x: Field) -> Field:
    for part in layer:
        x = through(part, x)
    return x


@through.register
def _(layer: nn.Conv3d, x: Field) -> Field:
    kernel, stride, padding = (cast(Stride, v) for v in (layer.kernel_size, layer.stride, layer.padding))
    assert padding[0] == 0, "a convolution that sees the future"
    front = layer.causal_pad if isinstance(layer, CausalConv3d) else 0
    return Field(
        x.time.pad(front).windows(kernel[0], stride[0]),
        x.rows.pad(padding[1], padding[1]).windows(kernel[1], stride[1]),
        x.columns.pad(padding[2], padding[2]).windows(kernel[2], stride[2]),
    )


@through.register
def _(layer: nn.Conv2d, x: Field) -> Field:
    kernel, stride, padding = (cast(tuple[int, int], v) for v in (layer.kernel_size, layer.stride, layer.padding))
    return Field(
        x.time,
        x.rows.pad(padding[0], padding[0]).windows(kernel[0], stride[0]),
        x.columns.pad(padding[1], padding[1]).windows(kernel[1], stride[1]),
    )


@through.register
def _(layer: nn.ConvTranspose3d, x: Field) -> Field:
    assert layer.kernel_size == layer.stride, "overlapping repetitions"
    t, h, w = cast(Stride, layer.stride)
    return Field(x.time.repeat(t), x.rows.repeat(h), x.columns.repeat(w))


@through.register
def _(layer: nn.ZeroPad2d, x: Field) -> Field:
    left, right, top, bottom = layer.padding
    return replace(x, rows=x.rows.pad(top, bottom), columns=x.columns.pad(left, right))


@through.register
def _(layer: AttentionBlock, x: Field) -> Field:
    def everywhere(axis: Extent) -> Extent:
        return Extent(np.full(len(axis), -EVERYWHERE), np.full(len(axis), EVERYWHERE))

    return x.spatially(everywhere)


@through.register
def _(layer: ResidualBlock, x: Field) -> Field:
    return through(layer.conv2, through(layer.conv1, x)) | through(layer.conv_shortcut, x)


@through.register
def _(layer: MidBlock, x: Field) -> Field:
    x = through(layer.resnets[0], x)
    for attention in layer.attentions:
        x = through(attention, x)
    return through(layer.resnets[1], x)


@through.register
def _(layer: Downsample, x: Field) -> Field:
    x = through(layer.resample, x)
    if layer.time_conv is None or len(x.time) == 1:
        return x
    return replace(x, time=x.time[:1] + through(layer.time_conv, x).time)


@through.register
def _(layer: Upsample, x: Field) -> Field:
    if layer.time_conv is not None and len(x.time) > 1:
        later = through(layer.time_conv, replace(x, time=x.time[1:])).time
        x = replace(x, time=x.time[:1] + later.repeat(2))
    return through(layer.resample, x.spatially(lambda axis: axis.repeat(2)) if layer.in_space else x)


@through.register
def _(layer: AverageDown, x: Field) -> Field:
    t, s = layer.factor_t, layer.factor_s
    x = replace(x, time=x.time.pad(-len(x.time) % t).windows(t, t))
    return x.spatially(lambda axis: axis.windows(s, s))


@through.register
def _(layer: DuplicateUp, x: Field) -> Field:
    x = replace(x, time=x.time.repeat(layer.factor_t)[layer.factor_t - 1 :])
    return x.spatially(lambda axis: axis.repeat(layer.factor_s))


@through.register
def _(layer: Fold, x: Field) -> Field:
    return through(layer.conv, replace(x, time=x.time.pad(layer.front)))


@through.register
def _(layer: Resample, x: Field) -> Field:
    if layer.fold is not None:
        x = through(layer.fold, replace(x, time=x.time[np.zeros(layer.front, int)] + x.time))
    return x if layer.unfold is None else through(layer.unfold, x)


@through.register
def _(layer: UpStage, x: Field) -> Field:
    h = x
    for block in (*layer.resnets, *(layer.upsamplers or ()), *([layer.upsampler] if layer.upsampler else ())):
        h = through(block, h)
    return h if layer.avg_shortcut is None else h | through(layer.avg_shortcut, x)


@through.register
def _(layer: Decoder, x: Field) -> Field:
    for part in (layer.conv_in, layer.mid_block, *layer.up_blocks, layer.conv_out):
        x = through(part, x)
    return x


def taps(encoder: Encoder, x: Field) -> tuple[Field, ...]:
    """The taps of ``Encoder.taps`` from patches."""
    found: list[Field] = []
    x = through(encoder.conv_in, x)
    for layer in encoder.down_blocks:
        if isinstance(layer, ResidualDownStage):
            tap = x
            for block in layer.resnets:
                tap = through(block, tap)
            out = tap if layer.downsampler is None else through(layer.downsampler, tap)
            found.append(tap)
            x = out | through(layer.avg_shortcut, x)
            continue
        if isinstance(layer, Downsample):
            found.append(x)
        x = through(layer, x)
    if not isinstance(encoder.down_blocks[-1], ResidualDownStage):
        found.append(x)
    return (*found, through(encoder.mid_block, x))


def encoded(model: VideoTokenizer, video: Field) -> tuple[Field, ...]:
    """What the tokens of every level depend on."""
    vae = _vae(model)
    patches = video.spatially(lambda axis: axis.windows(vae.config.patch_size, vae.config.patch_size))
    features = taps(vae.encoder, patches)
    if isinstance(model, ResidualLatentTokenizer):
        mean = through(vae.quant_conv, through(vae.encoder.conv_out, features[-1]))
        return (mean,) * model.num_levels
    lapq = cast(LaPQ, model.lapq)
    found: list[Field] = []
    known: Field | None = None
    for index, layer in enumerate(lapq.levels):
        level = cast(LaPQLevel, layer)
        h = through(level.lateral, features[lapq.config.taps[index]])
        if found:
            known = through(cast(Resample, level.resample), found[-1] if known is None else known | found[-1])
            h = h | known
        found.append(through(level.fuse, h))
    return tuple(found)


def decoded(model: VideoTokenizer, levels: Sequence[Field]) -> Field:
    """What the pixels depend on, given the tokens of every level."""
    vae = _vae(model)
    if isinstance(model, ResidualLatentTokenizer):
        latent = levels[0]
    else:
        lapq = cast(LaPQ, model.lapq)
        q = levels[0]
        for layer, tokens in zip(lapq.levels[1:], levels[1:], strict=True):
            q = through(cast(Resample, cast(LaPQLevel, layer).resample), q) | tokens
        latent = through(lapq.out, q)
    pixels = through(vae.decoder, through(vae.post_quant_conv, latent))
    return pixels.spatially(lambda axis: axis.repeat(vae.config.patch_size))


def _vae(model: VideoTokenizer) -> WanVAE:
    if not isinstance(model, (PyraTok, ResidualLatentTokenizer)):
        raise ValueError(f"the receptive field of a {type(model).__name__} is not known; run it on whole frames")
    return model.vae


@dataclass(frozen=True, kw_only=True)
class Halo:
    """How far beyond a tile one must look, so that nothing inside it changes.

    For tiles whose borders are multiples of the least common multiple of the strides. ``before`` and ``after``: rows
    and columns of the video, ``math.inf`` where a layer mixes whole frames. ``past``: frames before the first one of
    a latent step; ``past_steps``: latent steps that hold them. No frame after a step matters: all is causal.
    """

    before: tuple[float, float]
    after: tuple[float, float]
    past: int
    past_steps: int

    @property
    def is_finite(self) -> bool:
        return math.isfinite(max(*self.before, *self.after))


def spatial_multiple(strides: Sequence[Stride]) -> tuple[int, int]:
    """Rows and columns that every tile border is a multiple of: the least common multiple of the strides."""
    return math.lcm(*(h for _, h, _ in strides)), math.lcm(*(w for _, _, w in strides))


def encode_halos(model: VideoTokenizer) -> tuple[Halo, ...]:
    """Per level: the pixels around a tile and the frames before a latent step that its ids may depend on."""
    return _converged(model, _encode_halos)


def encode_halo(model: VideoTokenizer) -> Halo:
    """Of the ids of all levels together."""
    return _widest(encode_halos(model))


def decode_halo(model: VideoTokenizer) -> Halo:
    """The pixels around a tile and the frames before a latent step whose tokens its pixels may depend on."""
    return _converged(model, _decode_halos)[0]


def _encode_halos(model: VideoTokenizer, frames: int, height: int, width: int) -> tuple[Halo, ...]:
    fields = encoded(model, video_field(frames, height, width))
    sizes = model.strides
    return tuple(
        _halo(model, field, stride, (frames, height, width)) for field, stride in zip(fields, sizes, strict=True)
    )


def _decode_halos(model: VideoTokenizer, frames: int, height: int, width: int) -> tuple[Halo, ...]:
    tokens = [token_field(stride, frames, height, width) for stride in model.strides]
    return (_halo(model, decoded(model, tokens), (1, 1, 1), (frames, height, width)),)


def _halo(model: VideoTokenizer, field: Field, stride: Stride, size: tuple[int, int, int]) -> Halo:
    """Read off a tile of the smallest size in the middle of the frame, and off the last latent step."""
    before, after = [], []
    axes = zip((field.rows, field.columns), stride[1:], size[1:], spatial_multiple(model.strides), strict=True)
    for axis, cell, length, multiple in axes:
        start = length // 2 // multiple * multiple
        tile = axis[slice(start // cell, (start + multiple) // cell)]
        before.append(_distance(start - int(tile.first.min())))
        after.append(_distance(int(tile.last.max()) - (start + multiple - 1)))
    step = max(t for t, _, _ in model.strides)
    own = field.time[-(step // stride[0]) :]
    assert own.last.max() < size[0], "a layer sees the future"
    past = size[0] - step - int(own.first.min())
    return Halo(before=(before[0], before[1]), after=(after[0], after[1]), past=past, past_steps=math.ceil(past / step))


def _distance(count: int) -> float:
    return math.inf if count > EVERYWHERE // 2 else max(0, count)


def _widest(halos: Sequence[Halo]) -> Halo:
    return Halo(
        before=(max(h.before[0] for h in halos), max(h.before[1] for h in halos)),
        after=(max(h.after[0] for h in halos), max(h.after[1] for h in halos)),
        past=max(h.past for h in halos),
        past_steps=max(h.past_steps for h in halos),
    )


def _converged(
    model: VideoTokenizer, halos: Callable[[VideoTokenizer, int, int, int], tuple[Halo, ...]]
) -> tuple[Halo, ...]:
    """``halos`` on a video so large that its borders are out of sight."""
    step = max(t for t, _, _ in model.strides)
    rows, columns = spatial_multiple(model.strides)
    count = 16
    while True:
        found = halos(model, 1 + step * count, rows * count, columns * count)
        widest = _widest(found)
        reach = [
            (n if math.isfinite(n) else 0) / multiple
            for side in (widest.before, widest.after)
            for n, multiple in zip(side, (rows, columns), strict=True)
        ]
        # A tile in the middle whose reach ends well before the border, and a past that begins after the first step.
        if max(reach) < count // 2 - 2 and widest.past_steps < count - 2:
            return found
        count *= 2
