"""The expensive parts of a Wan VAE on the CPU a few frames at a time, with the same numbers.

What a layer makes for the next one alone is never held for the whole clip. It stays in caches, and below the size from
which the allocator asks the system for fresh pages every time: norm and activation of a large clip take a third of the
time that they take in one go, and a block no more memory than its input and output.

Only where no gradient is wanted and nothing is being compiled or exported: a compiler fuses by itself, and a graph is
to hold no loop over frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from pyratok.nn.carry import Carry

SLICE_BYTES = 8 << 20
"""Of the frames of a layer that are in work at a time. glibc hands freed blocks of up to 32 MiB out again; larger ones
cost a page fault per 4 KiB, which for a norm is more than its arithmetic."""
BLOCK_BYTES = 1 << 20
"""Of the places, in float32, that a norm works on at a time: they stay in the second-level caches of two cores."""
LEAST_ROWS = 64
LEAST_NORM = 1e-12
"""What a norm divides by at least, as in the reference."""
WINDOW_SLICES = 3
"""Slices that a window has room for, if one is smaller: the frames between two slices are copied so much less often."""

SLICES = 2 * WINDOW_SLICES + 2
"""Slices that live at once in a block: two windows, what the first convolution makes, and the shortcut."""

_slice_bytes: ContextVar[int] = ContextVar("slice_bytes", default=SLICE_BYTES)


@contextmanager
def slices_of(count: int) -> Iterator[None]:
    """Slices of up to ``count`` bytes, of one frame at least, inside the block: for plans and tests."""
    token = _slice_bytes.set(count)
    try:
        yield
    finally:
        _slice_bytes.reset(token)


def runs_on_cpu(x: Tensor) -> bool:
    """Is ``x`` about to be computed with here and now, without a gradient: not traced, compiled or only pretended?"""
    traced = torch.compiler.is_compiling() or isinstance(x, FakeTensor)
    return x.device.type == "cpu" and not traced and not torch.is_grad_enabled()


def is_sliced(x: Tensor) -> bool:
    """Is ``x`` to go through a few frames at a time?"""
    return runs_on_cpu(x) and not torch.is_autocast_enabled("cpu")


def slices(x: Tensor, channels: int = 0) -> Iterator[slice]:
    """Runs of frames of ``x`` ``[B, C, T, H, W]``; ``channels``: of the widest tensor that is made of them."""
    return _runs(x.shape[2], x.shape[0] * max(x.shape[1], channels) * x[0, 0, 0].numel() * x.element_size())


def frame_slices(x: Tensor, channels: int = 0) -> Iterator[slice]:
    """The same of frames ``[N, C, H, W]``."""
    return _runs(x.shape[0], max(x.shape[1], channels) * x[0, 0].numel() * x.element_size())


def _runs(frames: int, frame_bytes: int) -> Iterator[slice]:
    count = max(1, _slice_bytes.get() // max(1, frame_bytes))
    return (slice(start, min(start + count, frames)) for start in range(0, frames, count))


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)


def norm_silu_into(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """SiLU of the RMS norm over channels of ``x`` ``[B, C, T, H, W]``, into ``out`` of that shape; float32 inside.

    The numbers are those of :class:`~pyratok.vae.wan_blocks.RMSNorm` up to rounding, by fewer passes over a block.
    """
    channels = x.shape[1]
    scale = gamma.float().flatten() * channels**0.5
    rows = max(LEAST_ROWS, _slice_bytes.get() // (SLICE_BYTES // BLOCK_BYTES) // (4 * channels))
    rows = min(rows, x[0, 0].numel())
    work = x.new_empty(rows, channels, dtype=torch.float32)
    for one, target in zip(x, out, strict=True):
        places, found = (clip.permute(1, 2, 3, 0).reshape(-1, channels) for clip in (one, target))
        assert found.data_ptr() == target.data_ptr(), "not in channels-last memory"
        for here, there in zip(places.split(rows), found.split(rows), strict=True):
            wide = work[: len(here)].copy_(here)
            norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
            wide.mul_(norm.clamp_min_(LEAST_NORM).reciprocal_()).mul_(scale)
            there.copy_(F.silu(wide, inplace=True))


class CausalConv(Protocol):
    causal_pad: int

    def convolve(self, x: Tensor) -> Tensor: ...

    def convolve_onto(self, x: Tensor, out: Tensor) -> None: ...


class NormedConv:
    """Norm, SiLU and a causal convolution over one slice after another; the frames before each stay in a window.

    ``shape``: of all slices together, of which the longest has ``longest`` frames. ``like``: its type. With a ``carry``
    the window begins with what that remembers.
    """

    def __init__(
        self, gamma: Tensor, conv: CausalConv, shape: tuple[int, ...], longest: int, like: Tensor, carry: Carry | None
    ) -> None:
        self.gamma, self.conv, self.carry, self.past = gamma, conv, carry, conv.causal_pad
        batch, channels, frames, *size = shape
        room = WINDOW_SLICES * _slice_bytes.get() // (channels * math.prod(size) * like.element_size()) - self.past
        # Frames of several clips lie together in memory only if there is one window for each slice.
        ahead = longest if batch > 1 else max(longest, min(frames, room))
        self.window = empty((batch, channels, self.past + ahead, *size), like)
        tail = None if carry is None else carry.before((batch, channels, self.past, *size), like)
        self.window[:, :, : self.past] = 0 if tail is None else tail
        self.start = 0

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv.convolve(self._seen(x))

    def onto(self, x: Tensor, out: Tensor) -> None:
        """Add the result to ``out``."""
        self.conv.convolve_onto(self._seen(x), out)

    def _seen(self, x: Tensor) -> Tensor:
        """Norm and SiLU of a slice, behind the frames before it."""
        if self.start + self.past + x.shape[2] > self.window.shape[2]:
            for frame in range(self.past):  # one after another: old place and new may overlap
                self.window[:, :, frame] = self.window[:, :, self.start + frame]
            self.start = 0
        begin, stop = self.start, self.start + self.past + x.shape[2]
        norm_silu_into(x, self.gamma, self.window[:, :, begin + self.past : stop])
        self.start = stop - self.past
        return self.window[:, :, begin:stop]

    def hand_on(self) -> None:
        """After the last slice: the carry keeps what the next chunk needs."""
        if self.carry is not None:
            last = self.window[:, :, self.start : self.start + self.past]
            self.carry.keep(last.clone(memory_format=torch.channels_last_3d))
