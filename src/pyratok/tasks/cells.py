"""Tokens one by one: what each of a clip says in the text space."""

from __future__ import annotations

import math

from torch import Tensor

from pyratok.model.base import VideoTokenizer
from pyratok.tasks.steps import step_edges
from pyratok.types import Geometry, TokenPyramid


def cell_vectors(model: VideoTokenizer, tokens: TokenPyramid, level: int = -1) -> Tensor:
    """Text features of the tokens of a level of one clip: float32 ``[t, h, w, D]``, not normalised.

    Tokens of padding alone are left out. ``level`` counts from 0, or from the last one held with -1. Raises ValueError
    as :meth:`~pyratok.model.base.VideoTokenizer.text_features`.
    """
    features = model.text_features(tokens, level)[0]
    return true_cells(features, tokens.geometry, level % len(tokens.levels))


def true_cells(values: Tensor, geometry: Geometry, level: int) -> Tensor:
    """``[t, h, w, ...]`` without the cells of padding alone."""
    _, stride_h, stride_w = geometry.strides[level]
    steps = len(step_edges(geometry, level)) - 1
    rows, columns = math.ceil(geometry.height / stride_h), math.ceil(geometry.width / stride_w)
    return values[:steps, :rows, :columns]
