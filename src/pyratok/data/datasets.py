"""Training clips as a deterministic stream."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pyratok.data.sources import ClipSource


class ClipDataset(Protocol):
    """What training draws from: item i is always the same clip, and ``collate`` makes a batch of several."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def collate(self, items: Sequence[Any]) -> Any: ...


class MixedClips(Dataset[Tensor]):
    """Clips drawn from several sources; item i is a pure function of (seed, i).

    An item is uint8 ``[3, T, S, S]``; :func:`to_signed` brings a batch to [-1, 1].
    """

    def __init__(
        self,
        sources: Sequence[ClipSource],
        weights: Sequence[float],
        *,
        frames: int,
        size: int,
        length: int,
        seed: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("nothing to draw clips from: add videos or photographs (sprites move over photographs)")
        if len(sources) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"{len(sources)} sources need as many non-negative weights, got {list(weights)}")
        self.sources = list(sources)
        self.weights = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.frames, self.size, self.length, self.seed = frames, size, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        rng = np.random.default_rng((self.seed, index))
        source = self.sources[rng.choice(len(self.sources), p=self.weights)]
        clip = source.sample(rng, self.frames, self.size)
        return torch.from_numpy(clip).permute(3, 0, 1, 2)

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        """``[B, 3, T, S, S]``."""
        return torch.stack(list(items))


def to_signed(clips: Tensor) -> Tensor:
    """uint8 ``[B, 3, T, H, W]`` to float32 in [-1, 1]."""
    return clips.float().div_(127.5).sub_(1.0)


def batches(
    dataset: ClipDataset, batch_size: int, start: int = 0, workers: int = 1, *, rank: int = 0, world: int = 1
) -> Iterator[Any]:
    """Collated batches from batch number ``start`` on; the same however often one stops and starts again.

    ``world`` processes take turns: the batches that ``rank`` counts are every ``world``-th of the dataset's.
    """
    numbers = range(start * world + rank, len(dataset) // batch_size, world)
    groups = [list(range(number * batch_size, (number + 1) * batch_size)) for number in numbers]
    loader: DataLoader[Any] = DataLoader(
        cast(Dataset[Any], dataset),
        batch_sampler=groups,
        collate_fn=dataset.collate,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    return iter(loader)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A worker that a signal to the whole process group kills takes the trainer along before that could save."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
