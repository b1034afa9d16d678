from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyratok.data.buckets import ASPECT_RATIOS, Bucket, BucketConfig, BucketSampler

CONFIG = BucketConfig(sides=(128, 256, 512), frames=(1, 17, 33), multiple=32)
BUCKETS = [Bucket(frames=17, height=32 * n, width=64) for n in range(1, 5)]

lengths = st.integers(1, 5000)
assignments = st.lists(st.sampled_from(BUCKETS), min_size=1, max_size=60)
sizes = st.one_of(
    st.integers(1, 7).map(lambda n: {"batch_size": n}),
    st.integers(1, 8 * BUCKETS[0].pixels).map(lambda n: {"max_pixels": n}),
)


class TestConfig:
    def test_every_combination(self) -> None:
        buckets = CONFIG.buckets()
        assert len(set(buckets)) == len(buckets) <= 3 * 3 * len(ASPECT_RATIOS)
        assert {bucket.frames for bucket in buckets} == {1, 17, 33}
        assert all(side % 32 == 0 for bucket in buckets for side in (bucket.height, bucket.width))
        shapes = {(bucket.height, bucket.width) for bucket in buckets}
        assert {(w, h) for h, w in shapes} == shapes, "upright ones mirror the others"

    def test_a_side_stands_for_an_area(self) -> None:
        config = BucketConfig(sides=(512,), frames=(17,), multiple=16)
        for bucket in config.buckets():
            assert bucket.height * bucket.width == pytest.approx(512**2, rel=0.06)

    @given(frames=lengths, height=lengths, width=lengths)
    @settings(deadline=None)
    def test_a_video_goes_to_a_bucket_it_can_fill(self, frames: int, height: int, width: int) -> None:
        bucket = CONFIG.assign(frames, height, width)
        assert bucket in CONFIG.buckets()
        assert bucket.frames <= frames
        smallest = min(b.height * b.width for b in CONFIG.buckets())
        too_large = bucket.height > height or bucket.width > width
        assert not too_large or bucket.height * bucket.width <= 1.5 * smallest

    @given(frames=lengths, height=lengths, width=lengths)
    @settings(deadline=None)
    def test_turning_the_video_turns_the_bucket(self, frames: int, height: int, width: int) -> None:
        bucket, turned = CONFIG.assign(frames, height, width), CONFIG.assign(frames, width, height)
        assert (turned.height, turned.width) == (bucket.width, bucket.height)

    @pytest.mark.parametrize(
        ("video", "bucket"),
        [
            ((40, 1080, 1920), (33, 384, 672)),
            ((33, 1920, 1080), (33, 672, 384)),
            ((16, 600, 600), (1, 512, 512)),
            ((17, 300, 400), (17, 224, 288)),
            ((500, 30, 40), (33, 96, 160)),
        ],
    )
    def test_examples(self, video: tuple[int, int, int], bucket: tuple[int, int, int]) -> None:
        assert str(CONFIG.assign(*video)) == "x".join(map(str, bucket))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"sides": ()}, "at least one side"),
            ({"frames": (17, 18)}, r"1 \+ 4k frames, got \[18\]"),
            ({"sides": (16,)}, "multiples of 32 pixels, got 16"),
            ({"aspect_ratios": (0.0,)}, "positive number"),
        ],
    )
    def test_settings_are_checked(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BucketConfig(**{"sides": (128,), "frames": (17,), "multiple": 32} | wrong)

    def test_empty_videos(self) -> None:
        with pytest.raises(ValueError, match="at least one frame and pixel, got 0x4x4"):
            CONFIG.assign(0, 4, 4)


class TestSampler:
    @given(assigned=assignments, size=sizes, seed=st.integers(0, 99), epoch=st.integers(0, 3))
    @settings(deadline=None)
    def test_an_epoch_holds_every_entry(
        self, assigned: list[Bucket], size: dict[str, int], seed: int, epoch: int
    ) -> None:
        """Once, but for those that fill up a bucket's last batch."""
        sampler = BucketSampler(assigned, seed=seed, **size)  # type: ignore[arg-type]
        count = sampler.batches_per_epoch
        steps = range(epoch * count, (epoch + 1) * count)
        drawn = Counter(i for step in steps for i in sampler.batch(step))
        assert set(drawn) == set(range(len(assigned)))
        per_bucket = Counter(assigned)
        for bucket, entries in per_bucket.items():
            own = [drawn[i] for i, b in enumerate(assigned) if b == bucket]
            batch = sampler.batch_size(bucket)
            assert sum(own) == -(-entries // batch) * batch
            assert max(own) - min(own) <= 1

    @given(assigned=assignments, size=sizes, world=st.integers(1, 4), step=st.integers(0, 200))
    @settings(deadline=None)
    def test_ranks_share_a_bucket_and_nothing_else(
        self, assigned: list[Bucket], size: dict[str, int], world: int, step: int
    ) -> None:
        ranks = [BucketSampler(assigned, rank=r, world_size=world, **size) for r in range(world)]  # type: ignore[arg-type]
        bucket = ranks[0].bucket(step)
        batches = [sampler.batch(step) for sampler in ranks]
        assert {assigned[i] for batch in batches for i in batch} == {bucket}
        assert {len(batch) for batch in batches} == {ranks[0].batch_size(bucket)}
        together = [i for batch in batches for i in batch]
        if len(together) <= assigned.count(bucket):
            assert len(set(together)) == len(together)

    @given(assigned=assignments, world=st.integers(1, 3))
    @settings(deadline=None)
    def test_several_ranks_draw_what_one_draws(self, assigned: list[Bucket], world: int) -> None:
        """At the same global batch: the number of ranks does not change the clips of a step."""
        one = BucketSampler(assigned, batch_size=2 * world)
        ranks = [BucketSampler(assigned, batch_size=2, rank=r, world_size=world) for r in range(world)]
        for step in range(5):
            assert one.batch(step) == [i for sampler in ranks for i in sampler.batch(step)]

    @given(assigned=assignments, size=sizes, start=st.integers(0, 50))
    @settings(deadline=None)
    def test_resuming_equals_going_on(self, assigned: list[Bucket], size: dict[str, int], start: int) -> None:
        whole = list(islice(BucketSampler(assigned, **size), start + 8))  # type: ignore[arg-type]
        resumed = BucketSampler(assigned, start=start, **size)  # type: ignore[arg-type]
        assert list(islice(resumed, 8)) == whole[start:]
        backwards = BucketSampler(assigned, **size)  # type: ignore[arg-type]
        assert [backwards.batch(step) for step in reversed(range(start + 8))] == whole[::-1]

    def test_epochs_and_seeds_differ(self) -> None:
        assigned = BUCKETS * 10
        sampler, other = BucketSampler(assigned, batch_size=3), BucketSampler(assigned, batch_size=3, seed=1)
        count = sampler.batches_per_epoch
        first, second = ([sampler.batch(e * count + k) for k in range(count)] for e in range(2))
        assert first != second
        assert first != [other.batch(k) for k in range(count)]
        assert Counter(assigned[b[0]] for b in first) == Counter(assigned[b[0]] for b in second)

    def test_a_budget_of_pixels(self) -> None:
        sampler = BucketSampler(BUCKETS, max_pixels=2 * BUCKETS[1].pixels)
        assert [sampler.batch_size(bucket) for bucket in BUCKETS] == [4, 2, 1, 1]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({}, "either batch_size or max_pixels"),
            ({"batch_size": 2, "max_pixels": 2}, "either batch_size or max_pixels"),
            ({"batch_size": 0}, "at least one clip"),
            ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank 2 of 2"),
        ],
    )
    def test_settings_are_checked(self, wrong: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            BucketSampler(BUCKETS, **wrong)  # type: ignore[arg-type]

    def test_nothing_to_draw(self) -> None:
        with pytest.raises(ValueError, match="no entries"):
            BucketSampler([], batch_size=1)
        with pytest.raises(ValueError, match="steps count from 0"):
            BucketSampler(BUCKETS, batch_size=1).batch(-1)
