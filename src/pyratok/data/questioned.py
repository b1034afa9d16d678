"""Rendered clips with several questions each, as a dataset: what a reader of tokens is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyratok.data.frame_store import FrameStore
from pyratok.data.manifests import gather
from pyratok.data.mixes import DataConfig, kinds_there
from pyratok.data.questions import KINDS, Kind, Question, QuestionedScenes
from pyratok.data.synthetic import captioned_sources


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionedItem:
    """A clip: ``video`` uint8 ``[3, T, S, S]``, and one or more questions about it, each of another kind."""

    video: Tensor
    questions: tuple[Question, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class QuestionedBatch:
    """``videos`` uint8 ``[B, 3, T, S, S]`` and the questions about each."""

    videos: Tensor
    questions: tuple[tuple[Question, ...], ...]


class QuestionedMix(Dataset[QuestionedItem]):
    """``length`` clips of ``frames x size x size`` with up to ``most`` questions; item i is a function of (seed, i)."""

    def __init__(
        self, scenes: QuestionedScenes, *, frames: int, size: int, length: int, most: int, seed: int = 0
    ) -> None:
        self.scenes = scenes
        self.frames, self.size, self.length, self.most, self.seed = frames, size, length, most, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> QuestionedItem:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        rng = np.random.default_rng((self.seed, index))
        clip, questions = self.scenes.sample_several(rng, self.frames, self.size, self.most)
        return QuestionedItem(video=torch.from_numpy(clip.video).permute(3, 0, 1, 2), questions=questions)

    @property
    def nouns(self) -> tuple[str, ...]:
        """All names of objects that clips may show, in order."""
        return tuple(sorted(self.scenes.nouns))

    def collate(self, items: Sequence[QuestionedItem]) -> QuestionedBatch:
        return QuestionedBatch(
            videos=torch.stack([item.video for item in items]), questions=tuple(item.questions for item in items)
        )


def questioned_clips(
    data: DataConfig,
    roots: Sequence[str | Path],
    cache: Path,
    *,
    frames: int,
    size: int,
    length: int,
    most: int,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> QuestionedMix:
    """Clips of the scenes that the media under ``roots`` can make, of seen nouns; decoded frames go to ``cache``.

    Raises ValueError where there are no sprites with captions.
    """
    media = gather(roots, exclude=data.exclude)
    kinds_there(data, media, captioned=True)
    scenes, _ = captioned_sources(media, FrameStore(cache), data.scene, data.footage_zoom)
    if scenes is None:
        raise ValueError("questions are asked about rendered scenes: add sprites with captions")
    source = QuestionedScenes(scenes, [cast(Kind, kind) for kind in kinds])
    return QuestionedMix(source, frames=frames, size=size, length=length, most=most, seed=seed)
