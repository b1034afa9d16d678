from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pyratok.data.datasets import MixedClips, batches, to_signed

FRAMES, SIZE = 3, 4


class Marked:
    """Clips whose first value says which source they are from, the rest being random."""

    def __init__(self, mark: int) -> None:
        self.mark = mark

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        clip = rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
        clip[0, 0, 0, 0] = self.mark
        return clip


def clips(length: int = 20, seed: int = 0, weights: Sequence[float] = (1.0, 1.0)) -> MixedClips:
    return MixedClips([Marked(0), Marked(1)], weights, frames=FRAMES, size=SIZE, length=length, seed=seed)


def test_a_clip_is_a_function_of_seed_and_index() -> None:
    forwards, backwards = clips(), clips()
    first = [forwards[i] for i in range(20)]
    again = [backwards[i] for i in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert first[0].shape == (3, FRAMES, SIZE, SIZE)
    assert first[0].dtype == torch.uint8
    assert len({clip.numpy().tobytes() for clip in first}) == 20
    assert not any(torch.equal(a, clips(seed=1)[i]) for i, a in enumerate(first))


def test_the_length_of_a_run_does_not_change_its_clips() -> None:
    assert all(torch.equal(clips(5)[i], clips(500)[i]) for i in range(5))


def test_ends() -> None:
    dataset = clips(3)
    assert len(list(dataset)) == len(dataset) == 3  # type: ignore[call-overload]
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"clip {index} of 3"):
            dataset[index]


def test_sources_are_drawn_by_weight() -> None:
    dataset = clips(2000, weights=(1.0, 3.0))
    marks = torch.tensor([int(dataset[i][0, 0, 0, 0]) for i in range(2000)])
    assert float(marks.float().mean()) == pytest.approx(0.75, abs=0.03)
    assert all(int(clips(50, weights=(0.0, 1.0))[i][0, 0, 0, 0]) == 1 for i in range(50))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0)])
def test_weights_are_checked(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="need as many non-negative weights"):
        clips(weights=weights)


def test_no_sources() -> None:
    with pytest.raises(ValueError, match="nothing to draw clips from"):
        MixedClips([], [], frames=1, size=1, length=1)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_starting_later_equals_skipping(workers: int) -> None:
    whole = list(batches(clips(), 3, workers=0))
    assert [batch.shape for batch in whole] == [(3, 3, FRAMES, SIZE, SIZE)] * 6
    for start in (0, 4):
        rest = list(batches(clips(), 3, start=start, workers=workers))
        assert len(rest) == 6 - start
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))
    assert not list(batches(clips(), 3, start=6, workers=0))


def test_batches_do_not_draw_from_the_clips_generators() -> None:
    torch.manual_seed(5)
    first = next(batches(clips(), 2, workers=0))
    torch.manual_seed(6)
    assert torch.equal(next(batches(clips(), 2, workers=0)), first)


def test_signed_values_span_the_range() -> None:
    out = to_signed(torch.tensor([0, 255, 128], dtype=torch.uint8))
    assert out.dtype == torch.float32
    assert out[:2].tolist() == [-1, 1]
    assert float(out[2]) == pytest.approx(0, abs=0.01)
