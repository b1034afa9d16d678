from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyratok.metrics.localization import (
    ACTIVITYNET_TIOUS,
    THUMOS14_TIOUS,
    ScoredSpan,
    TrueSpan,
    localization_ap,
    temporal_iou,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def truth(start: float, end: float, label: str = "dive", video: str = "v1") -> TrueSpan:
    return TrueSpan(video, label, start, end)


def claim(start: float, end: float, score: float, label: str = "dive", video: str = "v1") -> ScoredSpan:
    return ScoredSpan(video, label, start, end, score)


spans = st.tuples(st.integers(0, 12), st.integers(1, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))
names = st.tuples(st.sampled_from(["v1", "v2", "v3"]), st.sampled_from(["dive", "jump"]))
truth_lists = st.lists(st.builds(lambda n, s: TrueSpan(*n, *s), names, spans), min_size=1, max_size=8)
claim_lists = st.lists(st.tuples(names, spans), max_size=12).flatmap(
    lambda items: st.permutations(range(len(items))).map(
        lambda ranks: [ScoredSpan(*n, *s, rank / 16) for (n, s), rank in zip(items, ranks, strict=True)]
    )
)


def ap_by_definition(truths: list[TrueSpan], claims: list[ScoredSpan], label: str, threshold: float) -> float:
    """Average precision of one class, a claim and a recall at a time."""
    truths = [t for t in truths if t.label == label]
    free = set(range(len(truths)))
    points = []
    hits = 0
    for rank, c in enumerate(sorted((c for c in claims if c.label == label), key=lambda c: -c.score), start=1):
        best = None
        for index in sorted(free):
            t = truths[index]
            shared = max(0, min(t.end, c.end) - max(t.start, c.start))
            overlap = shared / ((t.end - t.start) + (c.end - c.start) - shared)
            if t.video == c.video and overlap >= threshold and (best is None or overlap >= best[0]):
                best = overlap, index
        if best:
            free.remove(best[1])
            hits += 1
        points.append((hits, hits / rank))
    reached = range(1, hits + 1)
    return sum(max(precision for found, precision in points if found >= number) for number in reached) / len(truths)


def test_temporal_iou() -> None:
    found = temporal_iou([[0, 10], [5, 5]], [[0, 10], [5, 15], [10, 20], [5, 5]])
    np.testing.assert_allclose(found, [[1, 1 / 3, 0, 0], [0, 0, 0, 0]])
    assert temporal_iou([], [[0, 1]]).shape == (0, 1)
    assert temporal_iou([[0, 1]], []).shape == (1, 0)


@relaxed
@given(spans, spans, st.integers(-5, 5), st.sampled_from([0.25, 2, 8]))
def test_temporal_iou_is_symmetric_and_ignores_the_clock(
    a: tuple[int, int], b: tuple[int, int], shift: int, scale: float
) -> None:
    (found,) = temporal_iou([a], [b])[0]
    assert 0 <= found <= 1
    assert (found == 1) == (a == b)
    assert temporal_iou([b], [a]) == found
    moved = [[(time + shift) * scale for time in span] for span in (a, b)]
    assert temporal_iou(moved[:1], moved[1:])[0, 0] == found


@pytest.mark.parametrize("wrong", [[[2, 1]], [[0, float("nan")]], [[0, float("inf")]], [0, 1], [[0, 1, 2]]])
def test_other_spans_are_refused(wrong: list) -> None:
    with pytest.raises(ValueError, match="span"):
        temporal_iou(wrong, [[0, 1]])
    with pytest.raises(ValueError, match="span"):
        temporal_iou([[0, 1]], wrong)


def test_thresholds_of_the_benchmarks() -> None:
    assert THUMOS14_TIOUS == (0.3, 0.4, 0.5, 0.6, 0.7)
    assert ACTIVITYNET_TIOUS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@relaxed
@given(truth_lists)
def test_perfect_predictions(truths: list[TrueSpan]) -> None:
    found = localization_ap(truths, [ScoredSpan(*t, 1.0) for t in truths], ACTIVITYNET_TIOUS)
    assert found.average == pytest.approx(1)
    assert found.mean_ap == pytest.approx([1] * 10)


@relaxed
@given(truth_lists, claim_lists)
def test_against_the_definition(truths: list[TrueSpan], claims: list[ScoredSpan]) -> None:
    found = localization_ap(truths, claims)
    labels = {t.label for t in truths}
    assert set(found.per_class) == labels
    for label in labels:
        expected = [ap_by_definition(truths, claims, label, threshold) for threshold in THUMOS14_TIOUS]
        assert found.per_class[label] == pytest.approx(expected)
    assert found.mean_ap == pytest.approx(np.mean(list(found.per_class.values()), axis=0))
    assert found.average == pytest.approx(np.mean(found.mean_ap))


@relaxed
@given(truth_lists, claim_lists, st.randoms(use_true_random=False))
def test_order_does_not_matter(truths: list[TrueSpan], claims: list[ScoredSpan], random: Random) -> None:
    shuffled = random.sample(claims, len(claims))
    assert localization_ap(truths, shuffled).average == pytest.approx(localization_ap(truths, claims).average)


@relaxed
@given(truth_lists, claim_lists)
def test_false_alarms_cost_by_rank(truths: list[TrueSpan], claims: list[ScoredSpan]) -> None:
    before = localization_ap(truths, claims).average
    assert localization_ap(truths, [*claims, ScoredSpan("v1", truths[0].label, 50, 60, -1.0)]).average == before
    assert localization_ap(truths, [*claims, ScoredSpan("v1", truths[0].label, 50, 60, 2.0)]).average <= before


def test_by_hand() -> None:
    truths = [truth(0, 10), truth(20, 30), truth(0, 10, video="v2"), truth(40, 50)]
    claims = [claim(0, 10, 0.9), claim(0, 10, 0.8), claim(20, 26, 0.7), claim(0, 10, 0.6, video="v2")]
    found = localization_ap(truths, claims, (0.5, 0.7))
    # right, wrong, right (tIoU 0.6), right: precisions 1, 1/2, 2/3, 3/4
    assert found.mean_ap[0] == pytest.approx((1 + 3 / 4 + 3 / 4) / 4)
    assert found.mean_ap[1] == pytest.approx((1 + 2 / 4) / 4)
    assert found.average == pytest.approx((2.5 + 1.5) / 8)


def test_a_claim_takes_the_best_truth_that_is_free() -> None:
    truths = [truth(0, 10), truth(0, 12)]
    assert localization_ap(truths, [claim(0, 10, 0.9), claim(0, 10, 0.8)], (0.8,)).average == 1
    assert localization_ap(truths, [claim(0, 10, 0.9), claim(0, 10, 0.8)], (0.9,)).average == 0.5


def test_classes() -> None:
    truths = [truth(0, 1), truth(0, 1, "jump")]
    found = localization_ap(truths, [claim(0, 1, 0.5), claim(0, 1, 0.9, "sleep"), claim(0, 1, 0.9, "DIVE")])
    assert found.per_class == {"dive": (1.0,) * 5, "jump": (0.0,) * 5}
    assert found.average == 0.5


@pytest.mark.parametrize(
    ("truths", "claims", "thresholds", "message"),
    [
        ([], [], (0.5,), "no true span"),
        ([truth(0, 1)], [claim(0, 1, float("nan"))], (0.5,), "finite"),
        ([truth(0, 1)], [claim(2, 1, 0.5)], (0.5,), "start before end"),
        ([truth(0, 1), truth(2, 1, "jump")], [], (0.5,), "start before end"),
        ([truth(0, 1)], [], (), "thresholds"),
        ([truth(0, 1)], [], (0.5, 50), "thresholds"),
    ],
)
def test_bad_input(truths: list, claims: list, thresholds: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        localization_ap(truths, claims, thresholds)
