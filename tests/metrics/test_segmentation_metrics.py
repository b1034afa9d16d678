import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pyratok.metrics.segmentation import (
    IOU_THRESHOLDS,
    Mask,
    ScoredTube,
    TrueTube,
    Tube,
    VideoInstanceScores,
    compress_counts,
    decompress_counts,
    jaccard,
    match_tubes,
    mean_jaccard,
    tube_iou,
    video_instance_ap,
)

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

masks = arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=6))
pairs_of_masks = array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def row(*pixels: int, width: int = 10) -> Tube:
    """One frame, one row, with these pixels set."""
    return Tube.from_masks(np.isin(np.arange(width), pixels)[None, None])


def score(*videos: tuple[Sequence[TrueTube], Sequence[ScoredTube]]) -> VideoInstanceScores:
    return video_instance_ap(itertools.chain.from_iterable(match_tubes(*video) for video in videos))


def random_videos(num_videos: int = 4) -> list[tuple[list[TrueTube], list[ScoredTube]]]:
    """Boxes in 3 frames of 12x12; predictions are true boxes moved a little, of the right class or another one."""
    rng = np.random.default_rng(0)

    def box(top: int, left: int, size: int, gap: int) -> Mask:
        mask = np.zeros((3, 12, 12), dtype=bool)
        mask[:, max(top, 0) : top + size, max(left, 0) : left + size] = True
        return mask & (np.arange(3) != gap)[:, None, None]

    videos = []
    for _ in range(num_videos):
        truths, predictions = [], []
        for top, left, size, gap, category in rng.integers([0, 0, 4, 0, 0], [8, 8, 7, 4, 3], (4, 5)).tolist():
            truths.append(TrueTube(category, Tube.from_masks(box(top, left, size, gap))))
            for _ in range(4):
                moved = (top + rng.integers(-1, 2), left + rng.integers(-1, 2), size + rng.integers(0, 2), gap)
                label = category if rng.random() < 0.8 else 2 - category
                predictions.append(ScoredTube(label, Tube.from_masks(box(*moved)), rng.random()))
        videos.append((truths, predictions))
    return videos


# run lengths


@relaxed
@given(masks)
def test_masks_survive_tubes_and_coco(mask: Mask) -> None:
    tube = Tube.from_masks(mask)
    np.testing.assert_array_equal(tube.masks(), mask)
    stored = json.loads(json.dumps(tube.to_coco()))
    assert [frame is None for frame in stored] == (~mask.any(axis=(1, 2))).tolist()
    np.testing.assert_array_equal(Tube.from_coco(stored, *mask.shape[1:]).masks(), mask)


@relaxed
@given(masks)
def test_plain_counts_mean_the_same(mask: Mask) -> None:
    stored = Tube.from_masks(mask).to_coco()
    plain = [frame and {**frame, "counts": decompress_counts(frame["counts"]).tolist()} for frame in stored]
    np.testing.assert_array_equal(Tube.from_coco(plain, *mask.shape[1:]).masks(), mask)


def test_pixels_are_counted_down_the_columns() -> None:
    counts = {"size": [2, 3], "counts": [1, 1, 2, 2]}
    assert Tube.from_coco([counts], 2, 3).masks()[0].tolist() == [[False, False, True], [True, False, True]]


@pytest.mark.parametrize(
    ("counts", "text"),
    [([2, 1, 1], "211"), ([0, 4, 1, 3], "041O"), ([100], "T3"), ([16], "`0"), ([5, 7, 7, 7, 7], "57700")],
)
def test_compressed_counts_by_hand(counts: list[int], text: str) -> None:
    assert compress_counts(counts) == text
    assert decompress_counts(text).tolist() == counts
    assert decompress_counts(text.encode()).tolist() == counts


@relaxed
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_compressed_counts_come_back(counts: list[int]) -> None:
    assert decompress_counts(compress_counts(counts)).tolist() == counts


@relaxed
@given(masks)
def test_codec_against_pycocotools(mask: Mask) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for ours, frame in zip(Tube.from_masks(mask).to_coco(), mask, strict=True):
        theirs = coco.encode(np.asfortranarray(frame, dtype=np.uint8))
        if ours is not None:
            assert ours["counts"] == theirs["counts"].decode()
        height, width = frame.shape
        np.testing.assert_array_equal(Tube.from_coco([theirs], height, width).masks()[0], frame)


@pytest.mark.parametrize("text", ["", "T", "041 ", "041\u00e9", "p1", "oooooooo0"])
def test_damaged_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="COCO mask"):
        decompress_counts(text)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 2], "counts": [6]}, "size"),
        ({"counts": [6]}, "size"),
        ({"size": [2, 3]}, "sum to 0"),
        ({"size": [2, 3], "counts": [3, 2]}, "sum to 5"),
        ({"size": [2, 3], "counts": [7, -1]}, "negative"),
        ([[0, 0, 1, 0, 1, 1]], "polygons"),
    ],
)
def test_damaged_segmentations_are_refused(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tube.from_coco([None, segmentation], 2, 3)  # type: ignore[list-item]


def test_frames_without_the_object() -> None:
    mask = np.eye(3, dtype=bool)
    tube = Tube.from_masks([None, mask, None])
    np.testing.assert_array_equal(tube.masks(), np.stack([mask & False, mask, mask & False]))
    assert Tube.from_coco([None] * 4, 2, 3).masks().shape == (4, 2, 3)


@pytest.mark.parametrize(
    "wrong",
    [[None, None], [], np.zeros((1, 2, 2)), np.zeros((2, 2), bool), [np.ones((2, 2), bool), np.ones((2, 3), bool)]],
)
def test_other_masks_are_refused(wrong: Sequence[Mask]) -> None:
    with pytest.raises(ValueError, match="bool masks"):
        Tube.from_masks(wrong)


# overlap


@relaxed
@given(pairs_of_masks)
def test_overlap_against_pixels(pair: tuple[Mask, Mask]) -> None:
    a, b = pair
    tubes = Tube.from_masks(a), Tube.from_masks(b)
    either, both = a | b, a & b
    expected = both.sum() / either.sum() if either.any() else 0.0
    assert tube_iou(*tubes) == tube_iou(*reversed(tubes)) == pytest.approx(expected)
    per_frame = [x.sum() / y.sum() if y.any() else 1.0 for x, y in zip(both, either, strict=True)]
    assert jaccard(*tubes) == jaccard(*reversed(tubes)) == pytest.approx(np.mean(per_frame))


@relaxed
@given(masks)
def test_a_tube_is_itself(mask: Mask) -> None:
    tube = Tube.from_masks(mask)
    assert tube_iou(tube, tube) == float(mask.any())
    assert jaccard(tube, tube) == 1


def test_tubes_of_different_videos_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        tube_iou(row(1), row(1, width=11))


def test_jaccard_weighs_frames_and_objects_alike() -> None:
    large, small = np.ones((4, 4), dtype=bool), np.eye(4, dtype=bool)
    truth, half = Tube.from_masks([large, small]), Tube.from_masks([large, None])
    assert tube_iou(half, truth) == pytest.approx(16 / 20)
    assert jaccard(half, truth) == pytest.approx(1 / 2)
    assert mean_jaccard([(half, truth), (truth, truth)]) == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="no objects"):
        mean_jaccard([])


# average precision


def test_perfect_predictions() -> None:
    truths = [TrueTube("cat", row(1, 2)), TrueTube("cat", row(5, 6)), TrueTube("dog", row(1, 2))]
    found = score((truths, [ScoredTube(truth.category, truth.tube, 0.5) for truth in truths]))
    assert found == VideoInstanceScores(1.0, 1.0, 1.0, pytest.approx(0.75), 1.0, {"cat": 1.0, "dog": 1.0})


def test_no_predictions() -> None:
    assert score(([TrueTube(1, row(1))], [])) == VideoInstanceScores(0, 0, 0, 0, 0, {1: 0})


def test_precision_is_read_at_101_recalls() -> None:
    truths = [TrueTube(1, row(0, 1)), TrueTube(1, row(4, 5))]
    claims = [ScoredTube(1, row(0, 1), 0.9), ScoredTube(1, row(8), 0.8), ScoredTube(1, row(4, 5), 0.7)]
    found = score((truths, claims))
    assert found.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found.ar1 == 0.5
    assert found.ar10 == 1


def test_thresholds() -> None:
    found = score(([TrueTube(1, row(0, 1, 2, 3, 4))], [ScoredTube(1, row(0, 1, 2), 0.5)]))
    assert (found.ap50, found.ap75) == (1, 0)
    assert found.ap == found.ar1 == pytest.approx(0.3)


def test_videos_are_pooled_before_ranking() -> None:
    right = [TrueTube(1, row(0))], [ScoredTube(1, row(0), 0.2)]
    wrong = [TrueTube(1, row(0))], [ScoredTube(1, row(5), 0.8)]
    assert score(right, wrong).ap == pytest.approx(51 / 101 / 2)
    assert score(right, ([], [ScoredTube(1, row(0), 0.8)])).ap == pytest.approx(0.5)


def test_a_truth_is_found_once() -> None:
    truths, claim = [TrueTube(1, row(0)), TrueTube(1, row(5))], ScoredTube(1, row(0), 0.9)
    assert score((truths, [claim, claim._replace(score=0.8)])).ap == pytest.approx(51 / 101)
    assert score((truths[:1], [claim, claim._replace(score=0.8)])).ap == 1


def test_a_prediction_takes_the_best_truth_that_is_free() -> None:
    truths = [TrueTube(1, row(0, 1, 2)), TrueTube(1, row(0, 1, 2, 3))]
    first, second = ScoredTube(1, row(0, 1, 2, 3), 0.9), ScoredTube(1, row(0, 1, 2, 3, 4), 0.8)
    assert score((truths, [first, second])).ap50 == 1


def test_classes_without_truths_are_left_out() -> None:
    truths, claims = [TrueTube(1, row(0))], [ScoredTube(1, row(0), 0.5), ScoredTube(2, row(0), 0.9)]
    assert score((truths, claims)).per_class == {1: 1.0}
    with pytest.raises(ValueError, match="no class"):
        score(([], claims))
    with pytest.raises(ValueError, match="no class"):
        score(([TrueTube(1, row(0), crowd=True)], claims))


def test_crowds_excuse() -> None:
    truths = [TrueTube(1, row(5, 6), crowd=True), TrueTube(1, row(0))]
    claims = [ScoredTube(1, row(5, 6), 0.9), ScoredTube(1, row(5, 6), 0.8), ScoredTube(1, row(0), 0.7)]
    assert score((truths, claims)).ap == 1
    assert score((truths[1:], claims)).ap == pytest.approx(1 / 3)


def test_a_hundred_predictions_count() -> None:
    wrong = [ScoredTube(1, row(5), 0.9)] * 99
    for extra, found in ((0, 1.0), (1, 0.0)):
        claims = [ScoredTube(1, row(0), 0.1), *wrong, *wrong[:extra]]
        assert score(([TrueTube(1, row(0))], claims)).ap == pytest.approx(found / 100)


def test_order_does_not_matter() -> None:
    videos = random_videos()
    found = score(*videos)
    assert 0.1 < found.ap < found.ap50 < 1
    turned = [(truths, predictions[::-1]) for truths, predictions in videos[::-1]]
    assert score(*turned).ap == pytest.approx(found.ap)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_must_be_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        match_tubes([TrueTube(1, row(0))], [ScoredTube(1, row(0), value)])


def test_against_trackeval() -> None:
    pytest.importorskip("pycocotools")
    reference = pytest.importorskip("trackeval.metrics.track_map")
    videos = random_videos()

    def tracks(tubes: Sequence[TrueTube | ScoredTube]) -> list[dict[int, object]]:
        return [dict(enumerate(item.tube.to_coco())) for item in tubes]

    def their_score(limit: int) -> tuple[np.ndarray, np.ndarray]:
        settings = {"USE_AREA_RANGES": False, "USE_TIME_RANGES": False, "PRINT_CONFIG": False}
        metric = reference.TrackMAP({**settings, "IOU_THRESHOLDS": np.array(IOU_THRESHOLDS), "MAX_DETECTIONS": limit})
        classes = {}
        for category in sorted({truth.category for truths, _ in videos for truth in truths}):
            results = {}
            for index, (truths, predictions) in enumerate(videos):
                own = [truth for truth in truths if truth.category == category]
                claims = sorted((p for p in predictions if p.category == category), key=lambda p: -p.score)
                results[index] = metric.eval_sequence(
                    {
                        "gt_track_ids": [*range(1, len(own) + 1)],
                        "dt_track_ids": [*range(1, len(claims) + 1)],
                        "gt_tracks": tracks(own),
                        "dt_tracks": tracks(claims),
                        "dt_track_scores": np.array([claim.score for claim in claims]),
                        "iou_type": "mask",
                    }
                )
            classes[category] = metric.combine_sequences(results)
        mean = metric.combine_classes_class_averaged(classes)
        return mean["AP_all"], mean["AR_all"]

    found, (ap, _) = score(*videos), their_score(100)
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((ap.mean(), ap[0], ap[5]), abs=1e-12)
    assert (found.ar1, found.ar10) == pytest.approx([their_score(limit)[1].mean() for limit in (1, 10)], abs=1e-12)
