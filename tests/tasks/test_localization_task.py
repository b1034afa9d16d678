"""Spans from planted scores, exact; properties from any scores."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from planted_colours import ColourTokenizer, coloured
from pyratok.codec.container import PyraWriter, open_tokens
from pyratok.tasks.localization import Run, find_runs, localize, score_curves
from pyratok.types import Video

Scores = NDArray[np.float64]


@pytest.fixture
def model() -> ColourTokenizer:
    return ColourTokenizer()


def box(frames: int, *runs: tuple[int, int, float]) -> Scores:
    scores = np.zeros(frames)
    for first, end, value in runs:
        scores[first:end] = value
    return scores


def extents(runs: list[Run]) -> list[tuple[int, int]]:
    return [(run.first, run.end) for run in runs]


@pytest.mark.parametrize(("first", "end"), [(50, 90), (50, 75), (0, 40), (160, 200)])
def test_an_action_as_long_as_the_window_ends_where_it_does(first: int, end: int) -> None:
    """Also at the ends of the clip, where the window is cut."""
    (run,) = find_runs(box(200, (first, end, 0.3)))
    assert (run.first, run.end) == (first, end)
    assert 0.15 < run.score < 0.3


def test_the_score_is_the_mean_of_the_smoothed_scores() -> None:
    (run,) = find_runs(box(9, (3, 6, 0.6)), window=3)
    assert run == Run(3, 6, pytest.approx((0.4 + 0.6 + 0.4) / 3))
    (run,) = find_runs(box(9, (3, 6, 0.6)), window=1)
    assert run == Run(3, 6, pytest.approx(0.6))


def test_several_actions_come_best_first_and_some_are_left_out() -> None:
    scores = box(300, (30, 70, 0.2), (120, 170, 0.35), (220, 260, 0.3))
    # A frame is in where enough frames of its window are: 10, 12 and 18 of 25.
    assert extents(find_runs(scores, threshold=0.4)) == [(117, 173), (219, 261), (35, 65)]
    assert extents(find_runs(scores, threshold=0.7)) == [(125, 165), (228, 252)]
    assert find_runs(scores, threshold=0.4, most=2) == find_runs(scores, threshold=0.4)[:2]


def test_of_equal_means_the_longest_run_comes_first() -> None:
    assert extents(find_runs(box(40, (5, 8, 0.5), (20, 30, 0.5)), window=1)) == [(20, 30), (5, 8)]


def test_a_dip_shorter_than_half_a_window_does_not_cut_an_action() -> None:
    scores = box(200, (60, 140, 0.4))
    scores[98:103] = 0
    assert extents(find_runs(scores)) == [(60, 140)]
    assert len(find_runs(scores, window=1)) == 2


def test_an_action_may_fill_its_clip_where_the_ground_is_not_that_of_the_clip() -> None:
    scores = box(100, (15, 90, 0.4))
    assert extents(find_runs(scores)) == [(15, 90)]
    assert find_runs(scores, ground=0.5) == []
    assert extents(find_runs(scores, ground=0.1)) == [(15, 90)]
    assert extents(find_runs(scores + 0.4)) == [(0, 100)]
    assert extents(find_runs(scores + 0.4, ground=0.1)) == [(15, 90)]


def test_absolute_thresholds_find_the_whole_clip_or_nothing() -> None:
    flat = np.full(30, 0.3)
    assert find_runs(flat, ground=0.5) == []
    assert find_runs(flat, threshold=0.2, absolute=True) == [Run(0, 30, pytest.approx(0.3))]
    assert find_runs(flat, threshold=0.31, absolute=True) == []


def test_the_maximum_itself_is_always_reached() -> None:
    scores = np.tile([0.1, 0.1, 0.1, 0.3], 10)
    assert extents(find_runs(scores, window=1, threshold=1.0, most=99)) == [(i, i + 1) for i in range(3, 40, 4)]


any_scores = arrays(np.float64, st.integers(1, 120), elements=st.floats(-1, 1, width=32))


@given(
    scores=any_scores,
    window=st.integers(1, 60),
    threshold=st.floats(0.01, 1),
    ground=st.floats(0, 0.99),
    absolute=st.booleans(),
    most=st.integers(1, 9),
)
def test_runs_are_disjoint_within_the_clip_and_sorted(
    scores: Scores, window: int, threshold: float, ground: float, absolute: bool, most: int
) -> None:
    runs = find_runs(scores, window=window, threshold=threshold, ground=ground, absolute=absolute, most=most)
    assert len(runs) <= most
    assert all(0 <= run.first < run.end <= len(scores) for run in runs)
    assert all(before.score >= after.score for before, after in pairwise(runs))
    assert all(before.end < after.first for before, after in pairwise(sorted(runs)))
    assert all(scores.min() - 1e-6 <= run.score <= scores.max() + 1e-6 for run in runs)


@given(
    scores=any_scores,
    window=st.integers(1, 60),
    threshold=st.floats(0.01, 1),
    ground=st.floats(0, 0.99),
    floor=st.floats(0, 1),
)
def test_scores_below_the_floor_are_no_action(
    scores: Scores, window: int, threshold: float, ground: float, floor: float
) -> None:
    """Nor are negative ones, however far they rise above the rest; of what is found, every best frame is above."""
    settings = {"window": window, "threshold": threshold, "ground": ground, "floor": floor, "most": 200}
    low = scores - max(0.0, scores.max() - floor) - 1e-5
    assert find_runs(low, **settings) == []
    assert find_runs(-np.abs(scores), **settings | {"floor": 0.01}) == []
    for run in find_runs(scores, **settings):
        assert scores[max(0, run.first - window) : run.end + window].max() >= floor - 1e-6


@given(
    noise=arrays(np.float64, st.integers(1, 120), elements=st.floats(-0.0049, 0.0049)),
    level=st.floats(-1, 1),
    window=st.integers(1, 60),
    threshold=st.floats(0.01, 1),
    ground=st.floats(0, 0.99),
)
def test_a_flat_curve_is_no_action(noise: Scores, level: float, window: int, threshold: float, ground: float) -> None:
    """Wherever it lies, a curve that hardly moves has no spans."""
    assert find_runs(level + noise, window=window, threshold=threshold, ground=ground) == []


def test_a_weak_run_beside_a_strong_one_is_left_out() -> None:
    scores = box(200, (20, 60, 0.03), (120, 160, 0.05))
    assert extents(find_runs(scores, floor=0.04)) == [(120, 160)]
    assert len(find_runs(scores, floor=0.0)) == 2
    assert find_runs(scores, floor=0.06) == []


@given(scores=any_scores, window=st.integers(1, 30), gain=st.floats(1, 10), shift=st.floats(0, 1))
def test_above_the_floor_only_the_shape_of_the_scores_counts(
    scores: Scores, window: int, gain: float, shift: float
) -> None:
    """A share of the way is the same whatever range cosines happen to lie in."""
    scores = np.abs(scores).round(2)
    settings = {"window": window, "threshold": 0.437, "ground": 0.5, "floor": 0.0, "most": 200}
    assume(find_runs(scores, **settings))
    before, after = (sorted(extents(find_runs(s, **settings))) for s in (scores, gain * scores + shift))
    assert before == after


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"most": 0}, "most must be at least 1, got 0"),
        ({"ground": 1.0}, "a quantile in"),
        ({"floor": 1.5}, "floor is a cosine in"),
        ({"threshold": 0.0}, "say absolute=True, got 0.0"),
        ({"threshold": 1.5}, "a share in"),
        ({"threshold": float("nan")}, "a share in"),
        ({"threshold": -2.0, "absolute": True}, "a cosine in"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        find_runs(np.zeros(3), **settings)  # type: ignore[arg-type]


def test_spans_of_planted_colours(model: ColourTokenizer) -> None:
    tokens = model.encode(coloured(("blue", 40), ("red", 30), ("blue", 60), ("green", 31), ("blue", 40)))
    spans = localize(model, tokens, ["red", " a green screen "], level=0, ground=0.5)
    assert {(span.query, span.start, span.end) for span in spans} == {
        ("red", 4.0, 7.0),
        (" a green screen ", 13.0, 16.1),
    }
    assert all(span.score > 0.5 for span in spans)
    assert spans[0].score >= spans[1].score


def test_the_same_action_twice(model: ColourTokenizer) -> None:
    tokens = model.encode(coloured(("blue", 50), ("red", 30), ("blue", 50), ("red", 40), ("blue", 50)))
    spans = localize(model, tokens, ["red"], level=0, ground=0.5)
    assert [(span.start, span.end) for span in sorted(spans)] == [(5.0, 8.0), (13.0, 17.0)]
    assert len(localize(model, tokens, ["red"], most=1)) == 1


def test_a_part_is_timed_by_the_whole(model: ColourTokenizer) -> None:
    tokens = model.encode(coloured(("blue", 80), ("red", 40), ("blue", 80)))
    part = tokens.time_slice(10, 40)  # frames 37 to 156
    assert part.geometry.first_step == 10
    assert [(span.start, span.end) for span in localize(model, part, ["red"], level=0, ground=0.5)] == [(8.0, 12.0)]


def test_a_file_is_as_good_as_its_tokens(model: ColourTokenizer, tmp_path: Path) -> None:
    tokens = model.encode(coloured(("blue", 50), ("red", 30), ("blue", 50)))
    with PyraWriter(tmp_path / "a.pyra", segment_steps=4) as file:
        file.append(tokens)
    assert localize(model, open_tokens(tmp_path / "a.pyra"), ["red"]) == localize(model, tokens, ["red"])


def test_scores_of_steps_leave_padding_out(model: ColourTokenizer) -> None:
    tokens = model.encode(coloured(("red", 3), ("blue", 3)))
    scores, edges = score_curves(model, tokens, ["red", "blue", "green"], level=0)
    assert scores.shape == (3, 6)
    assert edges.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert scores[0, :3].min() > 0.99 > scores[0, 3:].max()
    assert scores[1, 3:].min() > 0.99 > scores[1, :3].max()
    assert scores[2].max() < 0


def test_what_is_there_all_the_time_is_one_span(model: ColourTokenizer) -> None:
    (span,) = localize(model, model.encode(coloured(("red", 31))), ["red"])
    assert (span.start, span.end) == (0.0, 3.1)
    assert localize(model, model.encode(coloured(("red", 31))), ["blue"]) == ()


def test_bad_input_is_refused(model: ColourTokenizer) -> None:
    tokens = model.encode(coloured(("red", 5)))
    with pytest.raises(ValueError, match=r"one clip at a time, got a batch of 2; take tokens.select\(i\)"):
        localize(model, model.encode(Video(coloured(("red", 5)).plain().repeat(2, 1, 1, 1, 1), fps=10.0)), ["red"])
    with pytest.raises(ValueError, match="have no frame rate"):
        localize(model, replace(tokens, geometry=replace(tokens.geometry, fps=None)), ["red"])
    with pytest.raises(ValueError, match="give at least one query"):
        localize(model, tokens, [])
    with pytest.raises(ValueError, match="one per query"):
        localize(model, tokens, "red")
    with pytest.raises(ValueError, match="query 1 has no letters"):
        localize(model, tokens, ["..."])
    with pytest.raises(ValueError, match="query 1 and query 2 are the same"):
        localize(model, tokens, ["red", "RED"])
    with pytest.raises(ValueError, match="window must be at least 1"):
        localize(model, tokens, ["red"], window=0)
