from __future__ import annotations

import numpy as np
import pytest

from fakes import FakeTokenizer
from pyratok.data.datasets import MixedClips
from pyratok.eval.codebook_usage import UsageProtocol, evaluate_usage


class Noise:
    """A clip source of uniform noise."""

    def sample(self, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
        return rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def clips(protocol: UsageProtocol, length: int | None = None) -> MixedClips:
    length = protocol.most_clips if length is None else length
    return MixedClips([Noise()], [1.0], frames=protocol.frames, size=protocol.size, length=length, seed=protocol.seed)


def test_every_level_sees_the_budget_and_no_batch_more():
    protocol = UsageProtocol(tokens=100, frames=5, size=32, batch_size=2)
    record = evaluate_usage(FakeTokenizer(), clips(protocol), protocol)
    counts = [level.tokens for level in record.usage.levels]
    # 5 frames of 32x32: 5, 2 x 2 x 2 and 2 x 4 x 4 tokens a clip
    assert record.clips == 20
    assert counts == [20 * 5, 20 * 8, 20 * 32]
    assert record.usage.pooled.tokens == sum(counts)
    assert record.to_dict()["protocol"]["tokens"] == 100


def test_progress_rises_to_one():
    protocol = UsageProtocol(tokens=40, frames=5, size=32, batch_size=2)
    shares: list[float] = []
    evaluate_usage(FakeTokenizer(), clips(protocol), protocol, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_too_few_clips_are_refused():
    protocol = UsageProtocol(tokens=1000, frames=5, size=32, batch_size=2)
    with pytest.raises(ValueError, match="fewer than the 1000 asked"):
        evaluate_usage(FakeTokenizer(), clips(protocol, length=4), protocol)
