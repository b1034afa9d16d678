"""The values that travel through pyratok.

Axis legend, used in names and docstrings everywhere:
``B`` batch, ``C`` channels, ``T H W`` frames, rows and columns of a video or feature map,
``t h w`` the token grid of a level, ``L`` levels, ``K`` bits of a word, ``N`` text tokens,
``D`` width of the text space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

import torch
from torch import Tensor

Stride = tuple[int, int, int]


class Video(Tensor):
    """A float32 tensor ``[B, 3, T, H, W]`` in [-1, 1] that remembers its frame rate.

    ``fps`` is in frames per second, or None for a still image or an unknown rate. Operations give plain tensors
    (only those that return their input itself, such as ``float()`` on float32, keep it).
    """

    fps: float | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, data: Tensor, fps: float | None = None) -> Video:
        video = Tensor._make_subclass(cls, data)
        video.fps = fps
        return video

    def __deepcopy__(self, memo: dict[int, object]) -> Video:
        return Video(self.plain().clone(), self.fps)

    def plain(self) -> Tensor:
        """The same memory as an ordinary tensor."""
        return self.as_subclass(Tensor)


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """Who made the tokens: a readable name and the fingerprint of the weights that decide ids."""

    name: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})"


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """True size of a video and the token grids laid over it.

    ``strides`` holds one ``(t, h, w)`` per level of the *model*, shallow to deep, also when a
    pyramid carries fewer levels: the padding of the video depends on all of them.

    Time is causal: token step 0 of a level covers frame 0 alone, step j > 0 of a level with
    temporal stride s covers frames ``1 + (j-1) s ... j s``. A video of T frames is padded to the
    next ``1 + k S`` frames, S the largest temporal stride, and in space to the least common
    multiple of the strides. ``first_step`` counts latent steps (of S frames) cut off in front.
    """

    frames: int
    height: int
    width: int
    strides: tuple[Stride, ...]
    fps: float | None = None
    first_step: int = 0

    def __post_init__(self) -> None:
        if min(self.frames, self.height, self.width) < 1:
            raise ValueError(
                f"a video needs at least one frame and pixel, got {self.frames}x{self.height}x{self.width}"
            )
        # Lists (from JSON) would make an equal geometry compare unequal.
        object.__setattr__(self, "strides", tuple(tuple(stride) for stride in self.strides))
        if not self.strides:
            raise ValueError("geometry needs the strides of at least one level")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be a positive number or None, got {self.fps}")
        if self.first_step < 0:
            raise ValueError(f"first_step must be >= 0, got {self.first_step}")
        for stride in self.strides:
            if len(stride) != 3 or min(stride) < 1:
                raise ValueError(f"a stride is three positive integers (t, h, w), got {stride}")
            if self.latent_stride % stride[0]:
                raise ValueError(f"temporal strides must divide the largest one {self.latent_stride}, got {stride}")

    @property
    def latent_stride(self) -> int:
        """Frames of one latent step."""
        return max(t for t, _, _ in self.strides)

    @property
    def latent_steps(self) -> int:
        """Number of latent steps that cover the (padded) frames."""
        if self.first_step:
            return math.ceil(self.frames / self.latent_stride)
        return 1 + math.ceil((self.frames - 1) / self.latent_stride)

    @property
    def padded(self) -> tuple[int, int, int]:
        """Frames, rows and columns after padding."""
        multiple_h = math.lcm(*(h for _, h, _ in self.strides))
        multiple_w = math.lcm(*(w for _, _, w in self.strides))
        steps = self.latent_steps
        frames = steps * self.latent_stride if self.first_step else 1 + (steps - 1) * self.latent_stride
        return (
            frames,
            math.ceil(self.height / multiple_h) * multiple_h,
            math.ceil(self.width / multiple_w) * multiple_w,
        )

    def grid(self, level: int) -> tuple[int, int, int]:
        """Token grid ``(t, h, w)`` of a level."""
        stride_t, stride_h, stride_w = self.strides[level]
        frames, height, width = self.padded
        steps = frames // stride_t if self.first_step else 1 + (frames - 1) // stride_t
        return steps, height // stride_h, width // stride_w

    def level_steps(self, level: int, start: int, stop: int) -> tuple[int, int]:
        """Range of token steps of ``level`` that make up latent steps ``start:stop`` of this geometry."""
        per_step = self.latent_stride // self.strides[level][0]

        def boundary(step: int) -> int:
            if self.first_step:
                return step * per_step
            return 0 if step == 0 else 1 + (step - 1) * per_step

        return boundary(start), boundary(stop)

    def join(self, after: Geometry) -> Geometry:
        """This video and ``after``, which has to begin at the latent step where this one ends.

        Raises: ValueError otherwise, where they differ in more than length and place, or where this one ends in the
        middle of a step, which is then padded and has nothing behind it.
        """
        facts = [item.name for item in fields(self) if item.name not in ("frames", "first_step")]
        different = [name for name in facts if getattr(self, name) != getattr(after, name)]
        if different:
            said = ", ".join(f"{name} {getattr(self, name)} and {getattr(after, name)}" for name in different)
            raise ValueError(f"these are not parts of one video: {said}")
        end = self.first_step + self.latent_steps
        if after.first_step != end:
            raise ValueError(f"the next part has to begin at latent step {end}, this one begins at {after.first_step}")
        if self.frames != self.padded[0]:
            raise ValueError(f"nothing can follow latent step {end - 1}: the video ends in the middle of it")
        return replace(self, frames=self.frames + after.frames)


@dataclass(frozen=True, eq=False)
class TokenPyramid:
    """Discrete video: what users store, send, model and decode.

    ``levels``: one int32 tensor ``[B, t, h, w]`` per level, shallow (dense in time) to deep, ids in
    ``[0, 2**num_bits)``. ``geometry``: true size and grids. ``model``: who can decode it.
    """

    levels: tuple[Tensor, ...]
    geometry: Geometry
    model: ModelId
    num_bits: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.num_bits <= 30:
            raise ValueError(f"a word has 1 to 30 bits, got num_bits = {self.num_bits}")
        if not 1 <= len(self.levels) <= len(self.geometry.strides):
            raise ValueError(
                f"expected 1 to {len(self.geometry.strides)} levels for these strides, got {len(self.levels)}"
            )
        batch = self.levels[0].shape[0] if self.levels[0].ndim else 1
        if batch == 0:
            raise ValueError("a pyramid holds at least one clip, got an empty batch")
        for index, ids in enumerate(self.levels):
            wanted = (batch, *self.geometry.grid(index))
            if tuple(ids.shape) != wanted:
                raise ValueError(f"level {index + 1} should have shape {wanted}, got {tuple(ids.shape)}")
            if ids.dtype != torch.int32:
                raise ValueError(f"level {index + 1} should be int32, got {ids.dtype}; use ids.to(torch.int32)")
            if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < 1 << self.num_bits:
                raise ValueError(f"level {index + 1} holds ids outside [0, 2**{self.num_bits})")

    @property
    def batch_size(self) -> int:
        return self.levels[0].shape[0]

    @property
    def num_tokens(self) -> int:
        """Tokens of one clip, over all levels held."""
        return sum(ids[0].numel() for ids in self.levels)

    @property
    def bits_per_pixel(self) -> float:
        """Raw bits per pixel of the true (unpadded) video, before any entropy coding."""
        pixels = self.geometry.frames * self.geometry.height * self.geometry.width
        return self.num_tokens * self.num_bits / pixels

    def prefix(self, num_levels: int) -> TokenPyramid:
        """The first ``num_levels`` levels."""
        if not 1 <= num_levels <= len(self.levels):
            raise ValueError(f"this pyramid has {len(self.levels)} levels, asked for the first {num_levels}")
        return replace(self, levels=self.levels[:num_levels])

    def select(self, index: int) -> TokenPyramid:
        """One clip of the batch, batch axis kept."""
        if not -self.batch_size <= index < self.batch_size:
            raise IndexError(f"clip {index} of a batch of {self.batch_size}")
        index %= self.batch_size
        return replace(self, levels=tuple(ids[index : index + 1] for ids in self.levels))

    def to(self, device: torch.device | str) -> TokenPyramid:
        return replace(self, levels=tuple(ids.to(device) for ids in self.levels))

    def time_slice(self, start: int, stop: int) -> TokenPyramid:
        """Latent steps ``start:stop``; step 0 is the first frame, every other step ``latent_stride`` frames."""
        geometry = self.geometry
        if not 0 <= start < stop <= geometry.latent_steps:
            raise ValueError(f"latent steps {start}:{stop} are not within 0:{geometry.latent_steps}")
        stride = geometry.latent_stride
        offset = geometry.first_step

        def frames_before(step: int) -> int:
            padded = step * stride if offset else max(0, 1 + (step - 1) * stride) if step else 0
            return min(geometry.frames, padded)

        cut = replace(geometry, frames=frames_before(stop) - frames_before(start), first_step=offset + start)
        levels = []
        for index, ids in enumerate(self.levels):
            first, last = geometry.level_steps(index, start, stop)
            levels.append(ids[:, first:last])
        return replace(self, levels=tuple(levels), geometry=cut)

    def check_follows(self, before: TokenPyramid) -> None:
        """Raises ValueError unless ``before`` and this pyramid are neighbours, as :meth:`time_slice` gives them."""
        for name in ("model", "num_bits", "batch_size"):
            if getattr(self, name) != getattr(before, name):
                raise ValueError(
                    f"these are not parts of one video: {name} {getattr(before, name)} and {getattr(self, name)}"
                )
        if len(self.levels) != len(before.levels):
            raise ValueError(f"a part with {len(self.levels)} levels cannot follow one with {len(before.levels)}")
        before.geometry.join(self.geometry)

    @classmethod
    def concat(cls, parts: Iterable[TokenPyramid]) -> TokenPyramid:
        """Inverse of :meth:`time_slice`: neighbours in order, at least one, as one pyramid. Raises ValueError."""
        parts = list(parts)
        if not parts:
            raise ValueError("there are no parts to put together")
        for before, after in pairwise(parts):
            after.check_follows(before)
        first = parts[0]
        if len(parts) == 1:
            return first
        levels = tuple(torch.cat(pieces, dim=1) for pieces in zip(*(part.levels for part in parts), strict=True))
        frames = sum(part.geometry.frames for part in parts)
        return replace(first, levels=levels, geometry=replace(first.geometry, frames=frames))

    @property
    def soi_id(self) -> int:
        """Id of ``<SOI>`` in :meth:`to_sequence`: the first one after the vocabulary."""
        return 1 << self.num_bits

    @property
    def separator_id(self) -> int:
        """Id of ``<Q-SEP>`` in :meth:`to_sequence`."""
        return self.soi_id + 1

    def to_sequence(self) -> Tensor:
        """``<SOI> q1 <Q-SEP> q2 ... qL`` as int32 ``[B, 1 + sum(n_l) + L - 1]``, each level in t, h, w order.

        Source: PyraTok (arXiv 2601.16210), sec. 3.2.2, without the caption, which is text.
        """
        column = torch.empty((self.batch_size, 1), dtype=torch.int32, device=self.levels[0].device)
        parts = [column.fill_(self.soi_id)]
        for index, ids in enumerate(self.levels):
            if index:
                parts.append(torch.full_like(column, self.separator_id))
            parts.append(ids.flatten(1))
        return torch.cat(parts, dim=1)

    @classmethod
    def from_sequence(cls, sequence: Tensor, geometry: Geometry, model: ModelId, num_bits: int = 16) -> TokenPyramid:
        """Inverse of :meth:`to_sequence`; the number of levels is read off the length."""
        soi, separator = 1 << num_bits, (1 << num_bits) + 1
        if sequence.ndim != 2 or sequence.shape[1] == 0 or bool((sequence[:, 0] != soi).any()):
            raise ValueError(
                f"a token sequence is [B, n] and starts with <SOI> = {soi}, got shape {tuple(sequence.shape)}"
            )
        levels: list[Tensor] = []
        position = 1
        while position < sequence.shape[1]:
            if len(levels) == len(geometry.strides):
                raise ValueError(f"{sequence.shape[1] - position} values follow the last level of the sequence")
            if levels:
                if bool((sequence[:, position] != separator).any()):
                    raise ValueError(f"expected <Q-SEP> = {separator} at position {position} of the sequence")
                position += 1
            grid = geometry.grid(len(levels))
            count = math.prod(grid)
            part = sequence[:, position : position + count]
            if part.shape[1] != count:
                raise ValueError(f"level {len(levels) + 1} needs {count} tokens, the sequence has {part.shape[1]}")
            if part.is_floating_point() or bool(((part < 0) | (part >= soi)).any()):
                raise ValueError(f"level {len(levels) + 1} holds ids outside [0, {soi})")
            levels.append(part.reshape(-1, *grid).to(torch.int32))
            position += count
        return cls(tuple(levels), geometry, model, num_bits)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenPyramid):
            return NotImplemented
        return (
            (self.geometry, self.model, self.num_bits) == (other.geometry, other.model, other.num_bits)
            and len(self.levels) == len(other.levels)
            and all(torch.equal(a, b) for a, b in zip(self.levels, other.levels, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        grids = " ".join("x".join(map(str, self.geometry.grid(i))) for i in range(len(self.levels)))
        g = self.geometry
        return (
            f"TokenPyramid({self.batch_size} x {g.frames}x{g.height}x{g.width}, levels {grids}, "
            f"{self.bits_per_pixel:.4f} bpp, {self.model})"
        )


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """Text as the model sees it.

    ``tokens`` float32 ``[B, N, D]``, ``mask`` bool ``[B, N]`` (True where a token is),
    ``pooled`` float32 ``[B, D]``, unit length.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(frozen=True, kw_only=True)
class LevelOutput:
    """What the quantizer says of one level, as tensors with gradients.

    ``presign`` float32 ``[B, K, t, h, w]``: values before the sign. ``bits`` the same shape, in {-1, +1},
    gradient straight through to ``presign``.
    """

    presign: Tensor
    bits: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenizerOutput:
    """Result of a training pass, always the same fields.

    ``reconstruction`` ``[B, 3, T, H, W]``; ``latent`` and ``levels`` as the decoder and the losses need them;
    ``kept_levels`` int64 ``[B]``: how many levels each clip was decoded from (level dropout).
    """

    reconstruction: Tensor
    latent: Tensor
    levels: tuple[LevelOutput, ...]
    kept_levels: Tensor


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Named, unweighted loss terms with their weights, and metrics that are only watched.

    ``total`` is the weighted sum of the terms, float32.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unweighted = self.terms.keys() - self.weights.keys()
        if unweighted or not self.terms:
            raise ValueError(f"every loss term needs a weight; without one: {sorted(unweighted) or 'no terms at all'}")

    @property
    def total(self) -> Tensor:
        return torch.stack([self.weights[name] * value.float() for name, value in self.terms.items()]).sum()

    def scalars(self) -> dict[str, float]:
        """Plain floats for a log: every term and metric, and ``total``."""
        values = {**self.terms, **self.metrics, "total": self.total}
        return {name: float(value.detach()) for name, value in values.items()}
