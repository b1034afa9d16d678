"""THUMOS14 and ActivityNet on miniatures in their own layouts, with all that is known to be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colour_words import ColourReader, painted
from pyratok.data.video_io import save_video
from pyratok.eval.benchmarks.action_spans import ActionSpans, mended, read_thumos, spoken
from pyratok.eval.benchmarks.registry import Options, build
from pyratok.eval.runner import run_benchmark

FPS = 10.0
SMALL = Options(settings={"fps": "10", "size": "64", "window": "3"})


def save(path: Path, *parts: tuple[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_video(painted([colour for colour, count in parts for _ in range(count)], fps=FPS), path, fps=FPS)


def thumos(folder: Path) -> Path:
    """Two classes, a sub-class, ambiguous spans, the two bad videos, a duplicate, a span of no length, no video."""
    texts = folder / "annotation"
    texts.mkdir(parents=True)
    (texts / "RedThing_test.txt").write_text(
        "video_test_0000001  2.0 4.0\nvideo_test_0000001 2.0 4.0\nvideo_test_0000001 1.0 1.0\n"
        "video_test_0000270 0.0 1.0\nvideo_test_0000003 0.0 1.0\n"
    )
    (texts / "GreenThing_test.txt").write_text("video_test_0000002  1.0 3.0\n")
    (texts / "Ambiguous_test.txt").write_text("video_test_0001292 0.0 1.0\nvideo_test_0000002 0.0 1.0\n")
    save(folder / "TH14_test_set_mp4" / "video_test_0000001.mp4", ("grey", 20), ("red", 20), ("grey", 20))
    save(folder / "TH14_test_set_mp4" / "video_test_0000002.mp4", ("blue", 10), ("green", 20), ("blue", 20))
    save(folder / "TH14_test_set_mp4" / "video_test_0000270.mp4", ("red", 10))
    return folder


def test_thumos_is_read_as_distributed(tmp_path: Path) -> None:
    loaded = build("thumos14", thumos(tmp_path), SMALL).load()
    assert {item.key: item.truths for item in loaded.items} == {
        "video_test_0000001": (("RedThing", 2.0, 4.0),),
        "video_test_0000002": (("GreenThing", 1.0, 3.0),),
    }
    assert loaded.missing == ("video_test_0000003",)
    assert dict(loaded.counts) == {"classes": 2, "videos": 5}
    assert dict(loaded.expected) == {"classes": 20, "videos": 213}


def test_actions_of_known_colour_are_found(tmp_path: Path) -> None:
    benchmark = build("thumos14", thumos(tmp_path / "data"), SMALL)
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out", any_revision=True)
    assert record.scores.values["average_map_all_classes"] > 0.5
    assert record.scores.values["map_at_0.3"] == pytest.approx(1.0)
    assert len(record.scores.details["splits"]) == 10
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())["results"]
    best = max(results["video_test_0000001"], key=lambda span: span["score"])
    assert best["label"] == "RedThing"
    assert best["segment"] == pytest.approx([2.0, 4.0], abs=0.31)


def test_every_cliff_diving_is_also_a_diving(tmp_path: Path) -> None:
    (tmp_path / "CliffDiving_test.txt").write_text("video_test_0000006 1.5 2.5\nvideo_test_0000006 5.0 6.0\n")
    (tmp_path / "Diving_test.txt").write_text("video_test_0000006 1.5 2.5\n")
    read = mended(read_thumos(sorted(tmp_path.glob("*.txt"))))
    assert list(read.spans["video_test_0000006"]) == [
        ("CliffDiving", 1.5, 2.5),
        ("Diving", 1.5, 2.5),
        ("CliffDiving", 5.0, 6.0),
        ("Diving", 5.0, 6.0),
    ]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "Diving_test.txt"
    path.write_text("video_test_0000006 1.5 2.5\nvideo_test_0000006 1.5\n")
    with pytest.raises(ValueError, match=r"Diving_test.txt, line 2: expected 'video start end'"):
        build("thumos14", tmp_path, SMALL).load()


def activitynet(folder: Path, subset: str = "validation") -> Path:
    def entry(label: str, start: float, end: float) -> dict[str, object]:
        span = {"label": label, "segment": [start, end]}
        return {"subset": subset, "duration": 5.0, "resolution": "64x64", "annotations": [span]}

    database = {
        "aaaaaaaaaaa": entry("Red thing", 1.0, 3.0),
        "bbbbbbbbbbb": entry("Green thing", 2.0, 4.0),
        "ccccccccccc": entry("Green thing", 2.0, 4.0),
        "ddddddddddd": {"subset": "training", "duration": 1.0, "annotations": []},
    }
    folder.mkdir(parents=True)
    document = {"database": database, "taxonomy": [], "version": "VERSION 1.3"}
    (folder / "activity_net.v1-3.min.json").write_text(json.dumps(document))
    (folder / "other.json").write_text("{}")
    save(folder / "v1-3" / "v_aaaaaaaaaaa.mp4", ("grey", 10), ("red", 20), ("grey", 20))
    save(folder / "v1-3" / "v_bbbbbbbbbbb.mkv", ("blue", 20), ("green", 20), ("blue", 10))
    return folder


def test_activitynet_is_read_as_distributed(tmp_path: Path) -> None:
    benchmark = build("activitynet13", activitynet(tmp_path / "data"), SMALL)
    loaded = benchmark.load()
    assert [item.key for item in loaded.items] == ["aaaaaaaaaaa", "bbbbbbbbbbb"]
    assert loaded.missing == ("ccccccccccc",)
    with pytest.raises(ValueError, match=r"2 classes where activitynet13 has 200, 3 videos where .* 4,926"):
        run_benchmark(benchmark, ColourReader, tmp_path / "out")
    record = run_benchmark(benchmark, ColourReader, tmp_path / "out", any_revision=True)
    assert record.scores.values["map_at_0.5"] > 0.5
    assert len([name for name in record.scores.values if name.startswith("map_at")]) == 10


def test_an_unknown_subset_is_named(tmp_path: Path) -> None:
    options = Options(settings={"subset": "holdout"})
    with pytest.raises(ValueError, match="no subset 'holdout', it has training, validation"):
        build("activitynet13", activitynet(tmp_path / "data"), options).load()


def test_lists_of_classes_take_the_place_of_random_splits(tmp_path: Path) -> None:
    data = thumos(tmp_path / "data")
    assert build("thumos14", data, SMALL).protocol.split_lists == "random"
    (data / "splits").mkdir()
    (data / "splits" / "unseen_0.txt").write_text("RedThing\n")
    (data / "splits" / "unseen_1.txt").write_text("GreenThing\n")
    benchmark = build("thumos14", data, SMALL)
    assert isinstance(benchmark, ActionSpans)
    assert benchmark.protocol.digest != build("thumos14", thumos(tmp_path / "plain"), SMALL).protocol.digest
    # Right of the red ones, nothing of the green ones.
    answers = [
        (item, {"spans": [["RedThing", 2.0, 4.0, 0.9]] if item.key.endswith("1") else []})
        for item in benchmark.load().items
    ]
    scores = benchmark.score(answers)
    assert [split["average_map"] for split in scores.details["splits"]] == [1.0, 0.0]
    assert scores.values["average_map"] == scores.values["average_map_all_classes"] == 0.5
    (data / "splits" / "unseen_1.txt").write_text("BlueThing\n")
    with pytest.raises(ValueError, match=r"unseen_1.txt: BlueThing are no classes of thumos14"):
        benchmark.score(answers)


def test_halves_are_the_same_every_time_and_half_as_large(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"Class{index}_test.txt").write_text("video_test_0000006 1.5 2.5\n")
    (tmp_path / "video_test_0000006.mp4").touch()
    one, other = (build("thumos14", tmp_path, SMALL) for _ in range(2))
    answers = [(item, {"spans": []}) for item in one.load().items]
    assert one.score(answers) == other.score(answers)
    assert all(len(split["classes"]) == 3 for split in one.score(answers).details["splits"])


def test_names_for_people() -> None:
    assert [spoken(name) for name in ("CliffDiving", "Tai chi", "Cleaning_windows", "BMX")] == [
        "cliff diving",
        "tai chi",
        "cleaning windows",
        "bmx",
    ]
