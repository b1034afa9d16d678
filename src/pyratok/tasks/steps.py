"""What the tokens of a clip say, step by step in time: the vectors that whole-clip and whole-frame uses start from.

Source: zero-shot uses, PyraTok (arXiv 2601.16210), sec. 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyratok.codec.container import PyraReader
from pyratok.model.base import VideoTokenizer
from pyratok.types import Geometry, TokenPyramid

Tokens = TokenPyramid | PyraReader
"""Tokens in memory, or in a file of any length that is read part by part."""

CELLS_AT_ONCE = 1 << 16
"""Cells of a level whose text features are held at a time: 100 MB at 384 dimensions, more inside the head."""


def step_vectors(model: VideoTokenizer, tokens: Tokens, level: int = -1) -> Tensor:
    """The text features of each step of a level, pooled over space: float32 ``[B, t, D]``, not normalised.

    A cell that shows something has a longer vector and leads its step: cells count by their length, so that what is
    pooled is the mean of ``|f| f``, which tells nouns better than that of ``f`` (docs/understanding.md). Steps and
    cells of padding alone are left out, so t is that of :func:`step_edges`. ``level`` counts from 0, or from the last
    one held with -1. Long clips are read in parts, which changes nothing but rounding: the text head looks around in
    space alone.

    Raises ValueError as :meth:`~pyratok.model.base.VideoTokenizer.text_features`.
    """
    level = held_level(tokens, level)
    if isinstance(tokens, PyraReader) and tokens.segment_steps is None:
        tokens = tokens.read(levels=level + 1)  # of a file written whole nothing less than a level can be read
    read: Callable[[int, int], TokenPyramid]
    if isinstance(tokens, PyraReader):
        read = partial(tokens.read, levels=level + 1)
    else:
        read = tokens.prefix(level + 1).time_slice
    geometry = tokens.geometry
    stride_t, stride_h, stride_w = geometry.strides[level]
    rows, columns = math.ceil(geometry.height / stride_h), math.ceil(geometry.width / stride_w)
    size = max(1, CELLS_AT_ONCE // (tokens.batch_size * geometry.latent_stride // stride_t * rows * columns))
    parts = []
    for start in range(0, geometry.latent_steps, size):
        part = read(start, min(start + size, geometry.latent_steps))
        cells = model.text_features(part, level)[:, :, :rows, :columns]
        parts.append((cells * torch.linalg.vector_norm(cells, dim=-1, keepdim=True)).mean(dim=(2, 3)))
    return torch.cat(parts, dim=1)[:, : len(step_edges(geometry, level)) - 1]


def held_level(tokens: Tokens, level: int) -> int:
    """``level`` counted from 0. Raises ValueError where the tokens do not hold it."""
    held = tokens.num_levels if isinstance(tokens, PyraReader) else len(tokens.levels)
    if not -held <= level < held:
        raise ValueError(f"these tokens hold levels 0 to {held - 1}, asked for level {level}")
    return level % held


def step_edges(geometry: Geometry, level: int) -> NDArray[np.int64]:
    """Step j of a level covers the frames ``edges[j] .. edges[j + 1] - 1`` of the true video: int64 ``[t + 1]``.

    Steps of padding alone are left out. Frames count from the start of the video, also in a part that begins later.
    """
    stride = geometry.strides[level][0]
    begin = 1 + (geometry.first_step - 1) * geometry.latent_stride if geometry.first_step else 0
    end = begin + geometry.frames
    inner = np.arange(begin if geometry.first_step else 1, end, stride)
    return np.concatenate([[] if geometry.first_step else [0], inner, [end]]).astype(np.int64)
