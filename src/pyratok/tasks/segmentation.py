"""Zero-shot segmentation: which places of a video go with which word?

Cosines of the tokens' text space with each word, upsampled from the token grid to pixels; beside the words stands the
background, a label whose score is one number everywhere. The best label wins, as it is or after a fully connected CRF
has moved the borders to edges of the picture (:mod:`pyratok.tasks.crf`).

Source: PyraTok (arXiv 2601.16210), sec. 4. Scores from several levels at once and the background label are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pyratok.model.base import VideoTokenizer, check_video
from pyratok.tasks.classification import check_texts, embed_texts
from pyratok.tasks.crf import CRFConfig, refine
from pyratok.tasks.steps import step_edges
from pyratok.types import Geometry, TokenPyramid

BACKGROUND = 0.08
"""The cosine that a word has to beat. Of 0.05 to 0.25 the one with the largest mean Jaccard of pyratok-nano's tokens on
rendered clips of two or three seen objects: 0.35, against 0.22 at 0.15 and 0.01 at the 0.25 of the head's training."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One connected space-time tube: ``masks`` bool ``[T, H, W]``, ``score`` the mean cosine inside it."""

    word: str
    masks: Tensor
    score: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What of a clip goes with each of ``words``, at its true size, on the CPU.

    ``scores`` float32 ``[W, T, H, W]``: cosines in [-1, 1]. ``masks`` bool of the same shape: at most one word holds a
    pixel. ``fps``: frames per second, None where unknown.
    """

    words: tuple[str, ...]
    scores: Tensor
    masks: Tensor
    fps: float | None

    def instances(self, min_share: float = 0.05) -> tuple[Instance, ...]:
        """Each word's masks taken apart into tubes that hang together in space and time, best score first.

        Pixels hang together where they share a side in space, or are the same pixel of neighbouring frames. A tube of
        less than ``min_share`` of the pixels of its word's largest one is a speck and left out.
        """
        if not 0 <= min_share <= 1:
            raise ValueError(f"min_share is a share of the largest tube in [0, 1], got {min_share}")
        found = []
        for word, scores, masks in zip(self.words, self.scores, self.masks, strict=True):
            labels = torch.from_numpy(connected_tubes(masks.numpy()))
            sizes = labels.flatten().bincount()
            sums = labels.flatten().bincount(weights=scores.flatten().double())
            for label in range(1, len(sizes)):
                if sizes[label] >= min_share * sizes[1:].max():
                    found.append(Instance(word, labels == label, float(sums[label] / sizes[label])))
        return tuple(sorted(found, key=lambda instance: -instance.score))


def segment(
    model: VideoTokenizer,
    tokens: TokenPyramid,
    words: Sequence[str],
    *,
    video: Tensor | None = None,
    crf: CRFConfig | None = None,
    level: int | Literal["fused"] = -1,
    background: float | None = BACKGROUND,
) -> Segmentation:
    """A mask per word for one clip.

    ``level``: whose tokens are compared, from 0, or from the last one held with -1; "fused" takes the mean of the
    cosines of all levels held. ``background``: the score of "none of these", a cosine; None gives every pixel to a
    word. ``crf``: refine the masks by the pixels of ``video`` ``[1, 3, T, H, W]`` in [-1, 1], the one that the tokens
    were made of; without it the video is not looked at. Scores stay as they are. Memory is 5 bytes per word and pixel,
    and with the CRF what :func:`~pyratok.tasks.crf.refine` takes.

    Raises ValueError for several clips, words as :func:`~pyratok.tasks.classification.check_texts`, an unknown level,
    tokens of another model, a video of another size, and a CRF without a video.
    """
    words = check_texts(words, "word")
    if tokens.batch_size != 1:
        raise ValueError(f"one clip at a time, got {tokens.batch_size}; choose one with tokens.select(index)")
    if background is not None and not -1 <= background <= 1:
        raise ValueError(f"background must be a cosine in [-1, 1], or None for none, got {background}")
    _check_video(video, crf, tokens.geometry)
    scores = word_scores(model, tokens, embed_texts(model, words), level)
    labels = scores
    if background is not None:
        labels = torch.cat([scores, torch.full_like(scores[:1], background)])
    if crf is not None:
        assert video is not None
        labels = refine(labels, video.as_subclass(Tensor).cpu(), crf)
    best = labels.argmax(dim=0)
    masks = torch.stack([best == index for index in range(len(words))])
    return Segmentation(tuple(words), scores, masks, tokens.geometry.fps)


def word_scores(
    model: VideoTokenizer, tokens: TokenPyramid, vectors: Tensor, level: int | Literal["fused"] = -1
) -> Tensor:
    """Cosines float32 ``[W, T, H, W]`` of one clip with unit ``vectors`` ``[W, D]``, on the CPU.

    Raises ValueError for an unknown level and tokens of another model.
    """
    held = len(tokens.levels)
    if isinstance(level, str) and level != "fused":
        raise ValueError(f"level is a number or 'fused', got {level!r}")
    levels = range(held) if level == "fused" else [level]
    maps = [upsample(_cosines(model, tokens, vectors, index), tokens.geometry, index % held) for index in levels]
    return torch.stack(maps).mean(dim=0) if len(maps) > 1 else maps[0]


def upsample(values: Tensor, geometry: Geometry, level: int) -> Tensor:
    """Values ``[W, t, h, w]`` on the token grid of a level, counted from 0, to the true pixels ``[W, T, H, W]``.

    Linear between the centres of cells, in space and in time, where a step's centre is that of the frames it covers;
    what lies before the first centre or after the last has its value.
    """
    edges = step_edges(geometry, level)
    centres = (edges[:-1] + edges[1:] - 1) / 2 - edges[0]
    place = np.interp(np.arange(geometry.frames), centres, np.arange(len(centres)))
    before = torch.from_numpy(place).long()
    after = (before + 1).clamp_max(len(centres) - 1)
    share = torch.from_numpy(place).to(values)[:, None, None] - before[:, None, None]
    _, stride_h, stride_w = geometry.strides[level]
    out = values.new_empty(len(values), geometry.frames, geometry.height, geometry.width)
    for target, steps in zip(out, values, strict=True):
        frames = torch.lerp(steps[before], steps[after], share)
        wide = F.interpolate(frames[None], scale_factor=(stride_h, stride_w), mode="bilinear")[0]
        target[:] = wide[:, : geometry.height, : geometry.width]
    return out


def connected_tubes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers from 1 for the 6-connected parts of a volume ``[T, H, W]``, 0 outside; in the order of their first pixel.

    Runs along rows are the nodes; two of neighbouring rows or frames that overlap are one part.
    """
    _, height, width = mask.shape
    # A column and a row of nothing keep runs, and neighbours, from reaching round a border.
    padded = np.pad(mask, ((0, 0), (0, 1), (0, 1)))
    starts, stops = np.flatnonzero(np.diff(padded.ravel(), prepend=False)).reshape(-1, 2).T
    ties = [_overlaps(starts, stops, shift) for shift in (width + 1, (height + 1) * (width + 1))]
    parts = _merge(len(starts), np.concatenate(ties))
    _, numbers = np.unique(parts, return_inverse=True)
    labels = np.zeros(padded.size, np.int64)
    labels[padded.ravel()] = np.repeat(numbers + 1, stops - starts)
    return labels.reshape(padded.shape)[:, :height, :width]


def _cosines(model: VideoTokenizer, tokens: TokenPyramid, vectors: Tensor, level: int) -> Tensor:
    """``[W, t, h, w]`` of the steps that the tokens hold."""
    space = model.text_space(tokens, level)[0]
    return (space @ vectors.T).movedim(-1, 0).float().cpu()


def _check_video(video: Tensor | None, crf: CRFConfig | None, geometry: Geometry) -> None:
    if video is None:
        if crf is not None:
            raise ValueError("the CRF looks at pixels: give the video that the tokens were made of, or crf=None")
        return
    check_video(video)
    wanted = (1, 3, geometry.frames, geometry.height, geometry.width)
    if tuple(video.shape) != wanted:
        raise ValueError(
            f"these tokens are of a video of shape {wanted}, got one of {tuple(video.shape)}; give the one that they "
            "were made of, at the size that it had then"
        )


def _overlaps(starts: NDArray[np.int64], stops: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Pairs ``[P, 2]`` of runs of which the first, moved ahead by ``shift``, shares a pixel with the second."""
    first = np.searchsorted(stops, starts + shift, side="right")
    counts = np.maximum(np.searchsorted(starts, stops + shift, side="left") - first, 0)
    run = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([run, np.repeat(first, counts) + within], axis=1)


def _merge(count: int, ties: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest node that each of ``count`` nodes is tied to, through any number of others; ``ties`` ``[P, 2]``."""
    root = np.arange(count)
    while len(ties):
        low, high = np.sort(root[ties], axis=1).T
        ties, low, high = ties[low != high], low[low != high], high[low != high]
        np.minimum.at(root, high, low)
        while not np.array_equal(root, root[root]):
            root = root[root]
    return root
